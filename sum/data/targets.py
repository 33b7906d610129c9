"""Masks of the manifest as training wants them: from run lengths at the photo's size straight to the model frame.

The result is that of drawing each mask at full size and shrinking it, to the last bit, without the full size: what
decides is how much of a new pixel's area a mask covers, and runs say that for a whole column at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import gcd

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sum.core.geometry import resized_hw
from sum.data.batches import masks_to_frame
from sum.data.records import decode_columns, decode_mask
from sum.data.rle import parse_counts

DOUBT = 1e-5  # share of a new pixel: nearer to the half, rounding in cv2.INTER_AREA decides
LEVELS = 20_000  # shares of a new pixel a mask can cover: with fewer, and an even number, exact halves are everywhere
WORTH = 4  # times as many pixels as the new picture: with fewer, drawing the mask is quicker
MOST = 999  # px: for larger frames cv2 leaves out parts of a pixel thinner than 0.001, this file does not


def rles_to_frame(rles: Sequence[str], *, hw: tuple[int, int], loss_side: int) -> Tensor:
    """`masks_to_frame` of COCO compressed counts at the size hw (height, width): bool `[K, L, L]`, model frame.

    Raises DataError when counts are not of that size.
    """
    inner = resized_hw(*hw, loss_side)
    frames = np.zeros((len(rles), loss_side, loss_side), dtype=bool)
    for rle, frame in zip(rles, frames, strict=True):
        small = _shrunk(rle, hw=hw, hw_out=inner)
        if small is None or not small.any():
            small = _drawn(rle, hw=hw, hw_out=inner)
        frame[: inner[0], : inner[1]] = small
        if not small.any():  # too small a mask keeps one pixel
            full = decode_mask(rle, height=hw[0], width=hw[1])
            frame[:] = masks_to_frame(full[None], loss_side=loss_side)[0].numpy()
    return torch.from_numpy(frames)


def _drawn(rle: str, *, hw: tuple[int, int], hw_out: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask at another size by way of all its pixels, as `resize_mask`."""
    plane = cv2.transpose(decode_columns(rle, height=hw[0], width=hw[1]))
    if hw == hw_out:
        return plane.view(np.bool_)
    shrink = hw_out[0] <= hw[0] and hw_out[1] <= hw[1]
    how = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    np.multiply(plane, 255, out=plane)
    mask: NDArray[np.bool_] = cv2.resize(plane, hw_out[::-1], interpolation=how) > 127
    return mask


def _shrunk(rle: str, *, hw: tuple[int, int], hw_out: tuple[int, int]) -> NDArray[np.bool_] | None:
    """A mask at a smaller size, True where at least half of a pixel's area is covered; None: look at all pixels."""
    (height, width), (rows, columns) = hw, hw_out
    whole, even = height * width, height % rows == 0 == width % columns
    levels = whole // (gcd(height, rows) * gcd(width, columns))
    if rows > height or columns > width or max(hw_out) > MOST or whole < WORTH * rows * columns:
        return None
    if not even and levels % 2 == 0 and levels < LEVELS:
        return None
    runs = parse_counts(rle)
    if (runs < 0).any() or int(runs.sum()) != whole:
        return None
    over = covered(runs, hw=hw, hw_out=hw_out) - whole / 2
    if even:
        return over >= 0 if _half_is_set(height // rows, width // columns) else over > 0
    mask: NDArray[np.bool_] = over > 0
    return mask if np.abs(over, out=over).min() > DOUBT * whole else None


@lru_cache(maxsize=256)
def _half_is_set(height: int, width: int) -> bool:
    """What cv2 makes of a block of this size of which just half is set: rounding decides, the same way everywhere."""
    block = np.zeros(height * width, dtype=np.uint8)
    block[: len(block) // 2] = 255
    return bool(cv2.resize(block.reshape(height, width), (1, 1), interpolation=cv2.INTER_AREA)[0, 0] > 127)


def covered(runs: NDArray[np.int64], *, hw: tuple[int, int], hw_out: tuple[int, int]) -> NDArray[np.float64]:
    """How much of each pixel of a smaller picture `[h, w]` a mask of H x W covers; whole numbers, H * W is all.

    runs: run lengths down the columns, unset first; they add up to H * W. hw_out: (h, w), no larger than hw.

    Every change of a run at (x, y) sets or unsets all pixels from there to the bottom of its column. So it adds a part
    of the new pixel it falls into and all of those below, and the next columns begin as this one ended.
    """
    (height, width), (rows, columns) = hw, hw_out
    at = np.cumsum(runs)[:-1]
    at = at[at < height * width]  # empty runs at the very end
    sign = np.where(np.arange(len(at)) % 2, -1.0, 1.0)
    x, y = np.divmod(at, height)
    row = y * rows // height
    part = sign * ((row + 1) * height - y * rows)
    column = np.arange(width) * columns // width  # a column of the mask lies in one new column, or in two
    left = np.minimum((column + 1) * width - np.arange(width) * columns, columns)
    begins = np.cumsum(np.bincount(x + 1, weights=sign, minlength=width + 1))[:width]  # 1: set at the top
    tops = np.flatnonzero(begins)
    line = columns + 1  # the steps are [h + 2, w + 1]: what falls beyond the last row or column is cut off below
    cells, amounts = list[NDArray[np.int64]](), list[NDArray[np.float64]]()
    for shift, share in ((0, left), (1, columns - left)):
        cell = row * line + column[x] + shift
        cells += [cell, cell + line, column[tops] + shift]
        amounts += [part * share[x], (sign * height - part) * share[x], begins[tops] * (height * share[tops])]
    steps = np.bincount(np.concatenate(cells), weights=np.concatenate(amounts), minlength=(rows + 2) * line)
    found: NDArray[np.float64] = np.cumsum(steps.reshape(rows + 2, line), axis=0, dtype=np.float64)
    return found[:rows, :columns]
