"""Clicks of evaluation: the pixel deepest inside the mask or the error (Liu et al., NeurIPS 2024, appendix B.3).

Deterministic. Points are `(x, y)` pixel indices.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

SPARSE = 0.25  # of its box: fuller regions are often deep, and then the precise transform costs the least
# Bounds of OpenCV's distances by the true ones. 5 x 5 chamfer: 2.1969 / 5 ** 0.5 and (1 + 0.1969**2) ** 0.5.
CHAMFER = 0.982, 1.0194
PRECISE = 1 - 1e-5, 1 + 1e-5  # float32; OpenCV 5 with one thread is up to 1.1e-6 off, by the place in memory


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
    found = None
    if cv2.countNonZero(part) < SPARSE * part.size:  # a third of the time, if it comes to an end
        found = _exact(part, cv2.distanceTransform(part, cv2.DIST_L2, 5), CHAMFER, most=part.size)
    if found is None:
        found = _exact(part, cv2.distanceTransform(part, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), PRECISE)
    assert found
    squared, row, column = found
    return squared, x + column - 1, y + row - 1


def _exact(
    part: NDArray[np.uint8], rough: NDArray[Any], bounds: tuple[float, float], *, most: float = np.inf
) -> tuple[int, int, int] | None:
    """(squared depth, row, column) of the deepest pixel in integers; None if that takes far more than `most` looks.

    part: `[H, W]`, its border is outside; rough: distances, which are the true ones times something within `bounds`.
    From each pixel that may be the deepest all places that may be its nearest outside are looked at, the nearest first.
    What runs over the border into another row does no harm: the border is nearer, so it has been seen before.
    """
    low, high = bounds
    top = float(rough.max())
    bound = top * low / high  # the deepest pixel has at least this rough distance
    near = np.flatnonzero(rough >= bound)
    reach = int(top / low)
    if len(near) * reach**2 > most:
        return None
    steps = np.arange(reach + 1) ** 2
    squares = steps[:, None] + steps
    down, right = np.nonzero((squares >= (bound / high) ** 2) & (squares <= (top / low) ** 2))
    order = np.argsort(squares[down, right])
    down, right = down[order], right[order]
    mirrored = [sign * down * part.shape[1] + side * right for sign in (-1, 1) for side in (-1, 1)]
    looks = np.take(part, near[:, None] + np.stack(mirrored, axis=1).ravel(), mode="clip")
    first = (looks == 0).argmax(axis=1) // len(mirrored)
    depths = squares[down, right][first]
    deepest = int(depths.argmax())
    return int(depths[deepest]), *divmod(int(near[deepest]), part.shape[1])
