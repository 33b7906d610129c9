"""How sure a model is of its first answers of the benchmark, by the refinement module: for the report's pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sum.core.clicks import farthest_point
from sum.core.geometry import boxes_to_model, mask_to_box, points_to_model
from sum.core.uncertainty import logits_of, refinement, to_codes
from sum.models.interact import Answer, Mask
from sum.models.refiner import Refiner


@torch.inference_mode()
def doubts(
    refiner: Refiner, embedding: Tensor, answers: Sequence[Answer], truths: Sequence[Mask], *, step: int
) -> list[NDArray[np.uint8]]:
    """Uncertainty of first-round answers by the refinement module, as pseudo-labels get it: `[L, L]` uint8 codes each.

    embedding `[1, C, h, w]` of their image; the point is the deepest one of the truth; step: prompts a decoder call.
    """
    hw, side = (truths[0].shape[0], truths[0].shape[1]), refiner.core.side
    found: list[NDArray[np.uint8]] = []
    for start in range(0, len(answers), step):
        part = answers[start : start + step]
        boxes = mask_to_box(torch.from_numpy(np.stack([answer.prediction for answer in part])))
        points = torch.tensor([farthest_point(truths[answer.mask]) for answer in part], dtype=torch.float32)
        logits = logits_of(to_codes(torch.sigmoid(torch.stack([answer.logits for answer in part]))))
        refined = refiner(
            embedding,
            torch.zeros(len(part), dtype=torch.long, device=embedding.device),
            sam_logits=logits,
            box=boxes_to_model(boxes, hw=hw, side=side).to(embedding.device),
            point=points_to_model(points, hw=hw, side=side).to(embedding.device),
        )
        found += list(to_codes(refinement(logits, refined))[:, 0].cpu().numpy())
    return found
