"""Polygons and runs -> COCO compressed RLE at the photo's size, by pycocotools' own rule. It never sees bad ones."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco

from sum.data.records import encode_mask

EMPTY = "mask without a pixel left out"
FEW_POINTS = "polygon of fewer than 3 points left out"
OUTSIDE = "polygon with points outside the photo cut at its edges"
_NUMBERS = {int, float}
_REACH = 10  # sides of the photo: pycocotools would walk all the way to a point
_EDGES = 4_000_000  # px: pycocotools walks along every edge, 10 bytes for each fifth of a pixel: 0.2 GB, 1 s


def to_rle(segmentation: object, *, height: int, width: int) -> tuple[str, str]:
    """A COCO `segmentation` -> compressed RLE counts of a `[height, width]` mask ('' for none), and a remark or ''.

    It is a list of polygons x, y, x, y, ... in pixels (their union is the mask), or an RLE of that size, compressed
    (str or bytes) or not (a list). Raises ValueError on anything else.
    """
    if not segmentation:
        return "", EMPTY
    if isinstance(segmentation, dict):
        code, remark = _runs(segmentation, height=height, width=width), ""
    else:
        found = _polygons(segmentation, reach=_REACH * max(height, width))
        polygons = [polygon for polygon in found if len(polygon) >= 6]  # of 4 numbers pycocotools would make a box
        remark = FEW_POINTS if len(polygons) < len(found) else ""
        if not polygons:
            return "", remark
        code = coco.merge(coco.frPyObjects([polygon.tolist() for polygon in polygons], height, width))
        remark = remark or _leaves(polygons, height=height, width=width)
    return (str(code["counts"], "ascii"), remark) if coco.area(code) else ("", EMPTY)


def mask_to_rle(mask: np.ndarray) -> tuple[str, str]:
    """`[H, W]` bool, as `to_rle`."""
    return (encode_mask(mask), "") if mask.any() else ("", EMPTY)


def pack(tree: dict[str, Any]) -> None:
    """Let the numbers of a segmentation, as parsed from JSON, take a quarter of the memory; `to_rle` takes both."""
    segmentation = tree.get("segmentation")
    if isinstance(segmentation, list):
        tree["segmentation"] = [_packed(polygon, "d") for polygon in segmentation]
    elif isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
        segmentation["counts"] = _packed(segmentation["counts"], "q")


def coder(values: np.ndarray) -> Callable[[int], str]:
    """`[H, W]` integers -> a function: one of the values -> counts of the mask of its pixels, '' for none.

    One walk over the frame, however many values it has; no mask is ever held as pixels.
    """
    height, width = values.shape
    flat = values.ravel(order="F")
    bounds = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    of_run = flat[bounds[:-1]]
    order = np.argsort(of_run, kind="stable")
    ranked = of_run[order]
    starts = np.flatnonzero(ranked[1:] != ranked[:-1]) + 1
    runs_of = dict(zip(ranked[np.concatenate(([0], starts))].tolist(), np.split(order, starts), strict=True))

    def code(value: int) -> str:
        runs = runs_of.get(value)
        if runs is None:
            return ""
        edges = np.stack((bounds[runs], bounds[runs + 1]), axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=flat.size)
        counts = counts if counts[-1] else counts[:-1]  # as pycocotools writes it: no empty run at the end
        return str(coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"], "ascii")

    return code


def resize_rle(rle: str, frame: tuple[int, int], *, to: tuple[int, int]) -> str:
    """Counts of a mask of (height, width) `frame` -> counts of it at the size `to`, by the nearest pixel."""
    if frame == to:
        return rle
    mask = coco.decode({"size": list(frame), "counts": rle.encode("ascii")})
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(frame, to, strict=True))
    code = coco.encode(np.asfortranarray(mask[rows][:, columns]))
    return str(code["counts"], "ascii")


def _packed(values: Any, code: str) -> Any:
    """A list of plain numbers as an array; anything else as it is, for `to_rle` to refuse."""
    wanted = _NUMBERS if code == "d" else {int}
    if not isinstance(values, list) or not set(map(type, values)) <= wanted:
        return values
    try:
        return array(code, values)
    except OverflowError:
        return values


def _polygons(segmentation: object, *, reach: int) -> list[np.ndarray]:
    """The polygons of a segmentation, each a flat row x, y, x, y, ... with no point beyond `reach` pixels."""
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list | array) for polygon in segmentation):
        raise ValueError("segmentation is neither a list of polygons nor an RLE")
    packed = [_packed(polygon, "d") for polygon in segmentation]
    if not all(isinstance(polygon, array) and len(polygon) % 2 == 0 for polygon in packed):
        raise ValueError("a polygon is not a flat list of numbers x, y, x, y, ...")
    polygons = [np.asarray(polygon, dtype=np.float64) for polygon in packed]
    if not all(np.isfinite(polygon).all() for polygon in polygons):
        raise ValueError("a polygon has a coordinate that is not a finite number; it is not a flat list of numbers")
    if any((abs(polygon) > reach).any() for polygon in polygons):
        raise ValueError("a polygon has a point far outside the photo")
    length = sum(map(_length, polygons))
    if length > _EDGES:
        raise ValueError(f"the edges of its polygons are {length:,.0f} px long, more than the {_EDGES:,} of any shape")
    return polygons


def _length(polygon: np.ndarray) -> float:
    """How far pycocotools walks around a polygon: of each edge the longer side of its box."""
    corners = polygon.reshape(-1, 2)
    return float(abs(corners - np.roll(corners, 1, axis=0)).max(axis=1, initial=0).sum())


def _leaves(polygons: list[np.ndarray], *, height: int, width: int) -> str:
    """The remark on polygons with a point more than a pixel outside; as far as a pixel is how tools write the edge."""
    edges = ((polygon[0::2], polygon[1::2]) for polygon in polygons)
    inside = (
        xs.min() >= -1 and ys.min() >= -1 and xs.max() <= width + 1 and ys.max() <= height + 1 for xs, ys in edges
    )
    return "" if all(inside) else OUTSIDE


def _runs(segmentation: dict[str, Any], *, height: int, width: int) -> dict[str, Any]:
    """An RLE, compressed; its runs are checked before pycocotools, which would read beyond bad ones, sees it."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"RLE of size {str(size)[:60]}, the photo is {[height, width]} (height, width) upright")
    if isinstance(counts, str | bytes):
        runs = parse_counts(counts if isinstance(counts, str) else counts.decode("ascii", "replace"))
    else:
        packed = _packed(counts, "q")
        if not isinstance(packed, array) or not len(packed):
            raise ValueError("RLE counts are neither a string nor a list of run lengths")
        runs = np.asarray(packed, dtype=np.int64)
    pixels = height * width
    if runs.min() < 0 or runs.max() > pixels or int(runs.sum()) != pixels:
        raise ValueError(f"RLE runs do not add up to {height} x {width} pixels")
    if isinstance(counts, str | bytes) and (runs[1:] > 0).all():  # the one way in which pycocotools writes this mask
        return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    if (runs[1:] > 0).all():
        code: dict[str, Any] = coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    else:  # runs of no pixel, which would give a wrong box
        flat = np.repeat((np.arange(len(runs)) % 2).astype(np.uint8), runs)
        code = coco.encode(flat.reshape((height, width), order="F"))
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
