"""Masks on their way from the decoder to a label: what is kept of each, joined, chosen by box NMS, and told as records.

Boxes and points are in the original frame, whichever crop of the image a mask was seen in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch import Tensor
from torchvision.ops.boxes import batched_nms

HALF_LIMIT = 65504.0  # of float16


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedMask:
    """One mask of an image H x W; L is the model's low resolution."""

    rle: str  # counts of a COCO compressed RLE, original frame
    area: int  # px, original frame
    box: tuple[int, int, int, int]  # xyxy, both ends inside, original frame
    point: tuple[float, float]  # xy, original frame: where SAM was asked
    predicted_iou: float
    stability: float
    logits: NDArray[np.float16]  # [L, L], model frame of the whole image


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """N outputs on their way to a label."""

    iou: Tensor  # [N]
    stability: Tensor  # [N]
    box: Tensor  # [N, 4] int64
    area: Tensor  # [N] int64
    point: NDArray[np.float64]  # [N, 2]
    logits: Tensor  # [N, L, L] float16, cpu
    rle: list[str]

    def __len__(self) -> int:
        return len(self.rle)

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        """All of them, in their order; there must be at least one part."""
        return cls(
            iou=torch.cat([part.iou for part in parts]),
            stability=torch.cat([part.stability for part in parts]),
            box=torch.cat([part.box for part in parts]),
            area=torch.cat([part.area for part in parts]),
            point=np.concatenate([part.point for part in parts]),
            logits=torch.cat([part.logits for part in parts]),
            rle=[code for part in parts for code in part.rle],
        )

    def pick(self, index: Tensor) -> Candidates:
        """Those at `index` `[K]` int64, in its order."""
        here, there = index.to(self.box.device), index.cpu()
        return Candidates(
            iou=self.iou[here],
            stability=self.stability[here],
            box=self.box[here],
            area=self.area[here],
            point=self.point[there.numpy()],
            logits=self.logits[there],
            rle=[self.rle[n] for n in there.tolist()],
        )

    def distinct(self, scores: Tensor, *, threshold: float) -> Tensor:
        """Box NMS: indices `[K]` of those that no box of a higher score `[N]` overlaps more than `threshold` (IoU).

        Highest score first, the earlier one first in a tie; they are segment_anything's where its boxes are the same.
        """
        apart = torch.zeros(len(self), device=self.box.device)
        kept: Tensor = batched_nms(self.box.float(), scores.to(self.box.device), apart, threshold)
        return kept

    def records(self) -> list[GeneratedMask]:
        """The same as records, in their order."""
        iou, stability, area, box = (
            values.cpu().tolist() for values in (self.iou, self.stability, self.area, self.box)
        )
        planes = self.logits.numpy()
        return [
            GeneratedMask(
                rle=code,
                area=area[n],
                box=(box[n][0], box[n][1], box[n][2], box[n][3]),
                point=(float(self.point[n, 0]), float(self.point[n, 1])),
                predicted_iou=iou[n],
                stability=stability[n],
                logits=planes[n].copy(),  # not a view that keeps every candidate alive
            )
            for n, code in enumerate(self.rle)
        ]


def halved(logits: Tensor) -> Tensor:
    """Logits as float16, cut at its limits: a wild one stays finite."""
    return logits.clamp(-HALF_LIMIT, HALF_LIMIT).half()


def encode(masks: Tensor) -> list[str]:
    """bool `[N, H, W]` -> counts of COCO compressed RLEs; pycocotools wants each plane in Fortran order."""
    planes = masks.permute(0, 2, 1).contiguous().cpu().numpy().view(np.uint8)
    return [str(code["counts"], "ascii") for code in coco.encode(planes.transpose(2, 1, 0))]
