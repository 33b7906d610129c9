"""From photos to rows of the label store: SAM's masks, and how far each can be trusted. One encoder call an image.

SAM's probabilities are kept as codes of one byte, and everything behind them starts from the codes: maps made in one
pass with the labels are the bytes that stage uncertainty makes from the stored labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sum.core.geometry import boxes_to_model, points_to_model
from sum.core.uncertainty import UncertaintyMethod, logits_of, map_codes, refinement, to_codes
from sum.data.ahead import Photo
from sum.data.labels import Codes, PseudoMask, map_rows
from sum.models.generator import GeneratorSettings, Precision, area_at_paper_side, embed, generate
from sum.models.halving import PromptBatch
from sum.models.refiner import Refiner
from sum.models.segmenter import Segmenter

BATCH = 64  # masks refined at once


@dataclass(frozen=True, slots=True)
class Labelled:
    """The K masks of an image; codes `[K, L, L]` of SAM's probability; the image's embedding."""

    masks: list[PseudoMask]
    codes: Codes
    embedding: Tensor


def embedding_of(model: Segmenter, photo: Photo, *, precision: Precision) -> Tensor:
    """`[1, C, h, w]` of a photo, the same in both stages."""
    hw = (photo.image.shape[0], photo.image.shape[1])
    return embed(model, photo.frame, hw=hw, precision=precision)


@torch.inference_mode()
def label(
    model: Segmenter, photo: Photo, *, image_id: str, settings: GeneratorSettings, batch: PromptBatch
) -> Labelled:
    """SAM's masks of one photo; batch: how many prompts fit, remembered over photos."""
    embedding = embedding_of(model, photo, precision=settings.precision)
    found = generate(model, photo.image, settings=settings, embedding=embedding, batch=batch)
    wanted = [part.name for part in fields(PseudoMask)][2:]
    masks = [PseudoMask(image_id, n, *(getattr(mask, name) for name in wanted)) for n, mask in enumerate(found)]
    codes = np.zeros((len(found), model.low_side, model.low_side), dtype=np.uint8)
    for plane, mask in zip(codes, found, strict=True):
        plane[:] = to_codes(torch.sigmoid(torch.from_numpy(mask.logits).float())).numpy()
    return Labelled(masks, codes, embedding)


@dataclass(frozen=True, slots=True)
class MapMaker:
    """From the masks of an image to rows of an uncertainty shard."""

    method: UncertaintyMethod
    min_area: float  # px at a 1024 frame; smaller masks get no map
    refiner: Refiner | None  # None for methods of SAM's output alone
    other: Refiner | None = None  # that a discrepancy compares with `refiner`

    def large(self, areas: Sequence[int], *, hw: tuple[int, int]) -> list[bool]:
        """Which masks of these areas in an image of hw get a map."""
        return [area_at_paper_side(area, hw) >= self.min_area for area in areas]

    @torch.inference_mode()
    def rows(
        self, masks: Sequence[PseudoMask], codes: Codes, *, hw: tuple[int, int], embedding: Callable[[], Tensor]
    ) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
        """The rows, and what a shard counts: `maps`, and the sum of their `codes`.

        codes `[K, L, L]` of SAM's probability; hw: the image's original size; embedding: makes `[1, C, h, w]`, asked
        for only when a mask is to be refined.
        """
        large = np.array(self.large([mask.area for mask in masks], hw=hw), dtype=bool)
        if not large.any():
            return map_rows(large.tolist(), refined=None, uncertainty=None), {"maps": 0, "codes": 0}
        filled, doubt = np.zeros_like(codes), np.zeros_like(codes)
        chosen = [mask for mask, is_large in zip(masks, large.tolist(), strict=True) if is_large]
        sam, other = codes[large], None
        if self.refiner is None:
            refined = sam
        else:
            image = embedding()
            refined = _refined(self.refiner, chosen, sam, hw=hw, embedding=image)
            if self.other is not None:
                other = torch.from_numpy(_refined(self.other, chosen, sam, hw=hw, embedding=image))
        u = map_codes(self.method, torch.from_numpy(sam), torch.from_numpy(refined), other).numpy()
        filled[large], doubt[large] = refined, u
        rows = map_rows(
            large.tolist(),
            refined=None if self.refiner is None else filled,
            uncertainty=None if self.method is refinement else doubt,
        )
        return rows, {"maps": len(chosen), "codes": int(u.sum(dtype=np.int64))}


def _refined(
    refiner: Refiner, masks: Sequence[PseudoMask], codes: Codes, *, hw: tuple[int, int], embedding: Tensor
) -> Codes:
    """Codes `[K, L, L]` of the refined probabilities."""
    device, side = embedding.device, refiner.core.side
    box = boxes_to_model(torch.tensor([mask.box for mask in masks]), hw=hw, side=side)
    point = points_to_model(torch.tensor([mask.point for mask in masks]), hw=hw, side=side)
    pieces = []
    for start in range(0, len(masks), BATCH):
        part = slice(start, start + BATCH)
        sam = logits_of(torch.from_numpy(codes[part]).to(device))[:, None]
        corners, xy = box[part].to(device), point[part].to(device)
        index = torch.zeros(len(sam), dtype=torch.int64, device=device)
        refined = refiner(embedding, index, sam_logits=sam, box=corners, point=xy)
        pieces.append(to_codes(torch.sigmoid(refined.float()))[:, 0].cpu().numpy())
    return np.concatenate(pieces)
