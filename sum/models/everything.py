"""Automatic mask generation on a test image: how well the generated masks meet the true ones, and how many there are.

"Everything mode" is where forgetting is met first: a tuned model that finds next to nothing any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from sum.core.metrics import boundary_iou
from sum.models.candidates import GeneratedMask

EVERYTHING_RULE = (
    "automatic mask generation with task prompt unspecified; of each true mask the generated one with the highest IoU, "
    "of equals the one with the higher predicted IoU; 0 where nothing was generated"
)


@dataclass(frozen=True, slots=True)
class Match:
    """The generated mask nearest to a true one; all 0 where there is none."""

    iou: float
    boundary_iou: float
    predicted_iou: float


def nearest(
    generated: Sequence[GeneratedMask], truths: Sequence[str], *, hw: tuple[int, int], ratio: float
) -> list[Match]:
    """What the generated masks of an image of size hw (height, width) are worth for each true one.

    truths: COCO RLE counts at the original size; ratio: of the boundary band, see `boundary_iou`.
    """
    if not generated or not truths:
        return [Match(0.0, 0.0, 0.0) for _ in truths]
    ordered = sorted(generated, key=lambda mask: -mask.predicted_iou)
    found = _codes([mask.rle for mask in ordered], hw)
    wanted = _codes(truths, hw)
    table: NDArray[np.float64] = coco.iou(found, wanted, [0] * len(wanted))
    best = table.argmax(0)
    matches = []
    for number, row in enumerate(best.tolist()):
        pair = [coco.decode(code) for code in (found[row], wanted[number])]
        matches.append(
            Match(float(table[row, number]), boundary_iou(*pair, ratio=ratio), float(ordered[row].predicted_iou))
        )
    return matches


def _codes(counts: Sequence[str], hw: tuple[int, int]) -> list[dict[str, object]]:
    return [{"size": list(hw), "counts": text.encode("ascii")} for text in counts]
