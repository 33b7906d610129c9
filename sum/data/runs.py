"""How many pixels compressed run lengths cover, for thousands of masks at once and without drawing one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

MORE, BITS = 0x20, 5  # of a character of COCO's code, 48 less: another one follows; bits of the number
LONGEST = 7  # characters of one run: 35 bits, more than any image has pixels
BAD = -1
AT_ONCE = 255  # masks that pycocotools 2.0.11 takes: it puts their number into 8 bits


def run_totals(codes: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`[N]` pixels in all runs and `[N]` pixels of the mask, of COCO compressed RLE counts; BAD where it is none.

    pycocotools sums the odd runs. For the even ones the first run is replaced by two empty ones: that moves every later
    run by one, and as a run is coded by its difference to the run before the last, changes none of them.
    """
    raw, rest, first = list[bytes](), list[bytes](), np.full(len(codes), BAD, dtype=np.int64)
    for number, code in enumerate(codes):
        text = code.encode("ascii", errors="replace")
        length, value = _first_run(text)
        if length and not (text[-1] - 48) & MORE:  # a code that breaks off would be read beyond its end
            first[number] = value
            raw.append(text)
            rest.append(b"00" + text[length:])
    pixels, area = np.full_like(first, BAD), np.full_like(first, BAD)
    if raw:
        good = first >= 0
        area[good] = _areas(raw)
        pixels[good] = first[good] + area[good] + _areas(rest)
    return pixels, area


def _areas(codes: Sequence[bytes]) -> NDArray[np.int64]:
    size = (1, 1)  # of the image: nobody asks for it here
    parts = [
        coco.area([{"size": size, "counts": code} for code in codes[start : start + AT_ONCE]])
        for start in range(0, len(codes), AT_ONCE)
    ]
    return np.concatenate(parts).astype(np.int64)


def _first_run(code: bytes) -> tuple[int, int]:
    """Characters and value of the first run, which is never negative; (0, 0) where there is none."""
    value = 0
    for place, character in enumerate(code[:LONGEST]):
        value |= ((character - 48) & (MORE - 1)) << (BITS * place)
        if not (character - 48) & MORE:
            return place + 1, value
    return 0, 0
