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
SPARSE = 0.25  # of its box: fuller regions are often deep, and then their exact transform costs the least
CHAMFER = 0.982, 1.0194  # bounds of OpenCV's 5 x 5 distance by the true one: 2.1969 / 5 ** 0.5, (1 + 0.1969**2) ** 0.5


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
    found = _deepest_of_few(part) if cv2.countNonZero(part) < SPARSE * part.size else None
    squared, row, column = found or _deepest_of_all(part)
    return squared, x + column - 1, y + row - 1


def _deepest_of_all(part: NDArray[np.uint8]) -> tuple[int, int, int]:
    """(squared depth, row, column) by the exact transform of every pixel. part: `[H, W]`, its border is outside."""
    depth: NDArray[Any] = cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    if depth.max() > FLOAT32_DEPTH:
        depth = np.asarray(ndimage.distance_transform_edt(part))
    squared = round(float(depth.max()) ** 2)
    return squared, *divmod(int(np.argmax(depth > (squared - 0.5) ** 0.5)), part.shape[1])


def _deepest_of_few(part: NDArray[np.uint8]) -> tuple[int, int, int] | None:
    """The same, a third of the time: exact only where a rough transform comes near its maximum. None: too many there.

    From each such pixel all places are looked at that may be the nearest one outside, the nearest first. What runs over
    the border into another row does no harm: the border is nearer, so it has been seen before.
    """
    low, high = CHAMFER
    rough = cv2.distanceTransform(part, cv2.DIST_L2, 5)
    top = float(rough.max())
    bound = top * low / high  # the deepest pixel has at least this rough depth
    near = np.flatnonzero(rough >= bound)
    reach = int(top / low)
    if len(near) * reach**2 > part.size:
        return None
    down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    squares = down**2 + right**2
    may = np.flatnonzero((squares >= (bound / high) ** 2) & (squares <= (top / low) ** 2))
    may = may[np.argsort(squares[may])]
    looks = np.take(part, near[:, None] + (down * part.shape[1] + right)[may], mode="clip")
    depths = squares[may[(looks == 0).argmax(axis=1)]]
    deepest = int(depths.argmax())
    return int(depths[deepest]), *divmod(int(near[deepest]), part.shape[1])
