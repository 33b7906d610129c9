"""Polygons and run lengths -> COCO compressed RLE at the photo's size, by pycocotools' own rule; checked before it sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco

EMPTY = "mask without a pixel left out"
FEW_POINTS = "polygon of fewer than 3 points left out"


def to_rle(segmentation: object, *, height: int, width: int) -> tuple[str, str]:
    """A COCO `segmentation` -> compressed RLE counts of a `[height, width]` mask ('' for none), and a remark or ''.

    Raises ValueError on anything that is not a segmentation of that size.
    """
    if not segmentation:
        return "", EMPTY
    remark = ""
    if isinstance(segmentation, dict):
        code = _runs(segmentation, height=height, width=width)
    else:
        found = _polygons(segmentation, reach=10 * max(height, width))
        polygons = [polygon for polygon in found if len(polygon) >= 6]
        remark = FEW_POINTS if len(polygons) < len(found) else ""
        if not polygons:
            return "", remark
        code = coco.merge(coco.frPyObjects(polygons, height, width))
    return (str(code["counts"], "ascii"), remark) if coco.area(code) else ("", EMPTY)


def _polygons(segmentation: object, *, reach: int) -> list[list[float]]:
    """The polygons of a segmentation, each a flat list x, y, x, y, ... with no point beyond `reach` pixels."""
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise ValueError("segmentation is neither a list of polygons nor an RLE")
    for polygon in segmentation:
        if len(polygon) % 2 or not all(type(value) in (int, float) and np.isfinite(value) for value in polygon):
            raise ValueError("a polygon is not a flat list of numbers x, y, x, y, ...")
        if any(abs(value) > reach for value in polygon):  # pycocotools would walk all the way there
            raise ValueError("a polygon has a point far outside the photo")
    return segmentation


def _runs(segmentation: dict[str, Any], *, height: int, width: int) -> dict[str, Any]:
    """An RLE, compressed; its runs are checked before pycocotools, which would read beyond bad ones, sees it."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    pixels = height * width
    if size != [height, width]:
        raise ValueError(f"RLE of size {size}, the photo is {[height, width]} (height, width) upright")
    if isinstance(counts, str):
        runs, code = parse_counts(counts), {"size": size, "counts": counts.encode("ascii")}
    elif isinstance(counts, list) and all(type(value) is int and 0 <= value <= pixels for value in counts):
        runs, code = np.asarray(counts, dtype=np.int64), coco.frPyObjects(segmentation, height, width)
    else:
        raise ValueError("RLE counts are neither a string nor a list of run lengths")
    if (runs < 0).any() or int(runs.sum()) != pixels:
        raise ValueError(f"RLE runs do not add up to {height} x {width} pixels")
    return code


def parse_counts(code: str) -> np.ndarray:
    """Run lengths of a COCO compressed RLE string: signed base 32, from the fourth on relative to the last but one."""
    raw = np.frombuffer(code.encode(), np.uint8).astype(np.int64) - 48
    if not len(raw) or raw.min() < 0 or raw.max() > 63 or raw[-1] & 32:
        raise ValueError("RLE counts are not a COCO compressed string")
    ends = np.flatnonzero((raw & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    digit = np.arange(len(raw)) - np.repeat(starts, ends - starts + 1)
    if digit.max() > 7:
        raise ValueError("RLE counts hold a run of more than 32 bits")
    values = np.add.reduceat((raw & 31) << (5 * digit), starts)
    values -= np.where(raw[ends] & 16, 1 << (5 * (digit[ends] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
