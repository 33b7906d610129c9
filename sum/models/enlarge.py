"""Low-resolution logits -> masks at the original size, computing only where a mask can be. Exact, for the CPU.

segment_anything enlarges every candidate to the full frame first. Here a mask is enlarged inside the box of its
low-resolution logits above the lower cut, grown by 2 pixels: bilinear weights are convex, so nothing outside that box
can exceed the cut. Where this arithmetic and F.interpolate's could round to different sides of a cut, the mask is
enlarged by F.interpolate itself: the result is that of `logits_to_image` bit by bit, whatever the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch import Tensor

from sum.core.geometry import logits_to_image, resized_hw

GROW = 2  # low-resolution pixels: one for each of the two bilinear steps
ROUNDING = 16 * 2.0**-24  # of the largest logit that takes part: both arithmetics round fewer than 8 times a pixel


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """One candidate at the original size: its mask inside its box, and its pixels above the three cuts."""

    y: int  # the box's corner in the image
    x: int
    mask: NDArray[np.bool_]  # [h, w], logits above the cut
    above: tuple[int, int, int]  # px above cut + offset, cut, cut - offset

    @property
    def stability(self) -> float:
        """Share of the pixels above the lower cut that are above the upper one too; NaN without any."""
        return float(np.float32(self.above[0]) / np.float32(self.above[2])) if self.above[2] else float("nan")

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight box in the image, xyxy, both ends inside; 0, 0, 0, 0 of an empty mask."""
        height, width = self.mask.shape
        return (self.x, self.y, self.x + width - 1, self.y + height - 1) if height else (0, 0, 0, 0)

    def rle(self, hw: tuple[int, int]) -> str:
        """Counts of the COCO compressed RLE of the mask in an image of hw, made from its box alone."""
        height, width = hw
        columns = np.zeros((self.mask.shape[1], self.mask.shape[0] + 2), dtype=np.int8)
        columns[:, 1:-1] = self.mask.T
        steps = np.diff(columns, axis=1)
        place = np.arange(columns.shape[1] - 1) + self.y + height * (self.x + np.arange(len(columns)))[:, None]
        starts, ends = place[steps == 1], place[steps == -1]
        apart = ends[:-1] != starts[1:]  # a run that goes on at the top of the next column is one run
        first, last = np.ones(len(starts), dtype=bool), np.ones(len(ends), dtype=bool)
        first[1:], last[:-1] = apart, apart
        edges = np.stack([starts[first], ends[last]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=height * width)
        if len(edges) and not counts[-1]:  # the mask reaches the last pixel
            counts = counts[:-1]
        code = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        return str(code["counts"], "ascii")


EMPTY = Cut(0, 0, np.zeros((0, 0), dtype=bool), (0, 0, 0))
Window = tuple[int, int, int, int]  # y0, y1, x0, x1, ends outside


class Enlarger:
    """Enlarges the candidates of one image; the index tables are made once for all of them."""

    def __init__(self, *, hw: tuple[int, int], side: int, low: int) -> None:
        """hw: the image's original size; side: S, low: L, which divides S."""
        self.hw, self.side, self.low = hw, side, low
        self.resized = resized_hw(*hw, side)
        self._rows, self._columns = (_Taps(small, large) for small, large in zip(self.resized, hw, strict=True))

    def cut(self, logits: Tensor, *, at: float, offset: float) -> Cut:
        """One candidate `[L, L]`, float32 on the CPU, cut at `at`; its pixels above at + offset, at and at - offset."""
        cuts = (at + offset, at, at - offset)
        window = self._window(logits > cuts[2])
        if window is None:
            return EMPTY
        y0, y1, x0, x1 = window
        part, scale = logits[y0:y1, x0:x1], self.side // self.low
        frame = F.interpolate(part[None, None], scale_factor=scale, mode="bilinear", align_corners=False)[0, 0]
        y, x = scale * y0, scale * x0
        frame = frame[: max(0, self.resized[0] - y), : max(0, self.resized[1] - x)]  # the rest is padding
        rows, columns = self._rows.span(y, y + frame.shape[0]), self._columns.span(x, x + frame.shape[1])
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return EMPTY
        values = self._rows.lerp(self._columns.lerp(frame.T, columns, start=x).T, rows, start=y).numpy()
        if self._doubtful(values, part, (rows.start, columns.start), window, cuts):
            values = logits_to_image(logits[None, None], resized=self.resized, hw=self.hw, side=self.side)[0, 0].numpy()
            rows = columns = slice(0, None)
        return _tight(values > at, y=rows.start, x=columns.start, above=_counts(values, cuts))

    def _window(self, hits: Tensor) -> Window | None:
        """The box of low-resolution pixels above the lower cut, grown."""
        rows, columns = np.flatnonzero(hits.any(1).numpy()), np.flatnonzero(hits.any(0).numpy())
        if not len(rows):
            return None
        low = (max(0, int(found[0]) - GROW) for found in (rows, columns))
        high = (min(self.low, int(found[-1]) + 1 + GROW) for found in (rows, columns))
        (y0, x0), (y1, x1) = low, high
        return y0, y1, x0, x1

    def _doubtful(
        self,
        values: NDArray[np.float32],
        logits: Tensor,
        corner: tuple[int, int],
        window: Window,
        cuts: tuple[float, float, float],
    ) -> bool:
        """Whether a value lies so near a cut that another order of rounding could put it on the other side.

        values: of the image from `corner` on; logits: the low-resolution ones of `window`.
        """
        near = ROUNDING * float(logits.abs().max())
        close = [cut for cut in cuts if np.count_nonzero(values > cut - near) != np.count_nonzero(values > cut + near)]
        if not close:
            return False
        peak = F.max_pool2d(logits.abs()[None], 2 * GROW + 1, stride=1, padding=GROW)[0].numpy()  # what takes part
        scale = self.side // self.low
        for cut in close:
            y, x = np.nonzero((values > cut - near) & (values <= cut + near))
            low_y = self._rows.first[y + corner[0]] // scale - window[0]
            low_x = self._columns.first[x + corner[1]] // scale - window[2]
            if (np.abs(values[y, x] - np.float32(cut)) <= ROUNDING * peak[low_y, low_x]).any():
                return True
        return False


class _Taps:
    """Bilinear weights along one axis from `small` to `large` pixels, as F.interpolate has them."""

    def __init__(self, small: int, large: int) -> None:
        at = (np.arange(large, dtype=np.float32) + np.float32(0.5)) * np.float32(small / large) - np.float32(0.5)
        at = np.maximum(at, np.float32(0))
        self.first = np.minimum(at.astype(np.int64), small - 1)
        self.second = np.minimum(self.first + 1, small - 1)
        self._weight = torch.from_numpy(at - self.first.astype(np.float32))
        self._same = small == large

    def span(self, start: int, stop: int) -> slice:
        """The outputs made only of inputs start..stop-1."""
        return slice(int(np.searchsorted(self.first, start)), int(np.searchsorted(self.second, stop)))

    def lerp(self, values: Tensor, span: slice, *, start: int) -> Tensor:
        """Outputs `span` along the first axis of values, whose first row is input `start`."""
        if self._same:
            return values[span.start - start : span.stop - start]
        first, second = (torch.from_numpy(taps[span] - start) for taps in (self.first, self.second))
        return torch.lerp(values[first], values[second], self._weight[span, None])


def _tight(mask: NDArray[np.bool_], *, y: int, x: int, above: tuple[int, int, int]) -> Cut:
    """A Cut whose window is the mask's box; mask: of the image from y, x on."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return Cut(0, 0, np.zeros((0, 0), dtype=bool), above)
    tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Cut(y + int(rows[0]), x + int(columns[0]), tight, above)


def _counts(values: NDArray[np.float32], cuts: tuple[float, float, float]) -> tuple[int, int, int]:
    upper, middle, lower = (int(np.count_nonzero(values > cut)) for cut in cuts)
    return upper, middle, lower
