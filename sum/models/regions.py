"""Small holes and islands of masks removed, as segment_anything's min_mask_region_area does.

What it does is kept where it may surprise: the surroundings of a mask count as a hole, so where they have fewer than
`least` pixels the mask becomes the whole image (of an image that small, even an empty one); scores, points and logits
stay those of the mask before; and NMS prefers masks that did not change to better ones that did.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco

from sum.core.geometry import mask_to_box
from sum.models.candidates import Candidates, encode

Mask = NDArray[np.bool_]


def tidy(found: Candidates, *, hw: tuple[int, int], least: float, box_nms_thresh: float) -> Candidates:
    """The candidates of an image of hw with regions below `least` px removed, without those that became the same.

    Masks that did not change come first, then those that did, both in their order.
    """
    rle, box, area = list(found.rle), found.box.clone(), found.area.clone()
    unchanged = torch.ones(len(found))
    for number, counts in enumerate(found.rle):
        mask = coco.decode({"size": list(hw), "counts": counts}).view(bool)
        clean = remove_small(mask, least=least)
        if clean is None:
            continue
        plane = torch.from_numpy(clean)[None]
        (rle[number],) = encode(plane)
        box[number], area[number] = mask_to_box(plane)[0], int(clean.sum())
        unchanged[number] = 0
    tidied = replace(found, rle=rle, box=box, area=area)
    return tidied.pick(tidied.distinct(unchanged, threshold=box_nms_thresh))


def remove_small(mask: Mask, *, least: float) -> Mask | None:
    """`[H, W]` without holes, then without islands (8 neighbours) of fewer than `least` px; None if there are none.

    Of islands that are all small the largest stays, the first of them in a tie.
    """
    filled = _without(mask, least=least, holes=True)
    rest = _without(mask if filled is None else filled, least=least, holes=False)
    return filled if rest is None else rest


def _without(mask: Mask, *, least: float, holes: bool) -> Mask | None:
    plane = np.ascontiguousarray(mask ^ holes).view(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(plane, connectivity=8)
    sizes = stats[1:, cv2.CC_STAT_AREA]
    small = sizes < least
    if not small.any():
        return None
    stays = np.concatenate([[holes], small if holes else ~small])
    if not stays.any():
        stays[1 + int(np.argmax(sizes))] = True
    out: Mask = stays[labels]
    return out
