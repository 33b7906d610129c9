"""Every layout keeps the contract, and folders of masks are read as what their authors meant."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sum.data.folders import STRAY, UNMATCHED
from sum.data.frames import load_photo
from sum.data.layouts import LAYOUTS
from sum.data.mask_files import SPREAD
from sum.data.rasters import UNTURNED
from sum.data.records import decode_mask
from sum.data.sources import Note, Problem
from sum.errors import DataError
from sum.storage import NotFound
from tests.data.exports import write_label_studio, write_labelme, write_yolo
from tests.data.written import (
    BOX,
    HEIGHT,
    NOISE,
    WIDTH,
    grey,
    photo,
    pixels,
    problem,
    read,
    samples,
    source,
    write_coco,
    write_images,
    write_raster,
    write_sa1b,
    write_via,
)

# --- every layout --------------------------------------------------------------------------------------------------


WRITERS: dict[str, Callable[[Path], None]] = {
    "raster": write_raster,
    "coco": write_coco,
    "images": write_images,
    "labelme": write_labelme,
    "yolo": write_yolo,
    "label_studio": write_label_studio,
    "via": write_via,
    "sa1b": write_sa1b,
}
KEYS: dict[str, dict[str, str]] = {"labelme": {"annotations": "annotations"}, "yolo": {"annotations": "data.yaml"}}


def third(kind: str) -> str:
    """SA-1B's names are unique wherever they lie: a folder is no part of its ids."""
    return "set/c" if kind == "sa1b" else "set/deep/c"


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_every_layout_keeps_the_contract(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path)
    items = read(kind, source(tmp_path, **KEYS.get(kind, {})))
    found = samples(items)
    assert len(found) == len(items) == 3
    assert sorted(sample.image.image_id for sample in found) == ["set/a", "set/b.v2", third(kind)]
    for image, masks in ((sample.image, sample.masks) for sample in found):
        data = Path(image.path).read_bytes()
        deep = "deep/" if image.image_id == third("sa1b") else ""
        assert image.path == f"{tmp_path}/images/{deep}{image.image_id.removeprefix('set/')}.jpg"
        assert image.sha256 == hashlib.sha256(data).hexdigest()
        assert (image.height, image.width, image.dataset) == (HEIGHT, WIDTH, "set")
        assert (image.task, image.split, image.licence) == ("entity", "train", "CC0-1.0")
        assert len(masks) == (0 if kind == "images" else 1)
        for mask in masks:
            assert (mask.mask_id, mask.image_id) == (f"{image.image_id}#0", image.image_id)
            assert (mask.dataset, mask.task, mask.split) == (image.dataset, image.task, image.split)
            assert (mask.area, mask.x0, mask.y0, mask.x1, mask.y1) == (50, 10, 4, 19, 8)
            assert np.array_equal(pixels(mask), BOX)
            assert Path(mask.source).is_file()


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_every_layout_reports_bad_photos_and_goes_on(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path)
    path = tmp_path / "images" / "a.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    items = read(kind, source(tmp_path, **KEYS.get(kind, {})))
    assert sorted(sample.image.image_id for sample in samples(items)) == ["set/b.v2", third(kind)]
    assert (problem(items).file, "not a readable image" in problem(items).reason) == (str(path), True)
    path.unlink()
    items = read(kind, source(tmp_path, **KEYS.get(kind, {})))
    assert len(samples(items)) == 2
    if kind != "images":
        assert "a" in problem(items).reason + problem(items).file


@pytest.mark.parametrize("kind", ["raster", "images"])
def test_a_list_of_names_chooses(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path)
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfdeep/c\r\n\r\na.jpg\r\ngone\r\na\r\n")
    items = read(kind, source(tmp_path, names="train.txt"))
    assert [sample.image.image_id for sample in samples(items)] == ["set/deep/c", "set/a"]  # in the order of the list
    assert problem(items).file.endswith("gone")
    assert "listed in train.txt" in problem(items).reason
    (tmp_path / "train.txt").write_text("\n")
    with pytest.raises(DataError, match=r"train\.txt: the list is empty"):
        read(kind, source(tmp_path, names="train.txt"))
    with pytest.raises(NotFound, match=r"val\.txt"):
        read(kind, source(tmp_path, names="val.txt"))


@pytest.mark.parametrize("kind", ["raster", "images"])
def test_folders_that_hold_something_else(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path)
    (tmp_path / "images" / "readme.md").touch()
    (tmp_path / "images" / ".DS_Store").touch()
    photo(tmp_path / "images" / "a.PNG")
    items = read(kind, source(tmp_path))
    assert [item.reason for item in items if isinstance(item, Note)] == [STRAY]
    assert "same name as" in problem(items).reason
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image file"):
        read(kind, source(tmp_path, images="empty"))
    with pytest.raises(NotFound, match="nowhere"):
        read(kind, source(tmp_path, images="nowhere"))


# --- raster --------------------------------------------------------------------------------------------------------


def palette(values: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.frombytes("P", (WIDTH, HEIGHT), values.astype(np.uint8).tobytes())
    image.putpalette(colours)
    return image


def mask_image(kind: str) -> Image.Image:
    """NOISE as a mask in one of the ways in which people save masks."""
    full = Image.fromarray(NOISE.astype(np.uint8) * 255)
    return {
        "L": lambda: full,
        "1": lambda: full.convert("1"),
        "LA": lambda: Image.merge("LA", (full, Image.new("L", full.size, 3))),
        "RGB": lambda: full.convert("RGB"),
        "RGBA": lambda: full.convert("RGBA"),
        "I;16": lambda: Image.fromarray(NOISE.astype(np.uint16) * 65535),
        "grey palette": lambda: palette(NOISE, [0, 0, 0, 255, 255, 255]),
        "inverted palette": lambda: palette(~NOISE, [255, 255, 255, 0, 0, 0]),
        "coloured palette": lambda: palette(NOISE, [0, 0, 0, 128, 0, 0]),  # as DAVIS
        "0/1": lambda: Image.fromarray(NOISE.astype(np.uint8)),
        "0/1 of 16 bits": lambda: Image.fromarray(NOISE.astype(np.uint16)),
        "soft": lambda: Image.fromarray(np.where(NOISE, 128, 127).astype(np.uint8)),
    }[kind]()


KINDS = [
    "L",
    "1",
    "LA",
    "RGB",
    "RGBA",
    "I;16",
    "grey palette",
    "inverted palette",
    "coloured palette",
    "0/1",
    "0/1 of 16 bits",
    "soft",
]


@pytest.mark.parametrize("kind", KINDS)
def test_raster_reads_every_kind_of_mask(kind: str, tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    (tmp_path / "masks").mkdir()
    mask_image(kind).save(tmp_path / "masks" / "a.png")
    items = read("raster", source(tmp_path))
    assert np.array_equal(pixels(samples(items)[0].masks[0]), NOISE)
    notes = [item.reason for item in items if isinstance(item, Note)]
    assert notes == ([SPREAD] if kind in ("0/1", "0/1 of 16 bits", "coloured palette") else [])


def test_raster_threshold(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    grey(tmp_path / "masks" / "a.png", np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 5)
    for threshold, share in ((0, 4), (2, 2), (3, 1)):
        (sample,) = samples(read("raster", source(tmp_path, threshold=threshold)))
        assert sample.masks[0].area == pytest.approx(HEIGHT * WIDTH * share / 5, abs=2)
    assert "highest value is 4" in problem(read("raster", source(tmp_path))).reason


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((HEIGHT, WIDTH)), "the mask is empty: no pixel is above the threshold 127, the highest value is 0"),
        (np.full((HEIGHT - 1, WIDTH), 255), r"height, width (23, 32), its upright photo (24, 32)"),
        (np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)), "a photo posing as a mask"),
        (np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 4)), "either may be the mask"),
        (None, "not a readable mask"),
    ],
    ids=["empty", "another size", "photo", "transparency", "truncated"],
)
def test_raster_refuses(mask: np.ndarray | None, reason: str, tmp_path: Path) -> None:
    write_raster(tmp_path)
    path = tmp_path / "masks" / "a.png"
    if mask is None:
        path.write_bytes(path.read_bytes()[:60])
    else:
        grey(path, mask)
    items = read("raster", source(tmp_path))
    assert len(samples(items)) == 2
    assert (problem(items).file, reason in problem(items).reason) == (str(path), True), items
    assert problem(items).remedy


def test_raster_pairs(tmp_path: Path) -> None:
    write_raster(tmp_path)
    (tmp_path / "masks" / "a.png").unlink()
    (tmp_path / "images" / "b.v2.jpg").unlink()
    files = [item.file for item in read("raster", source(tmp_path)) if isinstance(item, Problem)]
    assert files == [f"{tmp_path}/masks/a", f"{tmp_path}/images/b.v2"]


def test_raster_turns_the_photo_and_never_the_mask(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: upright it is HEIGHT wide
    photo(tmp_path / "images" / "a.jpg", exif=exif)
    upright = BOX[:, :HEIGHT].copy().repeat(2, 0)[:WIDTH]
    grey(tmp_path / "masks" / "a.png", upright * 255)
    (sample,) = samples(read("raster", source(tmp_path)))
    assert (sample.image.height, sample.image.width) == (WIDTH, HEIGHT)
    assert np.array_equal(decode_mask(sample.masks[0].rle, height=WIDTH, width=HEIGHT), upright)
    grey(tmp_path / "masks" / "a.png", BOX * 255)  # drawn on the photo as stored
    items = read("raster", source(tmp_path))
    (sample,) = samples(items)
    assert (sample.image.exif, sample.image.height, sample.image.width) == ("ignore", HEIGHT, WIDTH)
    assert [item.reason for item in items if isinstance(item, Note)] == [UNTURNED]
    assert np.array_equal(pixels(sample.masks[0]), BOX)
    assert load_photo(sample.image).shape == (HEIGHT, WIDTH, 3)
    grey(tmp_path / "masks" / "a.png", upright * 255)
    found = problem(read("raster", source(tmp_path, exif="ignore")))
    assert "turn the mask as the photo's EXIF tag says" in found.remedy


def test_photos_and_masks_may_share_a_folder(tmp_path: Path) -> None:
    """HQSeg-44K's DUTS, ECSSD, MSRA10K and FSS-1000: NAME.jpg beside NAME.png, and a surplus .jpeg."""
    write_raster(tmp_path)
    for part in ("images", "masks"):
        for path in (tmp_path / part).rglob("*.*"):
            if path.is_file():
                path.rename(tmp_path / path.name)
    (tmp_path / "surplus.jpeg").write_bytes((tmp_path / "a.jpg").read_bytes())
    of = source(tmp_path, images=".", masks=".", image_suffix=".jpg", mask_suffix=".png")
    items = read("raster", of)
    assert [sample.image.image_id for sample in samples(items)] == ["set/a", "set/b.v2", "set/c"]
    assert [item.reason for item in items if isinstance(item, Note)] == [UNMATCHED]
    assert len(items) == 4
    assert all(np.array_equal(pixels(sample.masks[0]), BOX) for sample in samples(items))
