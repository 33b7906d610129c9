"""Compressed run lengths of thousands of masks at once, without drawing one: what they cover, their boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MORE, SIGN, BITS = (
    0x20,
    0x10,
    5,
)  # of a character of COCO's code, 48 less: another follows; negative; bits of the number
LONGEST = 7  # characters of one run: 35 bits, more than any image has pixels
BAD = -1
AT_ONCE = 512  # masks: their runs stay in the processor's cache, and memory small

Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """The runs of N masks in COCO's column-major order, off and on in turn; of a code that is none, no run at all."""

    lengths: Whole  # [R], mask after mask
    mask: Whole  # [R] which of the N masks, ascending
    place: Whole  # [R] 0, 1, ... within its mask; odd: pixels of the mask
    good: NDArray[np.bool_]  # [N] the code is one

    @property
    def pixels(self) -> Whole:
        """`[N]` pixels in all runs, BAD where the code is none."""
        return self._totals(self.lengths)

    @property
    def area(self) -> Whole:
        """`[N]` pixels of the mask, BAD where the code is none."""
        return self._totals(self.lengths * (self.place & 1))

    @property
    def alternate(self) -> NDArray[np.bool_]:
        """`[N]` whether no run is negative, and none empty but the first: the one way to write this mask."""
        wrong = (self.lengths < 0) | ((self.lengths == 0) & (self.place > 0))
        found = self.good.copy()
        found[self.mask[wrong]] = False
        return found

    def boxes(self, heights: Whole) -> Whole:
        """`[N, 4]` xyxy of the masks' pixels, both ends inside, of images of `[N]` heights; BAD where there are none.

        The lengths are taken as they are: that they alternate and cover the image is for others to ask.
        """
        ends = self._ends()
        ink = (self.place & 1 == 1) & (self.lengths > 0) & (heights[self.mask] > 0)
        found = np.full((len(self.good), 4), BAD, dtype=np.int64)
        if not ink.any():
            return found
        mask, last, high = self.mask[ink], ends[ink] - 1, heights[self.mask[ink]]
        left, top = np.divmod(last + 1 - self.lengths[ink], high)
        right, bottom = np.divmod(last, high)
        whole = right > left  # from one column into the next: by the lower edge and the upper one
        top, bottom = np.where(whole, 0, top), np.where(whole, high - 1, bottom)
        first = np.flatnonzero(np.concatenate(([True], mask[1:] != mask[:-1])))
        sides = [np.minimum.reduceat(side, first) for side in (left, top)]
        sides += [np.maximum.reduceat(side, first) for side in (right, bottom)]
        found[mask[first]] = np.stack(sides, axis=1)
        return found

    def _totals(self, values: Whole) -> Whole:
        sums = np.full(len(self.good), BAD, dtype=np.int64)
        if len(values):
            first = np.flatnonzero(self.place == 0)
            sums[self.mask[first]] = np.add.reduceat(values, first)
        return sums

    def _ends(self) -> Whole:
        """`[R]` where a run ends, counted from the first pixel of its image."""
        return _sums_within(self.lengths, self.place == 0)


def read_runs(codes: Sequence[str]) -> Runs:
    """The runs of N COCO compressed RLE counts, in one walk over all their characters."""
    texts = [code.encode(errors="replace") for code in codes]
    sizes = np.array([len(text) for text in texts], dtype=np.int64)
    raw = np.frombuffer(b"".join(texts), dtype=np.uint8) - np.uint8(48)  # characters below 48 come out above 200
    good = _are_codes(raw, sizes)
    raw = raw[np.repeat(good, sizes)]
    ends = np.flatnonzero(raw < MORE)
    starts = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
    counts = np.diff(np.searchsorted(ends, np.cumsum(sizes[good]) - 1, side="right"), prepend=0)
    mask = np.repeat(np.flatnonzero(good), counts)
    good[mask[ends - starts >= LONGEST]] = False
    lengths = _numbers(raw, starts, ends)
    place = np.arange(len(mask)) - np.repeat(np.cumsum(counts) - counts, counts)
    odd = (place & 1).astype(bool)
    for part in (np.flatnonzero(odd), np.flatnonzero(~odd & (place > 0))):  # from the fourth: less the last but one
        lengths[part] = _sums_within(lengths[part], place[part] <= 2)
    kept = good[mask]
    return Runs(lengths, mask, place, good) if kept.all() else Runs(lengths[kept], mask[kept], place[kept], good)


def _numbers(raw: NDArray[np.uint8], starts: Whole, ends: Whole) -> Whole:
    """`[R]` numbers of the characters, 48 less, from `starts` to `ends`: five bits each, low ones first."""
    values = (raw[starts] & (MORE - 1)).astype(np.int64)
    sign = np.int64(1) << BITS * np.minimum(ends - starts + 1, LONGEST)
    rest = np.flatnonzero(ends > starts)
    for digit in range(1, LONGEST):
        values[rest] += (raw[starts[rest] + digit] & (MORE - 1)).astype(np.int64) << (BITS * digit)
        rest = rest[ends[rest] > starts[rest] + digit]
    return np.where(raw[ends] & SIGN, values - sign, values)


def _are_codes(raw: NDArray[np.uint8], sizes: Whole) -> NDArray[np.bool_]:
    """`[N]` whether the characters, 48 less, of each mask are known ones, and the last number does not break off."""
    good = sizes > 0
    if good.any():
        first = (np.cumsum(sizes) - sizes)[good]
        last = raw[np.cumsum(sizes)[good] - 1]
        good[good] = (np.maximum.reduceat(raw, first) < 2 * MORE) & (last < MORE)
    return good


def run_facts(codes: Sequence[str]) -> tuple[Whole, Whole, NDArray[np.bool_]]:
    """`Runs.pixels`, `area` and `alternate` of N codes, a few at a time."""
    pixels, area, alternate = list[Whole](), list[Whole](), list[NDArray[np.bool_]]()
    for start in range(0, max(1, len(codes)), AT_ONCE):
        part = read_runs(codes[start : start + AT_ONCE])
        pixels.append(part.pixels)
        area.append(part.area)
        alternate.append(part.alternate)
    return np.concatenate(pixels), np.concatenate(area), np.concatenate(alternate)


def _sums_within(values: Whole, begins: NDArray[np.bool_]) -> Whole:
    """Running sums that begin again where `begins` is True."""
    if not len(values):
        return values
    sums = np.cumsum(values)
    first = np.flatnonzero(begins)
    before = sums[first] - values[first]
    found: Whole = sums - np.repeat(before, np.diff(first, append=len(values)))
    return found
