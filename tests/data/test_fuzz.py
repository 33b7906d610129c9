"""Readers under changed files: nothing but SumError or sound items, in bounded time and memory.

`SUM_FUZZ=WORLD:SEED:NUMBER pytest tests/data/test_fuzz.py -k one_case` runs one case again; `SUM_FUZZ_SEED`: the seed.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from sum.data.coco import coco_layout
from sum.data.layouts import LAYOUTS
from sum.data.sources import Item, Job, Note, Sample, Source, told
from sum.data_settings import DatasetConfig
from sum.datasets import source_of
from tests.data import fuzzing
from tests.data.fuzzing import World, run_world, set_below
from tests.data.miniatures.documents import DOCUMENTS
from tests.data.miniatures.raster import RASTER
from tests.data.test_layouts import KEYS, WRITERS
from tests.data.written import source, write_coco

PROJECT = Path(__file__).parents[2]
SEED = int(os.environ.get("SUM_FUZZ_SEED", "1"))
CASES = 10_000  # in the slow suite, spread over the worlds


def small(kind: str) -> World:
    """Three images of a kind."""
    return World(kind, WRITERS[kind], partial(source, **KEYS.get(kind, {})))


def worlds() -> dict[str, World]:
    """A small set of every kind, and the miniatures of the paper's sets."""
    found = {f"small {kind}": small(kind) for kind in sorted(LAYOUTS)}
    tree = yaml.safe_load((PROJECT / "examples/paper.yaml").read_text())["datasets"]
    table = TypeAdapter(dict[str, DatasetConfig]).validate_python(tree)
    for name, write in (DOCUMENTS | RASTER).items():
        key, _, variant = name.partition(" ")[0].partition("@")
        entry = table[key].variant(variant) if variant else table[key]
        found[name] = World(entry.kind, write, partial(set_below, source_of(name, entry)))
    return found


@pytest.fixture(scope="module")
def all_worlds() -> dict[str, World]:
    return worlds()


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_a_few_changed_files(kind: str, tmp_path: Path) -> None:
    failures, results = run_world(tmp_path / "w", f"small {kind}", small(kind), seed=SEED, numbers=range(40))
    assert not failures, "\n".join(failures)
    assert results["samples"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_changed_files(all_worlds: dict[str, World], tmp_path: Path) -> None:
    began, each, failures, total = time.perf_counter(), -(-CASES // len(all_worlds)), list[str](), 0
    for name, world in all_worlds.items():
        found, results = run_world(tmp_path / "w", name, world, seed=SEED, numbers=range(each))
        failures += found
        total += each
        print(f"{name}: {each} cases, {results}")  # noqa: T201  # with -s or on failure: what the fuzzing saw
        assert results["samples"], name
    print(f"{total} cases, seed {SEED}, {time.perf_counter() - began:.0f} s")  # noqa: T201
    assert not failures, "\n".join(failures)
    assert total >= 10_000


@pytest.mark.skipif("SUM_FUZZ" not in os.environ, reason="runs one case, as a failure's message says")
def test_one_case(all_worlds: dict[str, World], tmp_path: Path) -> None:
    name, seed, number = os.environ["SUM_FUZZ"].rsplit(":", 2)
    failures, _ = run_world(
        tmp_path, name, all_worlds[name], seed=int(seed), numbers=range(int(number), int(number) + 1)
    )
    assert not failures, failures[0]


# --- the fuzzing sees what it is for ---------------------------------------------------------------------------------


def careless(of: Source) -> list[Job]:
    """A COCO reader as written in an afternoon."""
    tree = json.loads((Path(of.root) / "annotations.json").read_text())
    names = {image["id"]: image["file_name"] for image in tree["images"]}
    return [Job(names[row["image_id"]], list) for row in tree["annotations"]]


def spoilt(of: Source) -> bool:
    """Whether a photo of the small set no longer ends as a JPEG."""
    return any(not path.read_bytes().endswith(b"\xff\xd9") for path in Path(of.root).rglob("*.jpg"))


def slow(of: Source) -> list[Job]:
    """A reader that waits for ever on a photo that is not whole."""
    waits = spoilt(of)
    while waits:
        pass
    return coco_layout(of)


def hungry(of: Source) -> list[Job]:
    """A reader that makes room for what is not there."""
    return [told(Note("", str(len(bytearray(2**33)))))] if spoilt(of) else coco_layout(of)


def doubled(of: Source) -> list[Job]:
    """A reader that gives every sample twice."""

    def twice(job: Job) -> list[Item]:
        items = list(job.read())
        return items + [item for item in items if isinstance(item, Sample)]

    return [Job(job.name, lambda job=job: twice(job)) for job in coco_layout(of)]


@pytest.mark.parametrize(
    ("layout", "cases", "want"),
    [
        (careless, 60, "KeyError|TypeError|JSONDecodeError"),
        (slow, 60, "no end within"),
        (hungry, 60, "MemoryError"),
        (doubled, 1, "an id twice"),
    ],
)
def test_a_broken_reader_is_caught(layout, cases: int, want: str, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(fuzzing, "SECONDS", 0.05 if layout is slow else 10)
    failures, _ = run_world(
        tmp_path / "w", "small coco", World("coco", write_coco, source), seed=SEED, numbers=range(cases), layout=layout
    )
    assert any(part in " ".join(failures) for part in want.split("|")), failures
    assert all(text.startswith("SUM_FUZZ='small coco:") for text in failures)
