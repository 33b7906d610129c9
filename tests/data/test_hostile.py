"""Hostile and broken input through stage ingest: each is one finding with file, reason and remedy, and never silent."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sum.config import load_config
from sum.data.mask_files import SPREAD
from sum.data.records import decode_mask, read_manifest
from sum.errors import DataError
from sum.settings import Config, DatasetConfig, IngestConfig
from sum.stages import ingest
from tests.data.written import BOX, HEIGHT, WIDTH, annotation, grey, write_coco, write_images, write_raster

ROOT = Path(__file__).parents[2]
WRITE = {"raster": write_raster, "coco": write_coco, "images": write_images}
PHOTO, MASK, JSON = "images/a.jpg", "masks/a.png", "annotations.json"
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def settings() -> Config:
    return replace(load_config(root=ROOT), budgets={})


def ingest_set(settings: Config, kind: str, *, on_bad: str, **keys: Any) -> dict[str, Any]:
    """Ingest data/x of the current folder; the summary's row about it."""
    split, task = ("unlabelled", "unspecified") if kind == "images" else ("train", "entity")
    entry = DatasetConfig(**{"kind": kind, "root": "x", "split": split, "task": task, "licence": "CC0-1.0"} | keys)
    ingest.run(replace(settings, datasets={"x": entry}, ingest=IngestConfig(on_bad=on_bad)))  # type: ignore[arg-type]
    row: dict[str, Any] = json.loads((ingest.OUT / "summary.json").read_text())["datasets"]["x"]
    return row


# --- what is broken --------------------------------------------------------------------------------------------------


def cut(relative: str) -> Spoil:
    return lambda root: (root / relative).write_bytes((root / relative).read_bytes()[:-200])


def put(relative: str, data: bytes) -> Spoil:
    return lambda root: (root / relative).write_bytes(data)


def drawn(relative: str, values: np.ndarray) -> Spoil:
    return lambda root: grey(root / relative, values)


def animated(relative: str, suffix: str) -> Spoil:
    def spoil(root: Path) -> None:
        frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue")]
        (root / relative).unlink()
        frames[0].save((root / relative).with_suffix(suffix), save_all=True, append_images=frames[1:])

    return spoil


def png(width: int, height: int, rows: bytes) -> bytes:
    """A grey PNG of one bit a pixel that claims this size."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def coco_mask(segmentation: Any, **more: Any) -> Spoil:
    """Another annotation of the first photo."""

    def spoil(root: Path) -> None:
        tree = json.loads((root / JSON).read_text())
        tree["annotations"].append(annotation(1, segmentation, **{"id": 99} | more))
        (root / JSON).write_text(json.dumps(tree))

    return spoil


def tarred(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Spoil:
    """A tar among the photos with a good one and a bad member."""

    def spoil(root: Path) -> None:
        buffer = io.BytesIO()
        Image.new("RGB", (WIDTH, HEIGHT)).save(buffer, "PNG")
        with tarfile.open(root / "images" / "more.tar", "w") as tar:
            for member, type_, target in (("good.png", tarfile.REGTYPE, ""), (name, kind, link)):
                info = tarfile.TarInfo(member)
                info.type, info.linkname = type_, target
                info.size = len(buffer.getvalue()) if type_ == tarfile.REGTYPE else 0
                tar.addfile(info, io.BytesIO(buffer.getvalue()))

    return spoil


def odd_name(root: Path) -> None:
    (root / PHOTO).rename(root / "images" / os.fsdecode(b"caf\xe9.jpg"))


FULL = [[0, 0, WIDTH, 0, float("nan"), HEIGHT]]
FAR = [[-1e9, 0, WIDTH, 0, 5, HEIGHT]]
CODE = {"size": [HEIGHT, WIDTH]}
BAD: dict[str, tuple[str, Spoil, str, str, dict[str, Any]]] = {
    # name: kind, what is done to a sound set, file of the finding, its reason, further keys of the data set
    "truncated JPEG": ("images", cut(PHOTO), PHOTO, "truncated", {}),
    "zero bytes": ("images", put(PHOTO, b""), PHOTO, "empty", {}),
    "text named .jpg": ("images", put(PHOTO, b"hello"), PHOTO, "no image by its content", {}),
    "PDF named .png": ("raster", put(MASK, b"%PDF-1.7\n"), MASK, "no image by its content", {}),
    "truncated mask": (
        "raster",
        lambda root: put(MASK, (root / MASK).read_bytes()[:50])(root),
        MASK,
        "not a readable mask",
        {},
    ),
    "CMYK mask": (
        "raster",
        lambda root: Image.new("CMYK", (WIDTH, HEIGHT)).save(root / MASK, "TIFF"),
        MASK,
        "mode CMYK",
        {},
    ),
    "animated GIF": ("images", animated(PHOTO, ".gif"), "images/a.gif", "it holds 2 pictures", {}),
    "animated PNG": ("images", animated(PHOTO, ".png"), "images/a.png", "it holds 2 pictures", {}),
    "animated WebP": ("images", animated(PHOTO, ".webp"), "images/a.webp", "it holds 2 pictures", {}),
    "bomb, by its header": (
        "images",
        put(PHOTO, png(60_000, 60_000, b"")),
        PHOTO,
        "more than max_pixels 89,478,485",
        {},
    ),
    "bomb, whole": (
        "images",
        put(PHOTO, png(12_000, 12_000, bytes(12_000 * 1501))),
        PHOTO,
        "144,000,000 pixels, more than",
        {},
    ),
    "bomb as a mask": ("raster", put(MASK, png(60_000, 60_000, b"")), MASK, "more than max_pixels", {}),
    "empty mask": ("raster", drawn(MASK, BOX * 0), MASK, "the mask is empty", {}),
    "other values, binary": ("raster", drawn(MASK, BOX * 3), MASK, "the highest value is 3", {}),
    "tar with ..": ("images", tarred("../../evil.png"), "images/more.tar!/../../evil.png", r"\.\.", {}),
    "tar, absolute": ("images", tarred("/evil.png"), "images/more.tar!//evil.png", "absolute", {}),
    "tar, symbolic link": (
        "images",
        tarred("l.png", tarfile.SYMTYPE, "/etc/passwd"),
        "images/more.tar!/l.png",
        "link",
        {},
    ),
    "tar, hard link": ("images", tarred("l.png", tarfile.LNKTYPE, "good.png"), "images/more.tar!/l.png", "link", {}),
    "tar, device": ("images", tarred("d.png", tarfile.CHRTYPE), "images/more.tar!/d.png", "device", {}),
    "name that is no UTF-8": ("images", odd_name, "images/caf", "UTF-8", {}),
    "NaN": ("coco", coco_mask(FULL), JSON, "annotation 99.*(NaN|flat list of numbers|not finite)", {}),
    "far away": ("coco", coco_mask(FAR), JSON, "annotation 99.*far outside", {}),
    "RLE of another size": (
        "coco",
        coco_mask({"size": [9, 9], "counts": [81]}),
        JSON,
        "annotation 99.*RLE of size",
        {},
    ),
    "RLE too long": ("coco", coco_mask(CODE | {"counts": [700, 2**62]}), JSON, "annotation 99.*RLE", {}),
    "RLE too short": ("coco", coco_mask(CODE | {"counts": [1, 2]}), JSON, "annotation 99.*do not add up", {}),
    "RLE, negative run": ("coco", coco_mask(CODE | {"counts": [-1, 769]}), JSON, "annotation 99.*RLE", {}),
    "RLE string, overflow": ("coco", coco_mask(CODE | {"counts": "oooooooo0"}), JSON, "annotation 99.*RLE", {}),
    "RLE string, garbage": ("coco", coco_mask(CODE | {"counts": "\x7f!"}), JSON, "annotation 99.*RLE", {}),
}


@pytest.mark.parametrize("name", BAD)
def test_one_finding(name: str, settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, spoil, file, reason, keys = BAD[name]
    monkeypatch.chdir(tmp_path)
    WRITE[kind](Path("x"))
    sound = ingest_set(settings, kind, on_bad="fail", **keys)
    spoil(Path("x"))
    with pytest.raises(DataError, match=r"^1 file\(s\) or annotation\(s\) cannot be used(.|\n)*x: x/") as caught:
        ingest_set(settings, kind, on_bad="fail", **keys)
    assert "ingest.on_bad: skip" in str(caught.value)
    row = ingest_set(settings, kind, on_bad="skip", **keys)
    (skipped,) = json.loads((ingest.OUT / "skipped.json").read_text())
    assert skipped["file"].startswith(f"x/{file}"), skipped
    assert re.search(reason, skipped["reason"]), skipped
    assert skipped["remedy"], skipped
    assert row["skipped"] == 1
    spoilt = "tar" not in name and kind != "coco"  # then the other photos and masks are all there
    assert row["images"] == sound["images"] - spoilt + ("tar" in name)


# --- what is odd, and is read ---------------------------------------------------------------------------------------


def saved(relative: str, image: Image.Image, **options: Any) -> Spoil:
    def spoil(root: Path) -> None:
        (root / "images/a.jpg").unlink()
        image.save(root / relative, **options)

    return spoil


NOISE = np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
ODD_PHOTOS: dict[str, Spoil] = {
    "CMYK": saved("images/a.jpg", Image.frombytes("CMYK", (WIDTH, HEIGHT), NOISE.tobytes())),
    "16 bits": saved("images/a.png", Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)),
    "LA": saved("images/a.png", Image.frombytes("LA", (WIDTH, HEIGHT), NOISE[..., :2].tobytes())),
    "RGBA": saved("images/a.png", Image.frombytes("RGBA", (WIDTH, HEIGHT), NOISE.tobytes())),
    "PNG named .jpg": saved(
        "images/a.jpg", Image.frombytes("RGB", (WIDTH, HEIGHT), NOISE[..., :3].tobytes()), format="PNG"
    ),
}


@pytest.mark.parametrize("name", ODD_PHOTOS)
def test_odd_photos_are_read(name: str, settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pixels: tests/data/test_images.py."""
    monkeypatch.chdir(tmp_path)
    write_images(Path("x"))
    ODD_PHOTOS[name](Path("x"))
    row = ingest_set(settings, "images", on_bad="fail")
    assert (row["images"], row["skipped"]) == (3, 0)


def test_masks_of_0_and_1_are_seen(settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_raster(Path("x"))
    grey(Path("x") / MASK, BOX)
    row = ingest_set(settings, "raster", on_bad="fail")
    assert (row["masks"], row["skipped"], row["notes"]) == (3, 0, {SPREAD: 1})
    mask = next(mask for mask in read_manifest(ingest.OUT, reader="test").masks if mask.image_id == "x/a")
    assert np.array_equal(decode_mask(mask.rle, height=HEIGHT, width=WIDTH), BOX)


def test_negative_coordinates_are_cut_at_the_edge(
    settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_coco(Path("x"))
    coco_mask([[-5.0, -5.0, 10.0, -5.0, 10.0, 8.0, -5.0, 8.0]])(Path("x"))
    row = ingest_set(settings, "coco", on_bad="fail")
    assert (row["masks"], row["skipped"]) == (4, 0)
    mask = next(mask for mask in read_manifest(ingest.OUT, reader="test").masks if mask.mask_id == "x/a#1")
    assert (mask.area, mask.x0, mask.y0, mask.x1, mask.y1) == (80, 0, 0, 9, 7)


def test_the_limit_on_pixels_is_a_key(settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("x"))
    with pytest.raises(DataError, match=r"3 file\(s\)(.|\n)*32 x 24 = 768 pixels, more than max_pixels 767"):
        ingest_set(settings, "images", on_bad="fail", max_pixels=HEIGHT * WIDTH - 1)
    assert ingest_set(settings, "images", on_bad="fail", max_pixels=HEIGHT * WIDTH)["images"] == 3


@pytest.mark.slow
def test_more_than_pillows_limit_when_it_is_raised(
    settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("x"))
    put(PHOTO, png(14_000, 14_000, bytes(14_000 * 1751)))(Path("x"))  # 196 MP: over twice Pillow's limit, its hard one
    assert ingest_set(settings, "images", on_bad="fail", max_pixels=196_000_000)["images"] == 3


# --- annotation files that cannot be used at all: at once, whatever ingest.on_bad says -------------------------------


def huge(root: Path) -> None:
    with (root / JSON).open("r+b") as file:
        file.truncate(1_100_000_000)  # sparse: no disk is used, and nothing is read


FILES: dict[str, tuple[Spoil, str]] = {
    "1.1 GB": (huge, r"annotations\.json: 1,100 MB, more than max_json_mb 1024"),
    "nesting bomb": (put(JSON, b"[" * 1_000_000), "nested"),
    "nesting bomb of objects": (put(JSON, b'{"a":' * 1_000_000), "nested"),
    "zero bytes": (put(JSON, b""), "not JSON"),
    "not UTF-8": (put(JSON, b'{"images": "\xe9"}'), "not JSON|UTF-8"),
    "cut off": (cut(JSON), "not JSON"),
}


@pytest.mark.parametrize("on_bad", ["fail", "skip"])
@pytest.mark.parametrize("name", FILES)
def test_an_annotation_file_that_cannot_be_used(
    name: str, on_bad: str, settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, reason = FILES[name]
    monkeypatch.chdir(tmp_path)
    write_coco(Path("x"))
    spoil(Path("x"))
    with pytest.raises(DataError, match=reason) as caught:
        ingest_set(settings, "coco", on_bad=on_bad)
    assert "x/annotations.json" in str(caught.value)
    assert not ingest.OUT.exists()
