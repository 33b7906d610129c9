"""VIA files: every shape that has an area becomes the pixels it covers; the category is the attribute meant."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle

from sum.data.collect import OTHER
from sum.data.rle import EMPTY, FEW_POINTS, OUTSIDE
from sum.data.sources import Item, Note, Problem
from sum.data.via import flat
from sum.errors import DataError
from tests.data.written import BOX, HEIGHT, WIDTH, photo, pixels, problem, read, samples, source

POLYGON = {"name": "polygon", "all_points_x": [2, 20.5, 9], "all_points_y": [2, 3, 21]}


def region(shape: Any, **attributes: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes or {"kind": "thing"}}


def write(root: Path, regions: Any, name: str = "a.jpg") -> None:
    photo(root / "images" / "a.jpg")
    tree = {f"{name}55": {"filename": name, "size": 55, "regions": regions, "file_attributes": {}}}
    (root / "annotations.json").write_text(json.dumps(tree))


def only(root: Path, *shapes: Any, **options: Any) -> list[Item]:
    write(root, [region(shape) for shape in shapes])
    return read("via", source(root, **options))


def notes(items: list[Item]) -> list[str]:
    return [item.reason for item in items if isinstance(item, Note)]


def round_pixels(cx: float, cy: float, rx: float, ry: float, theta: float = 0) -> np.ndarray:
    """Pixel by pixel: is its centre, turned back by theta, within the ellipse that lies along the axes?"""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            angle = math.atan2(y + 0.5 - cy, x + 0.5 - cx) - theta
            away = math.hypot(y + 0.5 - cy, x + 0.5 - cx)
            mask[y, x] = (away * math.cos(angle) / rx) ** 2 + (away * math.sin(angle) / ry) ** 2 <= 1
    return mask


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        (POLYGON, rle.decode(rle.frPyObjects([[2.0, 2, 20.5, 3, 9, 21]], HEIGHT, WIDTH))[..., 0].astype(bool)),
        ({"name": "rect", "x": 10, "y": 4, "width": 10, "height": 5}, BOX),
        ({"name": "circle", "cx": 12.3, "cy": 9.1, "r": 5.3}, round_pixels(12.3, 9.1, 5.3, 5.3)),
        ({"name": "circle", "cx": 1, "cy": 1, "r": 40}, np.ones((HEIGHT, WIDTH), bool)),
        ({"name": "ellipse", "cx": 15.2, "cy": 12.1, "rx": 11.3, "ry": 4.7}, round_pixels(15.2, 12.1, 11.3, 4.7)),
        (
            {"name": "ellipse", "cx": 15.2, "cy": 12.1, "rx": 10.3, "ry": 3.7, "theta": 0.7},
            round_pixels(15.2, 12.1, 10.3, 3.7, 0.7),
        ),
    ],
    ids=["polygon", "rect", "circle", "large circle", "ellipse", "turned ellipse"],
)
def test_shapes_with_an_area(shape: dict[str, Any], want: np.ndarray, tmp_path: Path) -> None:
    items = only(tmp_path, shape)
    assert np.array_equal(pixels(samples(items)[0].masks[0]), want)
    assert samples(items)[0].masks[0].category == "thing"
    assert len(items) == 1


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"name": "polyline", "all_points_x": [1, 2, 9], "all_points_y": [1, 5, 9]}, flat("polyline")),
        ({"name": "point", "cx": 4, "cy": 5}, flat("point")),
        ({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 5]}, FEW_POINTS),
        ({"name": "polygon", "all_points_x": [], "all_points_y": []}, FEW_POINTS),
        ({"name": "rect", "x": 3, "y": 3, "width": 0, "height": 5}, EMPTY),
        ({"name": "circle", "cx": 3, "cy": 3, "r": 0}, EMPTY),
        ({"name": "circle", "cx": -30, "cy": 3, "r": 2}, EMPTY),
    ],
)
def test_shapes_without_one_are_counted(shape: dict[str, Any], reason: str, tmp_path: Path) -> None:
    items = only(tmp_path, POLYGON, shape)
    assert notes(items) == [reason]
    assert len(samples(items)[0].masks) == 1


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"name": "blob"}, "none of VIA's (polygon, rect, circle, ellipse, polyline"),
        ({}, "none of VIA's"),
        (None, "none of VIA's"),
        ({"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 5]}, "not two lists of the same length"),
        ({"name": "polygon", "all_points_x": [1, 2, math.nan], "all_points_y": [1, 5, 9]}, "not a finite number"),
        ({"name": "polygon", "all_points_x": [1, 2, 1e7], "all_points_y": [1, 5, 9]}, "far outside"),
        ({"name": "rect", "x": "1", "y": 2, "width": 3, "height": 4}, "not numbers near the photo"),
        ({"name": "circle", "cx": math.inf, "cy": 2, "r": 3}, "not numbers near the photo"),
        ({"name": "ellipse", "cx": 1, "cy": 2, "rx": 3}, "not numbers near the photo"),
    ],
)
def test_broken_regions_are_told_and_the_others_read(shape: Any, reason: str, tmp_path: Path) -> None:
    items = only(tmp_path, POLYGON, shape)
    found = problem(items)
    assert (found.file, reason in found.reason) == (f"{tmp_path}/annotations.json", True), found
    assert "region 1 of" in found.reason
    assert len(samples(items)[0].masks) == 1


def test_a_region_that_leaves_the_photo_is_cut(tmp_path: Path) -> None:
    items = only(tmp_path, {"name": "rect", "x": -5, "y": -5, "width": 9, "height": 9})
    assert samples(items)[0].masks[0].area == 16
    assert notes(items) == [OUTSIDE]


def test_projects_of_via_2_and_regions_of_via_1(tmp_path: Path) -> None:
    write(tmp_path, {"0": region(POLYGON), "1": region(POLYGON)})
    plain = json.loads((tmp_path / "annotations.json").read_text())
    assert len(samples(read("via", source(tmp_path)))[0].masks) == 2
    project = {"_via_settings": {}, "_via_attributes": {}, "_via_img_metadata": plain}
    (tmp_path / "annotations.json").write_text(json.dumps(project))
    assert len(samples(read("via", source(tmp_path)))[0].masks) == 2


@pytest.mark.parametrize(
    ("tree", "reason"),
    [
        ([], "not a VIA file"),
        ({"images": [], "annotations": []}, "not a VIA file"),
        ({"a": {"filename": "a.jpg"}}, "entry 'a' lacks 'filename' or 'regions'"),
        ({"a": {"regions": []}}, "entry 'a' lacks"),
        ({"a": {"filename": "a.jpg", "regions": [3]}}, "entry 'a' lacks"),
        ({}, "it names no image"),
        ({"project": {}, "metadata": {}, "view": {}}, r"a project of VIA 3\. Export it as COCO"),
    ],
)
def test_files_that_are_not_via(tree: Any, reason: str, tmp_path: Path) -> None:
    write(tmp_path, [])
    (tmp_path / "annotations.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"annotations\.json: .*" + reason):
        read("via", source(tmp_path))


def species(root: Path) -> None:
    write(
        root,
        [
            region(POLYGON, species="BND", id="1", blurred={"yes": True, "no": False}),
            region(POLYGON, species="WBD", id="2"),
            region(POLYGON, species="BND", id="BND"),
        ],
    )


@pytest.mark.parametrize(
    ("wanted", "categories"),
    [
        ((), ["BND", "WBD", "BND"]),
        (("WBD",), ["WBD"]),
        (("species=BND",), ["BND", "BND"]),
        (("species=BND", "WBD"), ["BND", "WBD", "BND"]),
        (("id=2",), ["2"]),
        (("yes",), ["yes"]),
    ],
)
def test_the_category_is_an_attribute(wanted: tuple[str, ...], categories: list[str], tmp_path: Path) -> None:
    species(tmp_path)
    items = read("via", source(tmp_path, categories=wanted))
    assert [mask.category for mask in samples(items)[0].masks] == categories
    assert notes(items) == [OTHER] * (3 - len(categories))


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (("BND",), "'BND' is a value of several attributes: write species=BND or id=BND"),
        (("XYZ",), "have no 'XYZ'. They have: blurred=yes, id=1, id=2, id=BND, species=BND, species=WBD"),
        (("species=BNT",), "have no 'species=BNT'. Did you mean 'species=BND'?"),
        (("size=BND",), "have no 'size=BND'"),
        (("species=BND", "id=2"), "values of several attributes (id, species)"),
    ],
)
def test_a_filter_that_fits_no_attribute_or_several(wanted: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    """BND is a species and an id."""
    species(tmp_path)
    with pytest.raises(DataError, match=r"^datasets\.set\.categories: .*" + re.escape(reason)):
        read("via", source(tmp_path, categories=wanted))


def test_photos_and_entries_that_do_not_meet(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "deep" / "b.jpg")
    write(tmp_path, [region(POLYGON)])
    names = {"1": "a.jpg", "2": "a.png", "3": "../c.jpg", "4": "gone.jpg", "5": "C:\\photos\\b.jpg"}
    tree = {key: {"filename": name, "regions": [region(POLYGON)]} for key, name in names.items()}
    (tmp_path / "annotations.json").write_text(json.dumps(tree))
    items = read("via", source(tmp_path))
    assert [sample.image.path for sample in samples(items)] == [
        f"{tmp_path}/images/{n}" for n in ("a.jpg", "deep/b.jpg")
    ]
    reasons = [item.reason for item in items if isinstance(item, Problem)]
    assert [next(w for w in ("same id", "leaves", "missing") if w in reason) for reason in reasons] == [
        "same id",
        "leaves",
        "missing",
    ]
