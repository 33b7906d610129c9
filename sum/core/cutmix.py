"""Cut-mix (Yun et al. 2019): the rectangle of one image that takes the place of the same rectangle of another."""

from __future__ import annotations

import torch
from torch import Tensor

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in px, the last two exclusive


def cut_box(hw: tuple[int, int], *, share: float, centre: tuple[float, float]) -> Box:
    """A rectangle of the shape of an area of hw px, cut off at its border; at least one pixel is inside.

    share: of the area, 0..1, before cutting off; centre: (x, y) as shares of width and height, in [0, 1).
    """
    (height, width), factor = hw, share**0.5
    spans = []
    for length, at in ((width, centre[0]), (height, centre[1])):
        middle, half = int(at * length), int(length * factor) // 2
        spans.append((max(0, middle - half), min(length, max(middle + half, middle + 1))))
    (x0, x1), (y0, y1) = spans
    return x0, y0, x1, y1


def box_part(box: Box, *, side: int, loss_side: int) -> Tensor:
    """Which pixels of a frame at `loss_side` have their centre in a box of the frame at `side`: bool `[L, L]`."""
    place = (torch.arange(loss_side) + 0.5) * side / loss_side
    x0, y0, x1, y1 = box
    rows, columns = (place >= y0) & (place < y1), (place >= x0) & (place < x1)
    return rows[:, None] & columns[None, :]
