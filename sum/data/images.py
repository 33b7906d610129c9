"""One reader of photos: upright, RGB, 8 bit, and whole."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from sum.errors import DataError
from sum.storage import NotFound, read_bytes

DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on bytes that are not a whole image."""


def read_image(path: str, *, sha256: str = "") -> np.ndarray:
    """The photo at a local path, s3:// address or member's address as `[H, W, 3]` uint8 RGB, EXIF rotation applied.

    sha256: what its bytes must be, if that is known. Alpha is dropped, 16 bits become the upper 8. Raises DataError
    naming the file when it is missing, another than the hash says, truncated or no photo; StorageError when the disk or bucket does not answer.
    """
    return np.array(open_image(path, sha256=sha256))


def open_image(path: str, *, sha256: str = "") -> Image.Image:
    """The same as a Pillow image, for what goes on in Pillow: no pixel is copied on the way."""
    try:
        data = read_bytes(path, sha256=sha256)
    except NotFound as error:
        raise DataError(f"{path}: the image is missing") from error
    return decode_photo(data, name=path)


def decode_image(data: bytes, *, name: str) -> np.ndarray:
    """The bytes of an image file as `[H, W, 3]` uint8 RGB; name: the file, for the DataError."""
    return np.array(decode_photo(data, name=name))


def decode_photo(data: bytes, *, name: str) -> Image.Image:
    """The same as a Pillow image."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()  # the whole file, so that a truncated one is found here
            ImageOps.exif_transpose(opened, in_place=True)
            return _rgb(opened)
    except DECODE_ERRORS as error:
        raise DataError(f"{name}: not a readable image ({error})") from error


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any Pillow mode. ValueError for one that has no plain meaning as a photo."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"integer pixels {values.min()}..{values.max()}, wanted 0..65535")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white")
    if image.mode == "P":
        image = image.convert("RGBA")  # a transparent palette entry keeps its colour
    return image.convert("RGB")
