"""One reader of photos: upright, RGB, 8 bit, and whole; told apart by content, not by the suffix of the name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from sum.errors import DataError
from sum.limits import PILLOW_LIMIT
from sum.storage import NotFound, read_bytes

FORMATS = frozenset(
    {"JPEG", "MPO", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM"}
)  # nothing that runs a program, as EPS
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
_ORIENTATION = 0x0112  # the EXIF tag


def read_image(path: str, *, exif: str = "transpose", max_pixels: int = PILLOW_LIMIT, sha256: str = "") -> np.ndarray:
    """The photo at a local path, s3:// address or member's address as `[H, W, 3]` uint8 RGB.

    exif: `transpose` turns it as its orientation tag says, `ignore` leaves it as stored. max_pixels: a larger one is
    refused before it is decoded. sha256: what its bytes must be, if that is known. Alpha is dropped, 16 bits become the
    upper 8. Raises DataError naming the file when it is missing, another than the hash says, truncated, too large, of
    several pictures or no photo; StorageError when the disk or bucket does not answer.
    """
    return np.array(open_image(path, exif=exif, max_pixels=max_pixels, sha256=sha256))


def open_image(path: str, *, exif: str = "transpose", max_pixels: int = PILLOW_LIMIT, sha256: str = "") -> Image.Image:
    """The same as a Pillow image, for what goes on in Pillow: no pixel is copied on the way."""
    try:
        data = read_bytes(path, sha256=sha256)
    except NotFound as error:
        raise DataError(f"{path}: the image is missing") from error
    return decode_photo(data, name=path, exif=exif, max_pixels=max_pixels)


def decode_image(data: bytes, *, name: str, exif: str = "transpose", max_pixels: int = PILLOW_LIMIT) -> np.ndarray:
    """The bytes of an image file as `[H, W, 3]` uint8 RGB; name: the file, for the DataError; else as `read_image`."""
    return np.array(decode_photo(data, name=name, exif=exif, max_pixels=max_pixels))


def decode_photo(data: bytes, *, name: str, exif: str = "transpose", max_pixels: int = PILLOW_LIMIT) -> Image.Image:
    """The same as a Pillow image."""
    with open_picture(data, name=name, what="image", max_pixels=max_pixels) as opened:
        opened.load()  # the whole file, so that a truncated one is found here
        if exif == "transpose":
            ImageOps.exif_transpose(opened, in_place=True)
        return _rgb(opened)


def frame_sizes(data: bytes, *, name: str, max_pixels: int = PILLOW_LIMIT) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of a photo upright and as stored, from its header alone. Raises DataError as `decode_image`."""
    with open_picture(data, name=name, what="image", max_pixels=max_pixels) as opened:
        width, height = opened.size
        turned = opened.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
        return (width, height) if turned else (height, width), (height, width)


@contextmanager
def open_picture(data: bytes, *, name: str, what: str, max_pixels: int) -> Iterator[Image.Image]:
    """The one picture of an image file, not yet decoded; what Pillow raises inside becomes a DataError.

    what: `image` or `mask`, for the message. Pillow's limit on pixels is one for the whole process: it is neither
    lifted nor asked here, but the header is compared with max_pixels, so that threads may have limits of their own. A
    file of several pictures (animated, pages) is refused: which of them a mask belongs to is not known.
    """
    try:
        with _identified(data) as image:
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise ValueError(
                    f"{image.width} x {image.height} = {pixels:,} pixels, more than max_pixels {max_pixels:,}: "
                    "raise max_pixels of its data set if it is really this large"
                )
            count = getattr(image, "n_frames", 1)
            if count > 1 and image.format != "MPO":  # an MPO is a camera's JPEG with a preview behind it
                raise ValueError(
                    f"it holds {count} pictures (animated, or pages); save the one that is meant by itself"
                )
            yield image
    except DECODE_ERRORS as error:
        raise DataError(f"{name}: not a readable {what} ({error})") from error


def _identified(data: bytes) -> Image.Image:
    """As `Image.open`, without the check of the size, and of FORMATS only."""
    if not data:
        raise ValueError("the file is empty")
    Image.preinit()
    for load in (None, Image.init):
        if load:
            load()
        for kind in (name for name in Image.ID if name in FORMATS):
            factory, accept = Image.OPEN[kind]
            answer = accept(data[:16]) if accept else True
            if not answer or isinstance(answer, str):  # a text is the plugin's reason why not
                continue
            try:
                return factory(io.BytesIO(data), "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # another format, as Image.open takes it
    raise ValueError("no image by its content")


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
