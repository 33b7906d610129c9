"""COCO files of every dialect: the masks are the arrays they came from, and what is wrong is told or counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from sum.data.coco import flagged
from sum.data.collect import BARE
from sum.data.rle import EMPTY, FEW_POINTS, parse_counts, to_rle
from sum.data.sources import Item, Note, Problem
from sum.errors import DataError
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

TRIANGLE = [2.0, 2.0, 20.5, 3.0, 9.0, 21.0]


def only(root: Path, segmentation: Any, **more: Any) -> list[Item]:
    """What a file with one image and this annotation (and one sound one) gives."""
    photo(root / "images" / "a.jpg")
    rows = [annotation(7, BOX), annotation(7, segmentation, id=99, **more)]
    write_json(root, images=[entry(7, "a.jpg")], annotations=rows)
    return read("coco", source(root))


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = np.concatenate(([False], mask.T.ravel(), [not mask.T.ravel()[-1]]))
    edges = np.flatnonzero(np.diff(flat.astype(int)))
    counts = np.diff(np.concatenate(([0], edges)))
    return {"size": [HEIGHT, WIDTH], "counts": [int(count) for count in counts]}


@pytest.mark.parametrize("mask", [BOX, NOISE, ~NOISE, np.ones_like(BOX), np.eye(HEIGHT, WIDTH, dtype=bool)])
@pytest.mark.parametrize("compressed", [True, False])
def test_coco_run_lengths(mask: np.ndarray, compressed: bool, tmp_path: Path) -> None:
    items = only(tmp_path, mask if compressed else uncompressed(mask))
    found = samples(items)[0].masks[1]
    ys, xs = np.nonzero(mask)
    assert np.array_equal(pixels(found), mask)
    assert (found.area, found.x0, found.y0, found.x1, found.y1) == (mask.sum(), xs.min(), ys.min(), xs.max(), ys.max())
    assert (found.mask_id, found.category) == ("set/a#1", "thing")


def test_coco_polygons_are_drawn_by_pycocotools(tmp_path: Path) -> None:
    square = [25.0, 1, 30, 1, 30, 6, 25, 6]
    items = only(tmp_path, [TRIANGLE, square, [1.0, 1, 2, 2]])
    want = rle.decode(rle.merge(rle.frPyObjects([TRIANGLE, square], HEIGHT, WIDTH)))
    assert np.array_equal(pixels(samples(items)[0].masks[1]), want)
    assert [item.reason for item in items if isinstance(item, Note)] == [FEW_POINTS]


@pytest.mark.parametrize(
    ("segmentation", "more", "reason"),
    [
        (BOX, {"iscrowd": 1}, flagged("iscrowd")),
        ([], {}, EMPTY),
        (None, {}, EMPTY),
        (np.zeros((HEIGHT, WIDTH), bool), {}, EMPTY),
        ([[40.0, 40, 50, 40, 50, 50]], {}, EMPTY),  # outside the photo
        ([[1.0, 1, 5, 5]], {}, FEW_POINTS),  # four numbers: pycocotools would take it for a box
        ([[]], {}, FEW_POINTS),
    ],
)
def test_coco_leaves_out_and_counts(segmentation: Any, more: dict[str, Any], reason: str, tmp_path: Path) -> None:
    items = only(tmp_path, segmentation, **more)
    assert [item.reason for item in items if isinstance(item, Note)] == [reason]
    assert [mask.mask_id for mask in samples(items)[0].masks] == ["set/a#0"]
    assert not any(isinstance(item, Problem) for item in items)


@pytest.mark.parametrize(
    ("segmentation", "more", "reason"),
    [
        ({"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, {}, "RLE of size [32, 24]"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, {}, "do not add up to 24 x 32 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [-5, HEIGHT * WIDTH + 5]}, {}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": [10**30]}, {}, "neither a string nor a list of run"),
        ({"size": [HEIGHT, WIDTH], "counts": "50"}, {}, "do not add up"),
        (
            {"size": [HEIGHT, WIDTH], "counts": "ooo"},
            {},
            "not a COCO compressed string",
        ),  # would be read beyond its end
        ({"size": [HEIGHT, WIDTH], "counts": "ü"}, {}, "not a COCO compressed string"),
        ({"size": [HEIGHT, WIDTH], "counts": "oooooooooo0"}, {}, "more than 32 bits"),
        ({"size": [HEIGHT, WIDTH]}, {}, "neither a string"),
        ("mask.png", {}, "neither a list of polygons nor an RLE"),
        ([1, 2, 3, 4, 5, 6], {}, "neither a list of polygons nor an RLE"),
        ([[1, 2, 3, 4, 5, 6, 7]], {}, "flat list of numbers"),
        ([[1, 2, 3, None, 5, 6]], {}, "flat list of numbers"),
        ([[1, 2, 3, float("nan"), 5, 6]], {}, "flat list of numbers"),
        ([[1, 2, 1e9, 4, 5, 6]], {}, "far outside the photo"),
        (BOX, {"category_id": 4}, "category_id 4 is not in 'categories'"),
        (BOX, {"category_id": [3]}, "category_id [3] is not in 'categories'"),
    ],
)
def test_coco_reports_what_is_wrong(segmentation: Any, more: dict[str, Any], reason: str, tmp_path: Path) -> None:
    items = only(tmp_path, segmentation, **more)
    found = problem(items)
    assert (found.file, reason in found.reason) == (f"{tmp_path}/annotations.json", True), found
    assert "annotation 99 of" in found.reason
    assert [mask.mask_id for mask in samples(items)[0].masks] == ["set/a#0"]


def test_coco_images_and_annotations_that_do_not_meet(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        photo(tmp_path / "images" / f"{name}.jpg")
    names = ("a.jpg", "b.jpg", "c.jpg", "a.png", "../a.jpg", "gone.jpg")
    images = [entry(index, name) for index, name in enumerate(names)]
    images[2]["height"] = HEIGHT + 1
    rows = [annotation(index, BOX) for index in (0, 2, 3, 4, 5, 77, 77)]
    write_json(tmp_path, images=images, annotations=rows)
    items = read("coco", source(tmp_path))
    assert [sample.image.image_id for sample in samples(items)] == ["set/a"]
    assert [(item.reason, item.file) for item in items if isinstance(item, Note)] == [(BARE, "b.jpg")]
    reasons = " | ".join(item.reason for item in items if isinstance(item, Problem))
    for want in (
        "leaves the image folder",
        "same id",
        "says height, width (25, 32)",
        "missing",
        "2 annotation(s) are of",
    ):
        assert want in reasons


def test_coco_image_whose_masks_all_go_is_left_out(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    write_json(tmp_path, images=[entry(0, "a.jpg")], annotations=[annotation(0, [])])
    items = read("coco", source(tmp_path))
    assert [item.reason for item in items if isinstance(item, Note)] == [EMPTY, BARE]
    assert not samples(items)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("PK\x03\x04", "not JSON"),
        ('{"images": [', "not JSON"),
        ("[]", "no list 'images'"),
        ('{"shapes": []}', "no list 'images'"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}]}', "no list 'annotations'"),
        ('{"images": [], "annotations": []}', "it names no image"),
        ('{"images": [{"id": 1}], "annotations": []}', "lacks 'id' or 'file_name'"),
        ('{"images": [1], "annotations": []}', "no list 'images' of objects"),
        ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}', "same id"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 5}]}', "annotation 5 has no 'image_id'"),
        ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": [1]}', "'categories' is not"),
    ],
)
def test_a_file_that_is_not_coco(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(DataError, match=r"annotations\.json.*" + reason.replace("(", r"\(")):
        read("coco", source(tmp_path))
    (tmp_path / "annotations.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(DataError, match="not JSON"):
        read("coco", source(tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_our_reader_of_compressed_runs_agrees_with_pycocotools(share: float) -> None:
    for seed in range(20):
        mask = np.random.default_rng(seed).random((7 + seed, 91)) < share
        code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
        runs = parse_counts(code)
        assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs).reshape(91, -1).T, mask)
        assert to_rle({"size": list(mask.shape), "counts": code}, height=7 + seed, width=91)[0] in (code, "")
