"""Mask files: what a value means in each mode, what is refused, and that photo and mask have one frame."""

from __future__ import annotations

import os
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sum.data.collect import BARE, SMALL, Collector
from sum.data.mask_files import DROPPED, GREYS, GROUP, MODES, UNASKED, VOID
from sum.data.rasters import MISFIT, RESIZED, UNTURNED
from sum.data.records import ImageRecord, decode_mask, encode_mask
from sum.data.sources import Item, Note
from tests.clock import cpu_limit
from tests.data.miniatures.raster_tools import ORIENTATION, H, W, box, full, labels, noise, photo, save, soft
from tests.data.written import problem, read, samples, source

A, B, C = box(1, 1, 6, 6), box(10, 1, 6, 6), box(20, 1, 6, 6)
TURNS = {  # tag -> from the stored pixels to the upright ones, as the EXIF standard draws them
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def of(root: Path, pixels: np.ndarray, **options: Any) -> list[Item]:
    photo(root / "images" / "a.jpg")
    path = root / "masks" / "a.tif"
    save(path, pixels)
    return read("raster", source(root, **options))


def masks(items: list[Item]) -> list[np.ndarray]:
    (sample,) = samples(items)
    size = {"height": sample.image.height, "width": sample.image.width}
    return [decode_mask(mask.rle, **size) for mask in sample.masks]


def notes(items: list[Item]) -> Counter[str]:
    return Counter(item.reason for item in items if isinstance(item, Note))


MAP = labels((3, A), (7, B), (255, C))
THREE = np.dstack((MAP, MAP * 0, MAP * 0))
CITY = labels((7, A), (26_000, B), (26_001, C), (25, box(1, 10, 5, 5)), kind=np.int32)


@pytest.mark.parametrize(
    ("values", "options", "want", "told"),
    [
        (MAP, {}, [A, B, C], {}),
        (MAP, {"drop": frozenset({0, 255})}, [A, B], {DROPPED: 1}),
        (MAP, {"values": frozenset({7})}, [B], {UNASKED: 2}),
        (MAP.astype(np.int32) * 70_000, {}, [A, B, C], {}),  # 32 bits, whole
        (np.dstack([MAP] * 3), {}, [A, B, C], {}),
        (THREE, {"channel": 0}, [A, B, C], {}),
        (CITY, {"mode": "instance"}, [A, box(1, 10, 5, 5), B, C], {}),
        (CITY, {"mode": "instance", "values": frozenset(range(24, 34))}, [A, B, C], {GROUP: 1}),
        (CITY, {"mode": "instance", "values": frozenset({25})}, [A], {GROUP: 1, UNASKED: 2}),
        (CITY, {"mode": "instance", "drop": frozenset({0, 26})}, [A, box(1, 10, 5, 5)], {DROPPED: 2}),
    ],
)
def test_maps_of_values(
    values: np.ndarray, options: dict[str, Any], want: list[np.ndarray], told: dict[str, int], tmp_path: Path
) -> None:
    items = of(tmp_path, values, **({"mode": "index"} | options))
    read_back = masks(items)
    assert len(read_back) == len(want)
    assert all(np.array_equal(one, other) for one, other in zip(read_back, want, strict=True))
    assert notes(items) == told


@pytest.mark.parametrize("policy", ["error", "resize_mask"])
def test_a_map_of_many_values_is_never_held_as_many_frames(policy: str, tmp_path: Path) -> None:
    """999 of 2,000 x 2,000 took 4 GB, in each of 8 threads."""
    side, count = 800, 400
    values = np.repeat(np.arange(side) * count // side, side).reshape(side, side).astype(np.uint16)
    size = (side, side) if policy == "error" else (side // 2, side // 2)
    (tmp_path / "images").mkdir()
    Image.new("RGB", size).save(tmp_path / "images" / "a.png")
    save(tmp_path / "masks" / "a.png", values)
    of_set = source(tmp_path, mode="index", on_size_mismatch=policy)
    tracemalloc.start()
    try:
        items = read("raster", of_set)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    step = side // size[0]
    found, frame = masks(items), values[::step, ::step]
    assert len(found) == count - 1
    assert all(np.array_equal(mask, frame == value) for value, mask in enumerate(found, 1))
    assert peak < 40 * values.size  # a quarter of 400 masks


def test_colours(tmp_path: Path) -> None:
    values = np.zeros((H, W, 3), np.uint8)
    values[A], values[B], values[C] = (128, 0, 0), (0, 128, 0), (224, 224, 192)
    items = of(tmp_path, values, mode="color")
    assert [mask.category for mask in samples(items)[0].masks] == ["#008000", "#800000"]
    assert np.array_equal(masks(items), [B, A])
    assert notes(items) == {VOID: 1}
    items = of(tmp_path, values, mode="color", drop=frozenset({0, 0x800000}))
    assert (len(masks(items)), notes(items)) == (1, {VOID: 1, DROPPED: 1})


def test_components_are_masks_of_their_own(tmp_path: Path) -> None:
    parts = [box(1, 1, 6, 6), box(10, 1, 3, 3) | box(13, 4, 2, 2), box(27, 19, 5, 5)]  # the second by a corner
    items = of(tmp_path, full(parts[0] | parts[1] | parts[2]), split_components=True, min_area=13)
    assert np.array_equal(masks(items), [parts[0], parts[1], parts[2]])
    items = of(tmp_path, full(parts[0] | parts[1] | parts[2]), split_components=True, min_area=14)
    assert (len(masks(items)), notes(items)) == (2, {SMALL: 1})


def test_many_components_take_no_frame_each(tmp_path: Path) -> None:
    """10,000 dots on 1,000 x 1,000 pixels took 20 seconds; twice the side 16 times that."""
    dots = np.zeros((1_000, 1_000), bool)
    dots[::10, ::10] = True
    image = ImageRecord("a", "set", "a.jpg", "", 1_000, 1_000, "part", "train", "own")
    collector = Collector(source(tmp_path, split_components=True), image)
    with cpu_limit(5):
        collector.add(encode_mask(dots), category="", file="a.png", where="a")
        (sample,) = samples(collector.items())
    assert len(sample.masks) == 10_000
    last = decode_mask(sample.masks[-1].rle, height=1_000, width=1_000)
    assert np.argwhere(last).tolist() == [[990, 990]]


@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_photo_is_no_mask_in_any_mode(mode: str, tmp_path: Path) -> None:
    found = problem(of(tmp_path, np.random.default_rng(0).integers(0, 256, (120, 150, 3), dtype=np.uint8), mode=mode))
    assert "photo" in found.reason


def test_the_limit_of_pixels_holds_for_masks_before_they_are_decoded(tmp_path: Path) -> None:
    items = of(tmp_path, full(A), max_pixels=H * W)
    assert np.array_equal(masks(items)[0], A)
    save(tmp_path / "masks" / "a.tif", full(box(0, 0, 2, 2, hw=(H + 1, W))))
    assert "more than max_pixels 768" in problem(read("raster", source(tmp_path, max_pixels=H * W))).reason


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (soft(A | B), {}),
        (soft(noise(1)), {}),
        (labels((85, A), (170, B), (255, C)), {GREYS: 1}),  # ids scaled to 255: object 85 is lost, and it is said
        (np.linspace(0, 255, H * W).reshape(H, W).astype(np.uint8), {}),  # a soft ramp
    ],
)
def test_grey_edges_and_index_maps_are_told_apart(values: np.ndarray, told: dict[str, int], tmp_path: Path) -> None:
    items = of(tmp_path, values)
    assert np.array_equal(masks(items)[0], values > 127)
    assert notes(items) == told


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    half = labels((255, box(2, 2, 5, 4, hw=(H // 2, W // 2))))
    assert "the mask has height, width (12, 16)" in problem(of(tmp_path, half)).reason
    assert notes(of(tmp_path, half, on_size_mismatch="skip")) == {MISFIT: 1, BARE: 1}
    items = of(tmp_path, half, on_size_mismatch="resize_mask")
    assert np.array_equal(masks(items)[0], (half > 0).repeat(2, 0).repeat(2, 1))
    assert notes(items) == {RESIZED: 1}
    turned = of(tmp_path, full(A).T.copy(), on_size_mismatch="resize_mask")  # not another size, another frame
    assert "turn the mask" in problem(turned).remedy


@pytest.mark.parametrize("tag", TURNS)
@pytest.mark.parametrize("policy", ["transpose", "ignore"])
def test_photo_and_mask_have_one_frame_in_all_orientations(tag: int, policy: str, tmp_path: Path) -> None:
    from sum.data.frames import load_photo

    stored = np.random.default_rng(tag).integers(0, 256, (H, W, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = tag
    (tmp_path / "images").mkdir()
    Image.fromarray(stored).save(tmp_path / "images" / "a.png", exif=exif)
    turn = TURNS[tag] if policy == "transpose" else TURNS[1]
    bright = turn(stored)[..., 0] > 127
    save(tmp_path / "masks" / "a.png", np.ascontiguousarray(full(bright)))
    items = read("raster", source(tmp_path, exif=policy))
    assert np.array_equal(masks(items)[0], bright)
    assert np.array_equal(load_photo(samples(items)[0].image), turn(stored))  # the very pixels that were bright
    assert notes(items) == {}


@pytest.mark.parametrize("tag", [5, 6, 7, 8])
def test_a_mask_drawn_on_the_photo_as_stored(tag: int, tmp_path: Path) -> None:
    from sum.data.frames import load_photo

    photo(tmp_path / "images" / "a.png", tag=tag)
    save(tmp_path / "masks" / "a.png", full(A))
    items = read("raster", source(tmp_path))
    assert (samples(items)[0].image.exif, notes(items)) == ("ignore", {UNTURNED: 1})
    assert np.array_equal(masks(items)[0], A)
    with Image.open(tmp_path / "images" / "a.png") as image:
        assert np.array_equal(load_photo(samples(items)[0].image), np.asarray(image))


def test_names_that_are_not_text_are_one_finding_each(tmp_path: Path) -> None:
    of(tmp_path, full(A))
    raw = os.fsencode(tmp_path / "images") + b"/caf\xe9.jpg"
    with open(raw, "wb") as file:  # noqa: PTH123  # bytes, as a path cannot hold them in text
        file.write((tmp_path / "images" / "a.jpg").read_bytes())
    items = read("raster", source(tmp_path))
    assert len(samples(items)) == 1
    found = problem(items)
    assert found.file == f"{tmp_path}/images/caf\\xe9.jpg"
    assert found.file.encode()
    assert "not UTF-8" in found.reason


@pytest.mark.parametrize("suffix", ["_im", "_IM.jpg", "_im.JPG"])
def test_suffixes_with_and_without_extension(suffix: str, tmp_path: Path) -> None:
    for name in ("a.jpg.b", "c"):
        photo(tmp_path / f"{name}_im.jpg")
        save(tmp_path / f"{name}_gt.png", full(A))
    items = read("raster", source(tmp_path, images=".", masks=".", image_suffix=suffix, mask_suffix="_gt"))
    assert [sample.image.image_id for sample in samples(items)] == ["set/a.jpg.b", "set/c"]
    assert len(items) == 2
