"""An image file as the model sees it: longest side resized to S as SamPredictor does, padded below and right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sum.core.geometry import resized_hw
from sum.data.images import read_image


def load_frame(path: str, *, side: int) -> tuple[NDArray[np.uint8], tuple[int, int], tuple[int, int]]:
    """Returns the frame `[S, S, 3]` uint8 RGB, (height, width) of the image in it, and the original (height, width)."""
    return to_square(read_image(path), side=side)


def to_square(image: NDArray[np.uint8], *, side: int) -> tuple[NDArray[np.uint8], tuple[int, int], tuple[int, int]]:
    """The same for pixels `[H, W, 3]` already read. Resized by Pillow's antialiased bilinear filter, as ResizeLongestSide."""
    height, width = image.shape[:2]
    inner = resized_hw(height, width, side)
    small = np.asarray(Image.fromarray(image).resize((inner[1], inner[0]), Image.Resampling.BILINEAR))
    frame = np.zeros((side, side, 3), dtype=np.uint8)
    frame[: inner[0], : inner[1]] = small
    return frame, inner, (height, width)
