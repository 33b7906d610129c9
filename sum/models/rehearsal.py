"""Random weights that answer as trained ones might, so that the time of an evaluation can be measured without any.

The answers of random weights are specks all over the image. Clicking on specks and scoring them takes many times as
long as with a real model's answers, which are the object with a somewhat wrong edge.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor

from sum.core.clicks import farthest_point
from sum.core.geometry import boxes_to_model, mask_to_box, points_to_model, resized_hw
from sum.models.segmenter import PAD, Prediction, Prompts, Segmenter

STEEP, WAVES = 12.0, 2.0  # logits from outside to inside; of the edge's waves: some 2 px of the low-resolution frame
BLUR, GRID = 1 / 64, 9  # of the edge, share of that frame's side; waves a side
KINDS = 4  # of waves, so that rounds and outputs differ


class Rehearsal(Segmenter):
    """Computes every answer as a Segmenter does, then gives the shown mask that was meant, its edge displaced."""

    def __init__(self, sam: Sam, *, backbone: str) -> None:
        super().__init__(sam, backbone=backbone)
        noise = np.random.default_rng(0).normal(0, WAVES, (KINDS, GRID, GRID)).astype(np.float32)
        planes = [cv2.resize(wave, (self.low_side, self.low_side), interpolation=cv2.INTER_CUBIC) for wave in noise]
        self._waves = torch.from_numpy(np.stack(planes))
        self._planes = torch.full((1, self.low_side, self.low_side), -STEEP)  # the last: nothing is meant
        self._covered = torch.zeros(0, self.low_side, self.low_side, dtype=torch.bool)
        self._middles, self._boxes = torch.zeros(0, 2), torch.zeros(0, 4)

    def show(self, truths: Sequence[NDArray[np.bool_]]) -> None:
        """The masks of the image that is asked about next: bool `[H, W]` at the original size, none empty."""
        hw, low = (truths[0].shape[0], truths[0].shape[1]), self.low_side
        height, width = resized_hw(*hw, low)
        cover = np.zeros((len(truths) + 1, low, low), dtype=np.float32)
        for plane, truth in zip(cover, truths, strict=False):
            plane[:height, :width] = cv2.resize(truth.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        soft = np.stack([cv2.GaussianBlur(plane, (0, 0), BLUR * low) for plane in cover])
        self._planes = torch.from_numpy(STEEP * (soft - 0.5))
        self._covered = torch.from_numpy(cover[:-1] > 0)
        deepest = torch.tensor([farthest_point(truth) for truth in truths], dtype=torch.float32)
        self._middles = points_to_model(deepest, hw=hw, side=self.side)
        boxes = mask_to_box(torch.from_numpy(np.stack(truths)))
        self._boxes = boxes_to_model(boxes, hw=hw, side=self.side)

    def decode(
        self, embedding: Tensor, image_index: Tensor, prompts: Prompts, *, multimask: bool, task: Tensor | None = None
    ) -> Prediction:
        """As a Segmenter's, but for the logits; the predicted IoU is that of random weights."""
        said = super().decode(embedding, image_index, prompts, multimask=multimask, task=task)
        first = prompts.label.shape[1]  # grows by one a round
        kinds = [(first + output) % KINDS for output in range(said.logits.shape[1])]
        logits = self._planes[self._meant(prompts)][:, None] + self._waves[kinds]
        return Prediction(logits.to(said.logits), said.iou)

    def _meant(self, prompts: Prompts) -> Tensor:
        """Number `[N]` of the mask that each first prompt is of.

        To a point that of the masks below it whose deepest pixel is nearest, which is where most games click first; to
        a box the mask with the nearest box.
        """
        xy, label = prompts.xy[:, -2:].cpu().float(), prompts.label[:, -1].cpu()  # a point and padding, or a box
        if int(label[0]) != PAD:
            return torch.cdist(xy.flatten(1), self._boxes, p=1).argmin(1)
        column, row = (xy[:, 0] * self.low_side / self.side).long().clamp(0, self.low_side - 1).T
        below = self._covered[:, row, column]  # [K, N]
        away = torch.where(below, torch.cdist(self._middles, xy[:, 0]), torch.inf)
        return torch.where(below.any(0), away.argmin(0), len(self._covered))
