"""Photos of every mode become upright RGB; what is no whole photo is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sum.data.images import frame_sizes, read_image
from sum.errors import DataError
from sum.limits import PILLOW_LIMIT

RED, GREY = (200, 30, 40), 130


def rgb(height: int = 4, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "photo.png", **options: object) -> str:
    path = folder / name
    image.save(path, **options)
    return str(path)


def flat(mode: str, colour: object) -> Image.Image:
    return Image.new(mode, (6, 4), colour)


def with_palette(*, transparent: bool) -> Image.Image:
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, *RED, 9, 9, 9])
    if transparent:
        image.info["transparency"] = b"\xff\x00\xff"  # the used colour is see-through
    return image


@pytest.mark.parametrize(
    ("image", "name", "want"),
    [
        (flat("RGB", RED), "a.png", RED),
        (flat("RGBA", (*RED, 0)), "a.png", RED),  # alpha is dropped, the hidden colour stays
        (flat("L", GREY), "a.png", (GREY,) * 3),
        (flat("LA", (GREY, 7)), "a.png", (GREY,) * 3),
        (flat("1", 1), "a.png", (255,) * 3),
        (with_palette(transparent=False), "a.png", RED),
        (with_palette(transparent=True), "a.png", RED),
        (flat("CMYK", (0, 255, 255, 0)), "a.tif", (255, 0, 0)),
        (flat("I;16", GREY * 256 + 99), "a.png", (GREY,) * 3),  # the upper byte
        (flat("I", GREY * 256), "a.tif", (GREY,) * 3),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_mode_becomes_rgb(tmp_path: Path, image: Image.Image, name: str, want: tuple[int, int, int]) -> None:
    pixels = read_image(saved(tmp_path, image, name))
    assert (pixels.shape, pixels.dtype) == ((4, 6, 3), np.uint8)
    assert (pixels == np.array(want)).all()
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize(
    ("tag", "turn"),
    [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, np.rot90), (2, np.fliplr)],
)
def test_exif_rotation_is_applied(tmp_path: Path, tag: int, turn: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    path = saved(tmp_path, Image.fromarray(rgb()), exif=exif)
    assert np.array_equal(read_image(path), turn(rgb()))  # type: ignore[operator]


def test_jpeg_is_what_pillow_reads(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(rgb(40, 30)), "a.jpg", quality=90)
    with Image.open(path) as image:
        assert np.array_equal(read_image(path), np.asarray(image))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.6, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    path = Path(saved(tmp_path, Image.fromarray(rgb(200, 150)), name))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=rf"{name}: not a readable image"):
        read_image(str(path))


def test_damaged_bytes_are_refused_or_read_but_never_another_error(tmp_path: Path) -> None:
    """Any one byte of a PNG may be wrong; only DataError may come out."""
    path = Path(saved(tmp_path, Image.fromarray(rgb())))
    data, refused = path.read_bytes(), 0
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        try:
            read_image(str(path))
        except DataError:
            refused += 1
    assert refused > len(data) / 2


def test_other_files_and_none(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"a\.jpg: not a readable image"):
        read_image(str(tmp_path / "a.jpg"))
    with pytest.raises(DataError, match=r"b\.jpg: the image is missing"):
        read_image(str(tmp_path / "b.jpg"))
    with pytest.raises(DataError, match="floating-point"):
        read_image(saved(tmp_path, flat("F", 0.5), "f.tif"))
    with pytest.raises(DataError, match="integer pixels 70000"):
        read_image(saved(tmp_path, flat("I", 70_000), "i.tif"))


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(rgb()))
    with pytest.raises(DataError, match=r"6 x 4 = 24 pixels, more than max_pixels 23: raise max_pixels"):
        read_image(path, max_pixels=23)
    assert read_image(path, max_pixels=24).shape == (4, 6, 3)


def test_content_decides_and_not_the_suffix(tmp_path: Path) -> None:
    gif = saved(tmp_path, flat("P", 1), "a.gif")
    assert read_image(Path(gif).rename(tmp_path / "b.jpg").as_posix()).shape == (4, 6, 3)
    (tmp_path / "c.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"c\.jpg: not a readable image \(the file is empty\)"):
        read_image(str(tmp_path / "c.jpg"))
    (tmp_path / "d.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(DataError, match=r"d\.png: not a readable image \(no image by its content\)"):
        read_image(str(tmp_path / "d.png"))  # Pillow would start Ghostscript


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_files_of_several_pictures_are_refused(tmp_path: Path, name: str) -> None:
    first, second = Image.fromarray(rgb()), Image.fromarray(255 - rgb())
    path = saved(tmp_path, first, name, save_all=True, append_images=[second])
    with pytest.raises(DataError, match="it holds 2 pictures"):
        read_image(path)


def test_a_limit_above_pillows_is_one_file_s_own(tmp_path: Path) -> None:
    """Pillow refuses from twice its limit on; ours is asked instead, and Pillow's stays what it was."""
    side = 13_500  # 182 million pixels, of 1 bit each on the disk
    path = saved(tmp_path, Image.new("1", (side, side)), "large.png")
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(DataError, match=r"13500 x 13500 = 182,250,000 pixels, more than max_pixels 89,478,485"):
        read_image(path)
    with Path(path).open("rb") as file:
        data = file.read()
    assert frame_sizes(data, name=path, max_pixels=side * side) == ((side, side), (side, side))
    assert Image.MAX_IMAGE_PIXELS == before == PILLOW_LIMIT
