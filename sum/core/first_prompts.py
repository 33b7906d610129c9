"""What a mask is first prompted by in the evaluation: a function of the mask, its id and a seed, of nothing else.

So it is the same in any order, batch or process, and, in integers throughout, on any machine. Points are `(x, y)` pixel
indices; masks bool `[H, W]` at the original size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from sum.core.clicks import farthest_point

Mask = NDArray[np.bool_]
Point = tuple[int, int]

EDGE = 10  # px: how near its edge the pixels of `boundary` lie (Liu et al., NeurIPS 2024, Table 5)

FIRST_PROMPTS: dict[str, str] = {
    "point": "a click on the true mask's pixel farthest from its edge",
    "box": "the true mask's box",
    "boundary": f"a click on the median of the true mask's pixels within {EDGE} px of its edge: of those whose exact "
    "Euclidean distance to the nearest pixel outside (beyond the image is outside) is at most that, the one nearest to "
    "their median x and median y; ties go to the first in reading order",
    "random": "a click on a pixel of the true mask drawn uniformly, by SHA-256 of prompt_seed and the mask's id",
}


def prompt_words(prompt: str, rounds: Sequence[int]) -> str:
    """What a mask has been given after the rounds, in words: `1 point`, `box`, `box + 2 points`, `random point`.

    Of several rounds all counts are named: `3, 5 points`, `box + 2, 4 points`.
    """
    head = {"point": "", "box": "box"}.get(prompt, f"{prompt} point")
    if head and list(rounds) == [1]:
        return head
    counts = [number - bool(head) for number in rounds]
    points = f"{', '.join(map(str, counts))} point{'' if counts == [1] else 's'}"
    return f"{head} + {points}" if head else points


def first_draw(seed: int, mask_id: str) -> int:
    """The number that a mask's chance comes from, uniform in 0 .. 2^256 - 1."""
    return int.from_bytes(hashlib.sha256(f"{seed} {mask_id}".encode()).digest())


def boundary_point(mask: Mask) -> Point | None:
    """The median of the mask's pixels within EDGE px of its edge, see FIRST_PROMPTS; None if the mask is empty.

    A median may lie between two pixels, so all is counted in half pixels.
    """
    part, x, y = _cut(mask)
    if not part.size:
        return None
    padded = np.pad(part, 1).view(np.uint8)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    near = part & (depth < (EDGE**2 + 0.5) ** 0.5)  # squared distances are integers: a root's last bit decides nothing
    rows, columns = np.nonzero(near)
    middle_y, middle_x = _twice_median(near.sum(1)), _twice_median(near.sum(0))
    index = int(np.argmin((2 * rows - middle_y) ** 2 + (2 * columns - middle_x) ** 2))
    return x + int(columns[index]), y + int(rows[index])


def random_point(mask: Mask, draw: int) -> Point | None:
    """The pixel that `draw` picks, in reading order and round and round; None if the mask is empty.

    A draw of 256 bits makes two pixels' odds differ by less than 1 in 2^200.
    """
    part, x, y = _cut(mask)
    pixels = np.flatnonzero(part)
    if not pixels.size:
        return None
    row, column = divmod(int(pixels[draw % len(pixels)]), part.shape[1])
    return x + column, y + row


FIRST_POINTS: dict[str, Callable[[Mask, int], Point | None]] = {  # of a mask and its `first_draw`
    "point": lambda mask, _: farthest_point(mask),
    "boundary": lambda mask, _: boundary_point(mask),
    "random": random_point,
}


def _cut(mask: Mask) -> tuple[Mask, int, int]:
    """The mask in its tight box, and that box's left and top; the pixels keep their order."""
    flags = np.ascontiguousarray(mask, dtype=bool)
    x, y, width, height = cv2.boundingRect(flags.view(np.uint8))
    return flags[y : y + height, x : x + width], x, y


def _twice_median(counts: NDArray[np.integer]) -> int:
    """Twice the median of a coordinate; counts: pixels at coordinate 0, 1, ... Of an even number the middle two."""
    below = np.cumsum(counts)
    total = int(below[-1])
    return int(
        np.searchsorted(below, (total - 1) // 2, side="right") + np.searchsorted(below, total // 2, side="right")
    )
