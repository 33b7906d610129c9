"""Photos and mask files of miniatures, by numpy and Pillow alone."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

H, W = 24, 32
ORIENTATION = 0x0112  # the EXIF tag
COLOURS = [(37 * step) % 256 for step in range(768)]  # a palette of 256; none is grey but the index is what counts


def photo(path: Path, *, hw: tuple[int, int] = (H, W), tag: int = 1, mode: str = "RGB") -> None:
    """A photo that is stored with this size; tag: its orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 256, (*hw, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = tag
    Image.fromarray(pixels).convert(mode).save(path, **({"exif": exif} if tag != 1 else {}))


def save(path: Path, values: np.ndarray, *, palette: list[int] | None = None) -> None:
    """Pixel values as they are: 8 or 16 bits, grey or colour; palette: as the index of these colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette is not None:
        image = Image.frombytes("P", image.size, values.tobytes())
        image.putpalette(palette)
    image.save(path)


def box(x: int, y: int, w: int, h: int, *, hw: tuple[int, int] = (H, W)) -> np.ndarray:
    mask = np.zeros(hw, bool)
    mask[y : y + h, x : x + w] = True
    return mask


def noise(seed: int, *, hw: tuple[int, int] = (H, W)) -> np.ndarray:
    """A mask of many pieces."""
    return np.random.default_rng(seed).random(hw) < 0.4


def full(mask: np.ndarray) -> np.ndarray:
    """0 and 255."""
    return mask.astype(np.uint8) * 255


def soft(mask: np.ndarray) -> np.ndarray:
    """0 and 255 with edges of one pixel: 200 on the inside, 60 on the outside."""
    grown, shrunk = mask.copy(), mask.copy()
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        grown |= np.roll(mask, step, axis)
        shrunk &= np.roll(mask, step, axis)
    return np.select([shrunk, mask, grown], [255, 200, 60], 0).astype(np.uint8)


def labels(*regions: tuple[int, np.ndarray], kind: type = np.uint8) -> np.ndarray:
    """A map of values; regions do not overlap."""
    values = np.zeros(regions[0][1].shape, kind)
    for value, mask in regions:
        assert not values[mask].any()
        values[mask] = value
    return values


def cut(path: Path) -> None:
    """A download that broke off."""
    path.write_bytes(path.read_bytes()[:-200])
