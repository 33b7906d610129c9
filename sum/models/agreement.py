"""How far two ways of making masks of one image find the same ones, as fp32 and bf16."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from sum.models.candidates import GeneratedMask


def partners(
    first: Sequence[GeneratedMask], second: Sequence[GeneratedMask], *, hw: tuple[int, int], least: float = 0.95
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which masks of each have one of the other with an IoU of at least `least`, pixel by pixel: `[N]` and `[M]`.

    hw: size of the image of both. The shares of True, over many images, are the agreement both ways.
    """
    codes = [[{"size": list(hw), "counts": mask.rle} for mask in masks] for masks in (first, second)]
    if not first or not second:
        return np.zeros(len(first), dtype=bool), np.zeros(len(second), dtype=bool)
    close = coco.iou(*codes, [0] * len(second)) >= least
    return close.any(1), close.any(0)
