"""Prompts of a training without rounds (HQ-SAM's recipe): for each mask a box, ten points, or a noisy mask of itself.

The three have equal odds. What chance decides for a mask hangs on its seed alone, as in sum/rounds.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sum.core.chance import normal, uniform
from sum.core.geometry import mask_to_box
from sum.core.prompts import place_points
from sum.data.batches import TrainBatch
from sum.models.segmenter import Prediction, Prompts, Segmenter

KINDS = ("box", "points", "mask")
POINTS = 10  # of HQ-SAM
SURE = 10.0  # a mask prompt's logit on the mask, -SURE off it: what SAM feeds back is of this size
COARSE, CHANGED = 8, 0.01  # noise falls where the mask, made so many times smaller and larger again, changes so much
KIND, PLACE, NOISE = 0, 1, 1 + POINTS  # places in a mask's stream of random numbers


@dataclass(frozen=True, slots=True)
class OneShot:
    """One prompt each of N masks. In every field that another kind of prompt uses stands something meaningless.

    kind: N numbers of KINDS, on the host; boxes xyxy `[N, 4]` and points `[N, POINTS, 2]` in the model frame; logits
    `[N, 1, L, L]`.
    """

    kind: Sequence[int]
    boxes: Tensor
    points: Tensor
    logits: Tensor

    def masks(self, part: slice) -> OneShot:
        """The prompts of some of the masks."""
        return OneShot(self.kind[part], self.boxes[part], self.points[part], self.logits[part])

    def of_kind(self, number: int) -> tuple[list[int], Prompts]:
        """Which masks have this kind of prompt, and their prompts."""
        rows = [row for row, kind in enumerate(self.kind) if kind == number]
        if KINDS[number] == "box":
            return rows, Prompts.from_boxes(self.boxes[rows])
        points = self.points[rows]
        if KINDS[number] == "points":
            return rows, Prompts.from_points(points, torch.ones_like(points[..., 0], dtype=torch.int64))
        none = points[:, :0]
        return rows, Prompts(none, none[..., 0].long(), self.logits[rows])


def ask(
    model: Segmenter,
    embedding: Tensor,
    image_index: Tensor,
    prompts: Prompts | OneShot,
    *,
    multimask: bool,
    task: Tensor | None = None,
) -> Prediction:
    """As `Segmenter.decode`; each kind of prompt has a call of its own, without padding that SAM would read."""
    if isinstance(prompts, Prompts):
        return model.decode(embedding, image_index, prompts, multimask=multimask, task=task)
    order, found = list[int](), list[Prediction]()
    for number in range(len(KINDS)):
        rows, part = prompts.of_kind(number)
        if rows:
            order += rows
            tasks = None if task is None else task[rows]
            found.append(model.decode(embedding, image_index[rows], part, multimask=multimask, task=tasks))
    back = torch.tensor(order, device=embedding.device).argsort()
    logits, iou = (torch.cat([getattr(each, name) for each in found]) for name in ("logits", "iou"))
    return Prediction(logits[back], iou[back])


def one_shot_prompts(batch: TrainBatch, *, side: int, low_side: int, seeds: Tensor) -> OneShot:
    """A prompt a mask, by its seed `[N]`; points are drawn over the mask by certainty.

    side: px of the model frame; low_side: L.
    """
    mask = batch.mask.float()
    scale = side / mask.shape[-1]
    box = mask_to_box(mask[:, 0] > 0.5).float()
    box = torch.cat([box[:, :2] * scale, (box[:, 2:] + 1) * scale - 1], 1)
    spots = uniform(seeds, start=PLACE, count=POINTS)
    points = [_point(batch, spot, scale=scale) for spot in spots.unbind(1)]
    noise = normal(seeds, start=NOISE, count=low_side**2).view(-1, 1, low_side, low_side)
    return OneShot(_kinds(seeds), box, torch.stack(points, 1), SURE * (2 * noisy(mask, noise=noise.float()) - 1))


def _kinds(seeds: Tensor) -> list[int]:
    """Which kind each mask gets; of the planner's seeds, which have no value, all the same often."""
    if isinstance(seeds, FakeTensor):
        return [number % len(KINDS) for number in range(len(seeds))]
    return [int(chance * len(KINDS)) for chance in uniform(seeds, start=KIND, count=1)[:, 0].tolist()]


def _point(batch: TrainBatch, spot: Tensor, *, scale: float) -> Tensor:
    """A point a mask `[N, 2]` in the model frame; where nothing of the mask is certain, the mask's own."""
    xy, found = place_points(batch.mask * batch.certainty, spot)
    return torch.where(found[:, None], (xy + 0.5) * scale - 0.5, batch.point)


def noisy(mask: Tensor, *, noise: Tensor) -> Tensor:
    """A mask `[N, 1, H, W]` 0..1 at the side of `noise` `[N, 1, L, L]`, standard normal, as 0 or 1; noise only near
    the mask's boundary, in its thin parts and small holes.
    """
    side = noise.shape[-1]
    low = F.interpolate(mask, (side, side), mode="bilinear", align_corners=False)
    small = F.interpolate(low, (side // COARSE, side // COARSE), mode="bilinear", align_corners=False)
    again = F.interpolate(small, (side, side), mode="bilinear", align_corners=False)
    near = (low - again).abs() >= CHANGED
    return (low + noise * near > 0.5).float()
