"""Shapes of annotation tools -> COCO compressed RLE: ellipses by pixel centre, turned rectangles as polygons."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sum.data.rle import mask_to_rle, to_rle


def finite(values: Any, count: int | None = None) -> list[float]:
    """Plain finite numbers. Raises ValueError on anything else, or on another count than wanted."""
    good = isinstance(values, list | tuple) and all(type(value) in (int, float) for value in values)
    try:
        good = good and all(math.isfinite(value) for value in values)
    except OverflowError:  # a whole number beyond the range of float
        good = False
    if not good or count not in (None, len(values)):
        raise ValueError(f"wanted {count or 'a list of'} finite numbers, found {str(values)[:80]}")
    return [float(value) for value in values]


def flat_points(points: object) -> list[float]:
    """`[[x, y], ...]` -> x, y, x, y, ... Raises ValueError on anything else."""
    if not isinstance(points, list):
        raise ValueError("'points' is no list")
    return [value for point in points for value in finite(point, 2)]


def rectangle(box: list[float], *, turn: float = 0.0, height: int, width: int) -> tuple[str, str]:
    """x, y, width, height in pixels, turned clockwise about its first corner by `turn` radians; as `to_rle`."""
    x, y, wide, high = box
    cos, sin = math.cos(turn), math.sin(turn)
    corners = [(0.0, 0.0), (wide, 0.0), (wide, high), (0.0, high)]
    flat = [value for dx, dy in corners for value in (x + dx * cos - dy * sin, y + dx * sin + dy * cos)]
    return to_rle([flat], height=height, width=width)


def ellipse(shape: list[float], *, turn: float = 0.0, height: int, width: int) -> tuple[str, str]:
    """Centre x, y and two radii in pixels, turned clockwise by `turn` radians: pixels whose centre lies inside."""
    x, y, rx, ry = shape
    if rx <= 0 or ry <= 0:
        raise ValueError("an ellipse or circle without a radius")
    cos, sin = math.cos(turn), math.sin(turn)
    dx, dy = np.arange(width)[None, :] + 0.5 - x, np.arange(height)[:, None] + 0.5 - y
    inside = ((dx * cos + dy * sin) / rx) ** 2 + ((dy * cos - dx * sin) / ry) ** 2 <= 1
    return mask_to_rle(inside)
