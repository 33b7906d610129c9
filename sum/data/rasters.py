"""Masks drawn as image files, one grey picture a mask. What cannot be one (a photo, an empty one) is refused."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from sum.data.images import DECODE_ERRORS
from sum.errors import DataError

SPREAD = "the mask's pixels are only 0 and 1: read as background and object"


def decode_raster(data: bytes, *, name: str, threshold: int) -> tuple[np.ndarray, str]:
    """The bytes of a mask file -> (`[H, W]` bool, a remark or ''). EXIF tags of masks are not followed.

    A pixel is in the mask when its grey value is above threshold (0..254); a file with only 0 and 1 is read as such,
    with a remark.
    name: the file, for the DataError: unreadable, colours, or a mask that is empty.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            grey = _grey(image)
    except DECODE_ERRORS as error:
        raise DataError(f"{name}: not a readable mask ({error})") from error
    high = int(grey.max())
    if high == 1 and threshold >= 1:
        return grey == 1, SPREAD
    mask = grey > threshold
    if not mask.any():
        raise DataError(
            f"{name}: the mask is empty: no pixel is above the threshold {threshold}, the highest value is {high}"
        )
    return mask, ""


def _grey(image: Image.Image) -> np.ndarray:
    """`[H, W]` values 0..255 of a mask in any mode that has one value a pixel."""
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8) * 255
    if image.mode == "P":
        return _palette_values(image)
    pixels = np.asarray(image)
    if image.mode.startswith("I"):
        return pixels if pixels.max() <= 255 else pixels >> 8  # 16 bits: the upper 8
    if image.mode in ("L", "LA"):
        return pixels if pixels.ndim == 2 else pixels[..., 0]
    if image.mode == "RGBA" and (pixels[..., 3] != 255).any():
        raise ValueError("it has both colours and transparency, either may be the mask; save it as one grey channel")
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"pixels of mode {image.mode}; wanted one grey channel")
    if (pixels[..., :3] != pixels[..., :1]).any():
        raise ValueError("its red, green and blue differ: a photo posing as a mask")
    return pixels[..., 0]


def _palette_values(image: Image.Image) -> np.ndarray:
    """Grey of the palette where it is a grey one, else the index: a coloured palette only tells objects apart."""
    index = np.asarray(image)
    palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    if index.max() >= len(palette):
        return index
    used = palette[np.unique(index)]
    grey = (used == used[:, :1]).all() and len(np.unique(used[:, 0])) == len(used)
    return palette[index, 0] if grey else index
