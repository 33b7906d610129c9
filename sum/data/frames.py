"""A photo of the manifest, and the photo as the model sees it: longest side resized to S as SamPredictor does, padded
below and right.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sum.core.geometry import resized_hw
from sum.data.images import open_image
from sum.data.records import ImageRecord
from sum.errors import DataError
from sum.limits import PILLOW_LIMIT


def load_photo(record: ImageRecord) -> NDArray[np.uint8]:
    """The photo `[H, W, 3]` uint8 RGB. DataError when it is unreadable or another than at ingest."""
    return np.array(_open_photo(record))


def load_frame(record: ImageRecord, *, side: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Returns the frame `[S, S, 3]` uint8 RGB and (height, width) of the image in it. Errors as `load_photo`."""
    return to_square(_open_photo(record), side=side)


def _open_photo(record: ImageRecord) -> Image.Image:
    limit = max(PILLOW_LIMIT, record.height * record.width)  # what ingest took is not refused here
    image = open_image(record.path, sha256=record.sha256, exif=record.exif, max_pixels=limit)
    if (image.height, image.width) != (record.height, record.width):
        raise DataError(
            f"{record.path} is {image.width} x {image.height} pixels, the manifest says "
            f"{record.width} x {record.height}: the file has changed. Run `dvc repro --force ingest`."
        )
    return image


def to_square(image: Image.Image, *, side: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The same for an RGB image already read. Resized by Pillow's antialiased bilinear filter, as SAM does."""
    inner = resized_hw(image.height, image.width, side)
    small = np.asarray(image.resize((inner[1], inner[0]), Image.Resampling.BILINEAR))
    frame = np.zeros((side, side, 3), dtype=np.uint8)
    frame[: inner[0], : inner[1]] = small
    return frame, inner


def to_planes(frame: NDArray[np.uint8]) -> Tensor:
    """`[S, S, 3]` -> `[3, S, S]`."""
    planes = np.empty((3, *frame.shape[:2]), dtype=np.uint8)
    for channel, plane in enumerate(planes):
        cv2.extractChannel(frame, channel, plane)  # a quarter of the time of permute and contiguous
    return torch.from_numpy(planes)
