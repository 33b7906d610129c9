"""Training pairs of the refinement module: what SAM says of a human mask after one point, and whether it is good
enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor

from sum.core.geometry import mask_to_box
from sum.core.losses import mask_iou
from sum.core.uncertainty import logits_of, to_codes
from sum.models.segmenter import Prompts, Segmenter


@dataclass(frozen=True, slots=True)
class Pairs:
    """N proposals of SAM, one a human mask."""

    logits: Tensor  # [N, 1, L, L] low-resolution logits, as stored, of the output closest to the human mask
    fine: Tensor  # [N, 1, T, T] the same at the target's side
    box: Tensor  # [N, 4] xyxy, model frame, around the proposal
    point: Tensor  # [N, 2] xy, model frame: the prompt
    iou: Tensor  # [N] with the human mask
    good: Tensor  # [N] bool: passes the IoU threshold and SAM's own filters


@torch.no_grad()
def propose(
    model: Segmenter,
    embedding: Tensor,
    image_index: Tensor,
    *,
    point: Tensor,
    target: Tensor,
    valid: Tensor,
    thresholds: tuple[float, float, float],
) -> Pairs:
    """Ask SAM with one point a mask and keep, of its three outputs, the one closest to the truth (Appendix D).

    point `[N, 2]` xy, model frame; target `[N, 1, T, T]` 0 or 1; valid the same shape, False on padding;
    thresholds: lowest IoU with the human mask, lowest predicted IoU, lowest stability score.
    """
    positive = torch.ones(len(point), 1, dtype=torch.int64, device=point.device)
    answer = model.decode(embedding, image_index, Prompts.from_points(point[:, None], positive), multimask=True)
    side = target.shape[-1]
    fine = F.interpolate(answer.logits.float(), (side, side), mode="bilinear", align_corners=False)
    ious = torch.stack([mask_iou(plane[:, None], target, valid) for plane in fine.unbind(1)], 1)
    best = ious.argmax(1)
    rows = torch.arange(len(best), device=best.device)
    chosen, iou = fine[rows, best][:, None], ious[rows, best]
    low_iou, low_predicted, low_stability = thresholds
    stability = calculate_stability_score(chosen[:, 0], 0.0, 1.0)
    picked = answer.pick(best)
    good = (iou >= low_iou) & (picked.iou[:, 0] >= low_predicted) & (stability >= low_stability)
    scale = model.side / side
    box = mask_to_box((chosen[:, 0] > 0) & valid[:, 0]).float()
    box = torch.cat([box[:, :2] * scale, (box[:, 2:] + 1) * scale - 1], 1)
    as_stored = logits_of(to_codes(torch.sigmoid(picked.logits.float())))  # what labelling will ask the refiner with
    return Pairs(as_stored, chosen, box, point, iou, good)
