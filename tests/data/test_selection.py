"""Which images are used: order, numbers, exclusions, and how far the threads read ahead."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable

import pytest

from sum.data.records import ImageRecord, MaskRecord
from sum.data.selection import AHEAD, EXCLUDED, UNFIT, Selection, arrange, run_jobs
from sum.data.sources import Item, Job, Note, Problem, Sample, told

NAMES = ["b", "a", "deep/c", "d#1", "e"]


class World:
    """Images `NAME` with so many masks each; notes which were read."""

    def __init__(self, masks: dict[str, int]) -> None:
        self.read: list[str] = []
        self.masks, self.lock = masks, threading.Lock()
        self.jobs = [Job(name, lambda name=name: self.items(name)) for name in masks]

    def items(self, name: str) -> Iterable[Item]:
        with self.lock:
            self.read.append(name)
        count = self.masks[name]
        if count < 0:
            return [Problem(name, "broken", "mend it")]
        image = ImageRecord(f"set/{name}", "set", name, "", 4, 4, "part", "test", "CC0-1.0")
        mask = MaskRecord(f"set/{name}#0", f"set/{name}", "set", "part", "test", 1, 0, 0, 0, 0, "", "", "")
        return [Sample(image, (mask,) * count)] if count else [Note("image without a mask left out", name)]


def used(world: World, **options: object) -> list[str]:
    """The images that come out."""
    found = run_jobs(world.jobs, Selection(**options))
    return [item.image.path for items in found for item in items if isinstance(item, Sample)]


@pytest.mark.parametrize(
    ("order", "want"),
    [("name", ["a", "b", "d#1", "deep/c", "e"]), ("file", NAMES)],
)
def test_order_by_name_or_as_in_the_file(order: str, want: list[str]) -> None:
    assert used(World(dict.fromkeys(NAMES, 1)), order=order) == want


def test_shuffled_depends_on_the_seed_and_the_names_only() -> None:
    names = [f"{number:03}" for number in range(50)]
    listed = list(names)
    random.Random(5).shuffle(listed)
    first, second = (used(World(dict.fromkeys(order, 1)), order="shuffled", seed=3) for order in (names, listed))
    assert first == second
    assert sorted(first) == names != first
    assert used(World(dict.fromkeys(names, 1)), order="shuffled", seed=4) != first


def test_shuffled_stays_what_it_was() -> None:
    """A new release must select what the last one did: this is the order of Python 3.11 to 3.13."""
    assert used(World(dict.fromkeys("abcdefgh", 1)), order="shuffled", seed=0) == list("ebfcadhg")


def test_the_first_images_count_only_with_a_sample() -> None:
    world = World({"a": 1, "b": 0, "c": -1, "d": 2, "e": 1})
    assert used(world, images=2) == ["a", "d"]
    assert used(world, images=9) == ["a", "d", "e"]


@pytest.mark.parametrize(("masks", "want"), [(1, "a"), (3, "a"), (4, "ab"), (7, "ab"), (8, "abc"), (99, "abc")])
def test_whole_images_until_there_are_enough_masks(masks: int, want: str) -> None:
    assert used(World({"a": 3, "b": 4, "c": 1}), masks=masks) == list(want)


def test_of_two_numbers_the_first_one_reached_ends_it() -> None:
    world = World({"a": 3, "b": 4, "c": 1})
    assert used(world, masks=4, images=1) == ["a"]
    assert used(world, masks=4, images=3) == ["a", "b"]


def test_excluded_images_are_not_read_and_counted_and_an_idle_pattern_is_told() -> None:
    world = World(dict.fromkeys(NAMES, 1))
    items = [item for found in run_jobs(world.jobs, Selection(exclude=["deep/*", "d#*", "z*"])) for item in found]
    assert sorted(world.read) == ["a", "b", "e"]
    notes = [item for item in items if isinstance(item, Note)]
    assert notes == [Note(EXCLUDED, "deep/c"), Note(EXCLUDED, "d#1"), Note(UNFIT, "z*")]


def test_a_pattern_is_of_the_whole_name_and_case_counts() -> None:
    world = World(dict.fromkeys(["peregine_falcon_8", "Peregine_falcon_8", "other_8x"], 1))
    assert used(world, exclude=["peregine_falcon*8", "other_8"]) == ["Peregine_falcon_8", "other_8x"]


def test_findings_of_the_listing_come_first_and_do_not_count() -> None:
    world = World({"b": 1, "a": 1})
    stray = Note("stray", "x")
    jobs = [world.jobs[0], told(stray), world.jobs[1]]
    found = list(run_jobs(jobs, Selection(images=1)))
    assert found[0] == [stray]
    assert [items[0].image.path for items in found[1:]] == ["a"]
    assert [job.name for job in arrange(jobs, Selection())] == ["", "a", "b"]


def test_threads_do_not_read_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    ahead, before = AHEAD * 4, threading.active_count()  # two threads a core
    world = World({f"{number:04}": 1 for number in range(500)})
    assert len(used(world, images=3)) == 3
    assert len(world.read) <= 3 + ahead
    world.read.clear()
    reader = run_jobs(world.jobs, Selection())
    for _ in range(10):
        next(reader)
    assert len(world.read) <= 10 + ahead
    reader.close()  # whoever stops reading, by an error for example, leaves no work behind
    after = len(world.read)
    assert after <= 10 + ahead
    assert threading.active_count() < before + 4


def test_an_error_comes_after_the_images_before_it() -> None:
    world = World(dict.fromkeys("abc", 1))

    def fail() -> Iterable[Item]:
        raise OSError("no disk")

    jobs = [*world.jobs[:2], Job("bb", fail), world.jobs[2]]
    reader = run_jobs(jobs, Selection())
    assert [next(reader)[0].image.path for _ in range(2)] == ["a", "b"]
    with pytest.raises(OSError, match="no disk"):
        next(reader)
