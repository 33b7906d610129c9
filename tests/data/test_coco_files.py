"""COCO's dialects: several folders, one * for sub-sets, filters, flags, ids, frames; what is left out is counted."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sum.data.coco import ELSEWHERE, MISFIT, RESIZED, TWICE, flagged
from sum.data.coco_files import read_coco
from sum.data.collect import OTHER
from sum.data.places import UNTURNED, Found, Place, find_photos
from sum.data.records import decode_mask
from sum.data.sources import Item, Note, Problem
from sum.errors import DataError
from sum.storage import NotFound, read_bytes
from tests.clock import cpu_limit
from tests.data.written import (
    BOX,
    HEIGHT,
    NOISE,
    WIDTH,
    annotation,
    entry,
    photo,
    pixels,
    problem,
    read,
    samples,
    source,
    write_json,
)


def notes(items: list[Item]) -> list[str]:
    return [item.reason for item in items if isinstance(item, Note)]


def paths(items: list[Item], root: Path) -> list[str]:
    return [sample.image.path.removeprefix(f"{root}/") for sample in samples(items)]


def named(root: Path, *names: str, **more: Any) -> None:
    """A file that names these images, with a mask each."""
    images = [entry(index, name) for index, name in enumerate(names)]
    write_json(root, images=images, annotations=[annotation(index, BOX) for index in range(len(names))], **more)


def test_folders_are_searched_in_turn_by_path_and_then_by_last_name(tmp_path: Path) -> None:
    for path in ("one/a.jpg", "two/a.jpg", "two/deep/b.jpg", "one/c/d.jpg", "two/e/d.jpg"):
        photo(tmp_path / path)
    named(tmp_path, "a.jpg", "b.jpg", "c/d.jpg", "x/e/d.jpg", "d.jpg", ".\\deep\\b.JPG")
    items = read("coco", source(tmp_path, images=("one", "two")))
    assert paths(items, tmp_path) == ["one/a.jpg", "two/deep/b.jpg", "one/c/d.jpg"]
    reasons = [item.reason for item in items if isinstance(item, Problem)]
    assert len(reasons) == 3
    assert all("could be any of 2 file(s): one/c/d.jpg, two/e/d.jpg" in reason for reason in reasons[:2])
    assert "no file of this name below" in reasons[2]


@pytest.mark.parametrize(
    ("there", "names", "want"),
    [
        ("train/sub/y.jpg", ("train/y.jpg", "train/sub/y.jpg"), [1]),  # the first is missing, not the other photo
        ("train/sub/y.jpg", ("train/sub/y.jpg", "train/y.jpg"), [0]),
        ("train/sub/deep/y.jpg", ("train/y.jpg", "train/sub/y.jpg"), []),  # either may be meant
        ("2/1/x.jpg", ("1/2/x.jpg", "2/1/x.jpg"), [1]),  # folders have an order
        ("1/a/2/x.jpg", ("2/1/x.jpg", "1/2/x.jpg"), [1]),
    ],
)
@pytest.mark.parametrize("folder", [".", "photos"])
def test_a_photo_is_of_one_image(
    there: str, names: tuple[str, ...], want: list[int], folder: str, tmp_path: Path
) -> None:
    photo(tmp_path / folder / there)
    named(tmp_path, *(f"{folder}/{name}".removeprefix("./") for name in names))
    items = read("coco", source(tmp_path, images=folder))
    found = [sample.image.image_id.removeprefix("set/").removeprefix("photos/") for sample in samples(items)]
    assert found == [names[index].removesuffix(".jpg") for index in want]
    problems = [item for item in items if isinstance(item, Problem)]
    assert len(problems) == len(names) - len(want)
    assert all("2 image(s) of the annotation file could be any of 1 file(s)" in item.reason for item in problems)


def test_a_photo_found_in_two_folders_is_of_one_image(tmp_path: Path) -> None:
    photo(tmp_path / "train" / "x.jpg")
    named(tmp_path, "x.jpg", "train/x.jpg")
    items = read("coco", source(tmp_path, images=("train", ".")))
    assert paths(items, tmp_path) == []
    assert len(items) == 2


def test_many_names_of_one_last_part_are_found_in_one_walk(tmp_path: Path) -> None:
    """2,000 of each took 4 seconds: each name was held against each file."""
    names = [f"{index}/x.jpg" for index in range(2_000)]
    for index in range(2_000):
        (tmp_path / f"deep/{index}/in").mkdir(parents=True)
        (tmp_path / f"deep/{index}/in/x.jpg").touch()
    place = Place("", ("deep",), "")
    with cpu_limit(2):
        found, _ = find_photos(source(tmp_path), place, names)
        loose, _ = find_photos(source(tmp_path), place, [f"gone/{name}" for name in names])
    assert found == {name: Found("deep", name.replace("/x", "/in/x")) for name in names}
    assert all("2000 image(s) of the annotation file could be any of 2000" in str(text) for text in loose.values())


def test_photos_may_lie_in_tar_archives(tmp_path: Path) -> None:
    for path in ("plain/a.jpg", "packed/sub/b.jpg", "packed/c.jpg", "gone/d.jpg"):
        photo(tmp_path / path, seed=len(path))
    (tmp_path / "images").mkdir()
    (tmp_path / "plain" / "a.jpg").rename(tmp_path / "images" / "a.jpg")
    with tarfile.open(tmp_path / "images" / "one.tar", "w") as archive:
        archive.add(tmp_path / "packed", arcname=".")
    named(tmp_path, "a.jpg", "sub/b.jpg", "one/c.jpg")
    items = read("coco", source(tmp_path))
    found = samples(items)
    assert [sample.image.image_id for sample in found] == ["set/a", "set/sub/b", "set/one/c"]
    wanted = ["images/a.jpg", "packed/sub/b.jpg", "packed/c.jpg"]
    assert [read_bytes(sample.image.path) for sample in found] == [(tmp_path / name).read_bytes() for name in wanted]
    assert all(np.array_equal(pixels(sample.masks[0]), BOX) for sample in found)
    assert not [item for item in items if isinstance(item, Problem)]
    whole = (tmp_path / "images" / "one.tar").read_bytes()
    (tmp_path / "images" / "two.tar").write_bytes(whole[:700])
    assert len(samples(read("coco", source(tmp_path)))) == 3  # a broken archive that nobody asked for is not in the way
    named(tmp_path, "a.jpg", "d.jpg")
    reasons = [item.reason for item in read("coco", source(tmp_path)) if isinstance(item, Problem)]
    assert len(reasons) == 2
    assert "no file of this name" in " ".join(reasons)
    assert "is no whole tar archive" in " ".join(reasons)


def test_with_only_found_images_of_other_folders_are_of_another_set(tmp_path: Path) -> None:
    for path in ("f1/x/a.jpg", "f1/x/same.jpg", "f2/b.jpg", "f2/same.jpg"):
        photo(tmp_path / path)
    named(tmp_path, "f1/a.jpg", "f2/b.jpg", "f2/same.jpg")
    items = read("coco", source(tmp_path, images=("f1",), only_found=True))
    assert paths(items, tmp_path) == ["f1/x/a.jpg"]  # f1/x/same.jpg is another photo than f2/same.jpg
    assert notes(items) == [ELSEWHERE] * 2
    assert not any(isinstance(item, Problem) for item in items)
    missing = [item for item in read("coco", source(tmp_path, images=("f2",))) if isinstance(item, Problem)]
    assert [item.file for item in missing] == [f"{tmp_path}/f2/f1/a.jpg"]
    with pytest.raises(NotFound, match="f3"):
        read("coco", source(tmp_path, images=("f1", "f3")))


def test_a_star_stands_for_the_same_text_everywhere(tmp_path: Path) -> None:
    for part in ("log", "wire"):
        photo(tmp_path / part / "val" / "image" / "1.jpg")
        named(tmp_path / part / "val", "1.jpg")
    (tmp_path / "other" / "train").mkdir(parents=True)
    of = source(tmp_path, annotations="*/val/annotations.json", images="*/val/image")
    items = read("coco", of)
    assert [sample.image.image_id for sample in samples(items)] == ["set/log/1", "set/wire/1"]
    assert paths(items, tmp_path) == ["log/val/image/1.jpg", "wire/val/image/1.jpg"]
    with pytest.raises(DataError, match=r"no file below .* is named as annotations '\*/val\.json'"):
        read("coco", source(tmp_path, annotations="*/val.json", images="*/val/image"))
    with pytest.raises(DataError, match=r"images '\*/image' has a \*, annotations 'annotations\.json' has none"):
        read("coco", source(tmp_path, images="*/image"))


CATEGORIES = [
    {"id": 1, "name": "car", "supercategory": "OBJECT"},
    {"id": 2, "name": "car:wheel", "supercategory": "PART"},
    {"id": 3, "name": "bus:wheel", "supercategory": "PART"},
]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["car", "car:wheel", "bus:wheel"]),
        ({"supercategories": ("PART",)}, ["car:wheel", "bus:wheel"]),
        ({"categories": ("car", "bus:wheel")}, ["car", "bus:wheel"]),
        ({"categories": ("car", "bus:wheel"), "supercategories": ("PART",)}, ["bus:wheel"]),
    ],
)
def test_filters(filters: dict[str, Any], names: list[str], tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    rows = [annotation(0, BOX, category_id=key) for key in (1, 2, 3)]
    write_json(tmp_path, images=[entry(0, "a.jpg")], annotations=rows, categories=CATEGORIES)
    items = read("coco", source(tmp_path, **filters))
    assert [mask.category for mask in samples(items)[0].masks] == names
    assert notes(items) == [OTHER] * (3 - len(names))


def test_a_filter_of_an_unknown_name_is_one_error_with_the_known_ones(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    named(tmp_path, "a.jpg", categories=CATEGORIES)
    with pytest.raises(
        DataError, match=r"datasets\.set\.categories: .* no 'cat'\. Did you mean 'car'\? They have: bus:"
    ):
        read("coco", source(tmp_path, categories=("cat", "car:wheel")))
    with pytest.raises(DataError, match=r"datasets\.set\.supercategories: .* no 'part'.* They have: OBJECT, PART\."):
        read("coco", source(tmp_path, supercategories=("part",)))


def test_every_flag_is_counted_by_its_own_reason(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    flags = [
        {"iscrowd": 1},
        {"remove": True},
        {"remove": 1},
        {"iscrowd": 0, "remove": 0},
        {"remove": "0"},
        {"remove": None},
    ]
    write_json(tmp_path, images=[entry(0, "a.jpg")], annotations=[annotation(0, BOX, **of) for of in flags])
    items = read("coco", source(tmp_path, drop_flags=("iscrowd", "remove")))
    assert notes(items) == [flagged("iscrowd"), flagged("remove"), flagged("remove")]
    assert len(samples(items)[0].masks) == 3
    assert len(samples(read("coco", source(tmp_path, drop_flags=())))[0].masks) == 6


def test_ids_are_of_48_bits_repeated_or_text(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photo(tmp_path / "images" / f"{name}.jpg")
    images = [entry(2**47 + 1, "a.jpg"), entry("b-7", "b.jpg")]  # type: ignore[arg-type]
    rows = [annotation(2**47 + 1, BOX, id=9), annotation("b-7", NOISE, id=9), annotation("b-7", BOX, id=9)]  # type: ignore[arg-type]
    write_json(tmp_path, images=images, annotations=rows)
    items = read("coco", source(tmp_path))
    assert [[mask.mask_id for mask in of.masks] for of in samples(items)] == [["set/a#0"], ["set/b#0", "set/b#1"]]
    assert notes(items) == [TWICE] * 2


def test_lvis_names_images_by_url_and_has_no_sizes(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "val2017" / "000.jpg")
    image = {"id": 1, "coco_url": "http://images.cocodataset.org/val2017/000.jpg", "not_exhaustive_category_ids": [3]}
    row = {key: value for key, value in annotation(1, BOX).items() if key != "iscrowd"}
    write_json(tmp_path, images=[image], annotations=[row])
    (sample,) = samples(read("coco", source(tmp_path)))
    assert sample.image.image_id == "set/val2017/000"
    assert np.array_equal(pixels(sample.masks[0]), BOX)


def on_its_side(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(root / "images" / "a.jpg", exif=exif)  # stored HEIGHT x WIDTH, upright WIDTH x HEIGHT


def test_masks_that_fit_only_the_photo_as_stored(tmp_path: Path) -> None:
    on_its_side(tmp_path)
    named(tmp_path, "a.jpg")
    items = read("coco", source(tmp_path))
    (sample,) = samples(items)
    assert (sample.image.exif, sample.image.height, sample.image.width) == ("ignore", HEIGHT, WIDTH)
    assert np.array_equal(pixels(sample.masks[0]), BOX)
    assert notes(items) == [UNTURNED]
    row = annotation(0, BOX.T.copy())
    write_json(tmp_path, images=[entry(0, "a.jpg", height=WIDTH, width=HEIGHT)], annotations=[row])
    items = read("coco", source(tmp_path))
    (sample,) = samples(items)
    assert (sample.image.exif, sample.image.height, sample.image.width) == ("transpose", WIDTH, HEIGHT)
    assert (sample.masks[0].area, notes(items)) == (50, [])


@pytest.mark.parametrize("policy", ["error", "skip", "resize_mask"])
def test_annotations_of_another_size(policy: str, tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    small = BOX[::2, ::2]
    write_json(
        tmp_path,
        images=[entry(0, "a.jpg", height=HEIGHT // 2, width=WIDTH // 2)],
        annotations=[annotation(0, small), annotation(0, [[1, 1, 5, 1, 5, 4, 1, 4]])],
    )
    items = read("coco", source(tmp_path, on_size_mismatch=policy))
    if policy == "error":
        assert "says height, width (12, 16), the upright photo has (24, 32)" in problem(items).reason
    elif policy == "skip":
        assert notes(items) == [MISFIT]
    else:
        (sample,) = samples(items)
        found = [decode_mask(mask.rle, height=HEIGHT, width=WIDTH) for mask in sample.masks]
        assert np.array_equal(found[0], small.repeat(2, 0).repeat(2, 1))
        assert (found[1].sum(), found[1][2:8, 2:10].all()) == (48, True)
        assert notes(items) == [RESIZED]


@pytest.mark.parametrize("size", [(10**9, 10**9), (-1, 5), ("24", "32"), (24.5, 32)])
def test_a_size_that_no_photo_has_is_told(size: tuple[Any, Any], tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    write_json(
        tmp_path,
        images=[entry(0, "a.jpg", height=size[0], width=size[1])],
        annotations=[annotation(0, [[1, 1, 5, 1, 5, 4]])],
    )
    assert "says height, width" in problem(read("coco", source(tmp_path, on_size_mismatch="resize_mask"))).reason


def test_what_no_mask_needs_is_not_kept(tmp_path: Path) -> None:
    row = annotation(0, [[1.5, 1, 5, 1, 5, 4.25]], bbox=[1, 1, 4, 3], area=6.0, attributes={"x": [1] * 9}, remove=0)
    write_json(tmp_path, images=[entry(0, "a.jpg", license=3, url="x")], annotations=[row], info={"a": 1})
    file = read_coco(f"{tmp_path}/annotations.json", max_mb=1, flags=["remove"])
    assert file.images == [entry(0, "a.jpg")]
    assert set(file.annotations(0)[0]) == {"id", "image_id", "category_id", "segmentation", "remove"}
    assert file.annotations(0)[0]["segmentation"][0].tolist() == [1.5, 1, 5, 1, 5, 4.25]


def test_two_categories_of_one_id_and_a_key_twice_are_refused(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    named(tmp_path, "a.jpg", categories=[{"id": 3, "name": "car"}, {"id": 3, "name": "cat"}])
    with pytest.raises(DataError, match="two categories have the id 3: 'car' and 'cat'"):
        read("coco", source(tmp_path))
    named(tmp_path, "a.jpg")
    text = (tmp_path / "annotations.json").read_text()
    (tmp_path / "annotations.json").write_text(text[:-1] + ', "annotations": []}')
    with pytest.raises(DataError, match="has the key 'annotations' twice"):
        read("coco", source(tmp_path))
    assert (
        json.loads((tmp_path / "annotations.json").read_text())["annotations"] == []
    )  # what json alone would make of it
