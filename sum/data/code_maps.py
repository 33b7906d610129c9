"""Maps of one byte a pixel, most of them 0: what lies in the box of the rest, compressed without loss.

Logits far from a mask are far below 0, so their probability rounds to code 0; the box of the other pixels is small.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

LEVEL = 9  # of zstd: 5 % smaller than 3 at twice the time of writing; reading costs the same


Place = tuple[int, int, int, int]  # left, top, width, height


class Packed(NamedTuple):
    """A map: the box of its nonzero pixels, and their codes row by row, compressed. Nothing at all: an empty box."""

    data: bytes | pa.Buffer
    place: Place


def pack(codes: NDArray[np.uint8]) -> Packed:
    """`[L, L]` uint8 -> Packed; `unpack` gives exactly the same back."""
    left, top, width, height = cv2.boundingRect(codes)
    if not width:
        return Packed(b"", (0, 0, 0, 0))
    inside = codes[top : top + height, left : left + width]
    return Packed(compress(inside.tobytes()), (left, top, width, height))


def unpack(packed: Packed, out: NDArray[np.uint8]) -> None:
    """Write the map into `out` `[L, L]`, which is 0. ValueError for a box beyond it or data that are no such map."""
    if packed.place[2]:
        window, inside = _opened(packed, out)
        window[:] = inside


def unpack_distance(packed: Packed, out: NDArray[np.uint8]) -> None:
    """`out` becomes the distance of its codes to those of the map, `|out - map|`. ValueError as `unpack`."""
    if packed.place[2]:
        window, inside = _opened(packed, out)
        window[:] = cv2.absdiff(window, inside)


def _opened(packed: Packed, out: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The part of `out` that the map is about, and the map there."""
    data, (left, top, width, height) = packed
    if left + width > out.shape[1] or top + height > out.shape[0]:
        raise ValueError(f"a map's box ends at {left + width}, {top + height}, beyond {out.shape[1]} x {out.shape[0]}")
    inside = np.frombuffer(decompress(data, width * height), dtype=np.uint8).reshape(height, width)
    return out[top : top + height, left : left + width], inside


def compress(data: bytes) -> bytes:
    """zstd. The same bytes for the same data."""
    packed: bytes = _codec().compress(data, asbytes=True)
    return packed


def decompress(data: bytes | pa.Buffer, size: int) -> pa.Buffer:
    """The `size` bytes that were compressed. ValueError when there are others."""
    try:
        found = _codec().decompress(data, size)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    if len(found) != size:
        raise ValueError(f"{len(found)} bytes where {size} were compressed")
    return found


@cache
def _codec() -> pa.Codec:
    return pa.Codec("zstd", compression_level=LEVEL)
