"""A photo of the manifest, and the photo as the model sees it: longest side resized to S as SamPredictor does, padded
below and right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sum.core.geometry import resized_hw
from sum.data.images import LIMIT, read_image
from sum.data.records import ImageRecord
from sum.errors import DataError


def load_photo(record: ImageRecord) -> NDArray[np.uint8]:
    """The photo `[H, W, 3]` uint8 RGB. DataError when it is unreadable or another than at ingest."""
    size = record.height * record.width  # what ingest took is not refused here
    image = read_image(record.path, sha256=record.sha256, exif=record.exif, max_pixels=max(LIMIT, size))
    height, width = image.shape[:2]
    if (height, width) != (record.height, record.width):
        raise DataError(
            f"{record.path} is {width} x {height} pixels, the manifest says {record.width} x {record.height}: "
            "the file has changed. Run `dvc repro --force ingest`."
        )
    return image


def load_frame(record: ImageRecord, *, side: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Returns the frame `[S, S, 3]` uint8 RGB and (height, width) of the image in it. Errors as `load_photo`."""
    return to_square(load_photo(record), side=side)


def to_square(image: NDArray[np.uint8], *, side: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The same for pixels `[H, W, 3]` already read. Resized by Pillow's antialiased bilinear filter, as ResizeLongestSide."""
    inner = resized_hw(image.shape[0], image.shape[1], side)
    small = np.asarray(Image.fromarray(image).resize((inner[1], inner[0]), Image.Resampling.BILINEAR))
    frame = np.zeros((side, side, 3), dtype=np.uint8)
    frame[: inner[0], : inner[1]] = small
    return frame, inner
