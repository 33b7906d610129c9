"""What benchmarks/evaluation.py measures against: SAM 2's click and the boundary of boundary-iou-api.

One file of each is read from a checkout (facebookresearch/sam2, bowenc0221/boundary-iou-api).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.checkouts import module_at
from sum.core.metrics import Mask

Click = tuple[int, int, int]  # x, y, label


def sam2_click(checkout: Path) -> Callable[[Mask, Mask], Click]:
    """Their next click of (prediction, target), bool `[H, W]`."""
    package = ModuleType("sam2")  # stands for the one that sets Hydra up when imported; what is inside stays theirs
    package.__path__ = [str(checkout / "sam2")]
    sys.modules["sam2"] = package
    theirs = module_at(checkout / "sam2" / "modeling" / "sam2_utils.py", "--sam2").sample_one_point_from_error_center

    def click(prediction: Mask, target: Mask) -> Click:
        point, label = theirs(torch.from_numpy(target)[None, None], torch.from_numpy(prediction)[None, None])
        x, y = point[0, 0].int().tolist()
        return x, y, int(label)

    return click


def boundary_iou(checkout: Path) -> Callable[[Mask, Mask], float]:
    """IoU of their boundaries of (prediction, target), bool `[H, W]`; their API counts the same in run lengths."""
    boundary = module_at(checkout / "boundary_iou" / "utils" / "boundary_utils.py", "--boundary").mask_to_boundary

    def measure(prediction: Mask, target: Mask) -> float:
        first, second = boundary(prediction.view("uint8")), boundary(target.view("uint8"))
        either = (first | second).sum()
        return float((first & second).sum() / either) if either else 1.0

    return measure
