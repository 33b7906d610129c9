"""Two manifests compared: by hand, and against a plain count over Python objects."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sum.data.differences import KINDS, Change, Group, differences, fingerprints
from sum.data.records import IMAGES, ImageRecord, MaskRecord, read_manifest, write_manifest
from sum.errors import DataError, MissingInput


def image(name: str, **more: object) -> ImageRecord:
    dataset = name.partition("/")[0]
    whole = ImageRecord(name, dataset, f"data/raw/{name}.jpg", "ab", 4, 4, "part", "train", "CC0-1.0")
    return replace(whole, **more)


def mask(of: ImageRecord, number: int, rle: str, *, category: str = "") -> MaskRecord:
    name = f"{of.image_id}#{number}"
    return MaskRecord(name, of.image_id, of.dataset, of.task, of.split, 1, 0, 0, 0, 0, rle, category, "")


def compare(folder: Path, old: tuple[list, list], new: tuple[list, list]) -> dict[Group, Change]:
    for name, (images, masks) in (("old", old), ("new", new)):
        write_manifest(folder / name, images, masks)
    return differences(folder / "old", folder / "new")


def counts(counter: Counter[str]) -> dict[str, int]:
    return {kind: number for kind, number in counter.items() if number}


def test_every_kind_of_change_is_counted_where_it_happened(tmp_path: Path) -> None:
    a, b, c, d = (image(f"one/{name}") for name in "abcd")
    other = image("two/a", task="entity")
    old = ([a, b, c, other], [mask(a, 0, "x"), mask(a, 1, "y"), mask(b, 0, "z"), mask(c, 0, "k"), mask(other, 0, "x")])
    moved = replace(b, sha256="cd")
    new = (
        [a, moved, d, other],
        [mask(a, 0, "y"), mask(b, 0, "w"), mask(d, 0, "x"), mask(d, 1, "x"), mask(other, 0, "x")],
    )
    found = compare(tmp_path, old, new)
    one, two = found["one", "part"], found["two", "entity"]
    assert counts(one.images) == {"same": 1, "altered": 1, "removed": 1, "added": 1}
    # a: x is gone and y, now number 0, is the same; b: z became w; c took k along; d brought two
    assert counts(one.masks) == {"same": 1, "removed": 2, "altered": 1, "added": 2}
    assert one.first == {"added": ["one/d"], "removed": ["one/c"], "altered": ["one/b"]}
    assert (two.any, counts(two.images), counts(two.masks)) == (False, {"same": 1}, {"same": 1})


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"sha256": "cd"}, "altered"),
        ({"height": 5}, "altered"),
        ({"split": "test"}, "altered"),
        ({"licence": "MIT"}, "altered"),
        ({"path": "elsewhere.jpg"}, "same"),  # the data may lie where they like
    ],
)
def test_what_makes_an_image_another(tmp_path: Path, more: dict[str, object], kind: str) -> None:
    old = image("one/a")
    found = compare(tmp_path, ([old], []), ([replace(old, **more)], []))
    assert counts(found["one", "part"].images) == {kind: 1}


def test_a_category_counts_and_a_repeated_mask_counts_as_often_as_it_is_there(tmp_path: Path) -> None:
    a = image("one/a")
    old = ([a], [mask(a, 0, "x", category="cat"), mask(a, 1, "y"), mask(a, 2, "y")])
    new = ([a], [mask(a, 0, "x", category="dog"), mask(a, 1, "y")])
    assert counts(compare(tmp_path, old, new)["one", "part"].masks) == {"altered": 1, "same": 1, "removed": 1}


def test_pixels_and_category_are_not_confused(tmp_path: Path) -> None:
    a = image("one/a")
    found = compare(tmp_path, ([a], [mask(a, 0, "x", category="y")]), ([a], [mask(a, 0, "y", category="x")]))
    assert counts(found["one", "part"].masks) == {"altered": 1}


def test_a_new_task_is_told_under_the_new_one(tmp_path: Path) -> None:
    old = image("one/a")
    new = replace(old, task="entity")
    found = compare(tmp_path, ([old], [mask(old, 0, "x")]), ([new], [mask(new, 0, "x")]))
    assert counts(found["one", "entity"].images) == {"altered": 1}
    assert counts(found["one", "entity"].masks) == {"same": 1}


def test_empty_manifests(tmp_path: Path) -> None:
    a = image("one/a")
    assert compare(tmp_path, ([], []), ([], [])) == {}
    found = compare(tmp_path, ([], []), ([a], [mask(a, 0, "x")]))
    assert (counts(found["one", "part"].images), counts(found["one", "part"].masks)) == ({"added": 1}, {"added": 1})


def plainly(old: tuple[list, list], new: tuple[list, list]) -> dict[str, dict[str, Counter[str]]]:
    """The same by dictionaries of objects: data set -> images or masks -> kind -> count."""
    found: dict[str, dict[str, Counter[str]]] = {}
    before, after = ({entry.image_id: entry for entry in images} for images, _ in (old, new))
    heaps = [Counter((m.image_id, m.rle, m.category) for m in masks) for _, masks in (old, new)]
    for name in before.keys() | after.keys():
        table = found.setdefault(name.partition("/")[0], {"images": Counter(), "masks": Counter()})
        both = name in before and name in after
        kind = "added" if name not in before else "removed" if name not in after else ""
        table["images"][kind or ("same" if before[name] == after[name] else "altered")] += 1
        first, second = (Counter({k: n for k, n in heap.items() if k[0] == name}) for heap in heaps)
        left, right = (first - second).total(), (second - first).total()
        altered = min(left, right) if both else 0
        table["masks"] += Counter(
            same=(first & second).total(), altered=altered, removed=left - altered, added=right - altered
        )
    return found


@pytest.mark.parametrize("seed", range(5))
def test_it_counts_as_dictionaries_do(tmp_path: Path, seed: int) -> None:
    drawn = random.Random(seed)
    sides = []
    for _ in range(2):
        images = [image(f"{s}/{n}", sha256=drawn.choice("ab")) for s in "pq" for n in range(60) if drawn.random() < 0.8]
        masks = [
            mask(of, number, drawn.choice("uvwxyz"), category=drawn.choice(["", "cat"]))
            for of in images
            for number in range(drawn.randrange(5))
        ]
        drawn.shuffle(images)
        drawn.shuffle(masks)
        sides.append((images, masks))
    wanted = plainly(*sides)
    found = compare(tmp_path, *sides)
    for (dataset, _), change in found.items():
        assert counts(change.images) == counts(wanted[dataset]["images"])
        assert counts(change.masks) == counts(wanted[dataset]["masks"])
    assert {dataset for dataset, _ in found} == wanted.keys()
    assert all(change.any and set(change.images) <= {*KINDS, "same"} for change in found.values())


def test_a_file_that_is_no_manifest_is_named(tmp_path: Path) -> None:
    write_manifest(tmp_path / "good", [image("one/a")], [])
    write_manifest(tmp_path / "bad", [], [])
    (tmp_path / "bad" / IMAGES).write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"bad/images\.parquet: not a table of a manifest"):
        differences(tmp_path / "good", tmp_path / "bad")
    table = pq.read_table(tmp_path / "good" / IMAGES).drop_columns(["sha256"])
    pq.write_table(table, tmp_path / "bad" / IMAGES)
    with pytest.raises(DataError, match="it has no column 'sha256'"):
        differences(tmp_path / "bad", tmp_path / "good")


def test_streamed_fingerprints_are_those_that_runs_are_tagged_with(tmp_path: Path) -> None:
    images = [image(name) for name in ("two/b", "one/a", "three/c")]
    write_manifest(tmp_path, images, [mask(of, number, "xy"[number]) for of in images for number in range(2)])
    choices = [("one",), ("one", "two"), ("none",), ("one", "two", "three")]
    whole = read_manifest(tmp_path, reader="test")
    found = fingerprints(tmp_path, choices, reader="test")
    assert found == {choice: whole.select(datasets=choice).fingerprint for choice in choices}
    assert len(set(found.values())) == 4


def test_a_manifest_from_before_the_perceptual_hashes_has_the_fingerprint_of_that_time(tmp_path: Path) -> None:
    images = [image(name) for name in ("two/b", "one/a", "one/c")]
    masks = [mask(of, number, "xy"[number % 2]) for of in images for number in (10, 9)]  # 9 is before 10
    write_manifest(tmp_path, images, masks)
    younger = ["exif", "phash", "mirror_phash"]
    pq.write_table(pq.read_table(tmp_path / IMAGES).drop_columns(younger), tmp_path / IMAGES)
    found = fingerprints(tmp_path, [("one",), ("one", "two")], reader="test")
    for choice, fingerprint in found.items():
        digest = hashlib.sha256()  # as it was computed then: rows by id, a line of JSON each
        for of in sorted((one for one in images if one.dataset in choice), key=lambda one: one.image_id):
            digest.update(json.dumps(list(astuple(of))[: -len(younger)]).encode() + b"\n")
        numbered = ((m.image_id, int(m.mask_id.split("#")[1]), m) for m in masks if m.dataset in choice)
        for _, _, one in sorted(numbered):
            digest.update(json.dumps(list(astuple(one))).encode() + b"\n")
        assert fingerprint == digest.hexdigest()
    assert len(set(found.values())) == 2
    assert not any(change.any for change in differences(tmp_path, tmp_path).values())


def test_a_manifest_that_lacks_what_every_one_has_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, [image("one/a")], [])
    pq.write_table(pq.read_table(tmp_path / IMAGES).drop_columns(["licence"]), tmp_path / IMAGES)
    with pytest.raises(DataError, match=r"images\.parquet: not a table that stage 'ingest' writes"):
        fingerprints(tmp_path, [("one",)], reader="test")
    with pytest.raises(MissingInput, match="stage 'ingest' writes it"):
        fingerprints(tmp_path / "nowhere", [("one",)], reader="test")
