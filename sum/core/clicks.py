"""Clicks of evaluation: the pixel deepest inside the mask or the error (Liu et al., NeurIPS 2024, appendix B.3).

Deterministic. Points are `(x, y)` pixel indices.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FLOAT32_DEPTH = 2000.0  # up to 2048 the float32 roots of neighbouring integers differ; deeper regions go a slower way


def farthest_point(region: NDArray[np.bool_]) -> tuple[int, int] | None:
    """Pixel `(x, y)` of the region farthest (Euclidean) from the outside; None if the region is empty.

    region: `[H, W]`; what lies beyond the image is outside. Among equals the first in reading order.
    """
    deepest = _deepest(region)
    return deepest and deepest[1:]


def next_click(prediction: NDArray[np.bool_], target: NDArray[np.bool_]) -> tuple[int, int, int] | None:
    """Next click `(x, y, label)` of the evaluation: the middle of the deepest error; None if there is no error.

    prediction, target: `[H, W]`. Missed and added pixels are separate regions, each bounded by everything else.
    Label 1: missed, 0: added; of two equally deep errors the missed one is clicked.
    """
    guess, truth = np.asarray(prediction, dtype=bool), np.asarray(target, dtype=bool)
    missed, added = _deepest(truth & ~guess), _deepest(guess & ~truth)
    if missed and (not added or missed[0] >= added[0]):
        return *missed[1:], 1
    return added and (*added[1:], 0)


def _deepest(region: NDArray[np.bool_]) -> tuple[int, int, int] | None:
    """(squared depth, x, y) of the deepest pixel. Integers, so that ties do not hang on the last bit of a root."""
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(region, dtype=bool).view(np.uint8))
    if not width:
        return None
    part = np.zeros((height + 2, width + 2), dtype=np.uint8)
    part[1:-1, 1:-1] = region[y : y + height, x : x + width]
    depth: NDArray[Any] = cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    if depth.max() > FLOAT32_DEPTH:
        depth = np.asarray(ndimage.distance_transform_edt(part))
    squared = round(float(depth.max()) ** 2)
    row, column = divmod(int(np.argmax(depth > (squared - 0.5) ** 0.5)), width + 2)
    return squared, x + column - 1, y + row - 1
