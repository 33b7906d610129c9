"""Maps of uncertainty: how far each pseudo-mask can be trusted, from stored codes and the image's embedding.

Maps made in one pass with the labels are the bytes that stage uncertainty makes from the stored labels: both start
from the codes. With several images an encoder call the embeddings of the two may differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sum.core.geometry import boxes_to_model, points_to_model
from sum.core.uncertainty import UncertaintyMethod, logits_of, map_codes, refinement, to_codes
from sum.data.labels import Codes, PseudoMask, map_rows
from sum.models.generator import area_at_paper_side
from sum.models.halving import Halving
from sum.models.refiner import Refiner

BATCH = 64  # masks refined at once


@dataclass(frozen=True, slots=True)
class ToMap:
    """An image whose masks are to get maps.

    hw: its original size; codes `[K, L, L]` of SAM's probability; embedding: makes `[1, C, h, w]`, asked for only when
    a mask is to be refined.
    """

    image_id: str
    hw: tuple[int, int]
    masks: Sequence[PseudoMask]
    codes: Codes
    embedding: Callable[[], Tensor]
    lost: str = ""  # why the photo cannot be looked at any more: then no mask gets a map


@dataclass(frozen=True, slots=True)
class MapRows:
    """The rows of an image in an uncertainty shard, and what the shard counts: `maps`, and the sum of their `codes`."""

    rows: list[tuple[Any, ...]]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class MapMaker:
    """From the masks of images to rows of an uncertainty shard."""

    method: UncertaintyMethod
    min_area: float  # px at a 1024 frame; smaller masks get no map
    refiner: Refiner | None  # None for methods of SAM's output alone
    other: Refiner | None = None  # that a discrepancy compares with `refiner`
    batch: Halving = field(default_factory=lambda: Halving(BATCH, "masks"))

    def large(self, areas: Sequence[int], *, hw: tuple[int, int]) -> list[bool]:
        """Which masks of these areas in an image of hw get a map."""
        return [area_at_paper_side(area, hw) >= self.min_area for area in areas]

    @torch.inference_mode()
    def rows(self, images: Sequence[ToMap]) -> list[MapRows]:
        """Of every image; the masks of all share the refiner's batches."""
        chosen = [
            np.array(self.large([m.area for m in image.masks], hw=image.hw), dtype=bool) & (not image.lost)
            for image in images
        ]
        sam = [image.codes[large] for image, large in zip(images, chosen, strict=True)]
        refined, other = sam, None
        if self.refiner is not None and any(map(len, sam)):
            asked = [(image, large) for image, large in zip(images, chosen, strict=True) if large.any()]
            embeddings = torch.cat([image.embedding() for image, _ in asked])
            cuts = np.cumsum([len(codes) for codes in sam])[:-1]
            refined = np.split(_refined(self.refiner, asked, embeddings, batch=self.batch), cuts)
            if self.other is not None:
                other = np.split(_refined(self.other, asked, embeddings, batch=self.batch), cuts)
        return [
            self._of_image(large, sam[n], refined[n], other[n] if other else None) for n, large in enumerate(chosen)
        ]

    def _of_image(self, large: NDArray[np.bool_], sam: Codes, refined: Codes, other: Codes | None) -> MapRows:
        """large `[K]`: which masks have a map; the codes are of those alone."""
        if not large.any():
            return MapRows(map_rows(large.tolist(), refined=None, uncertainty=None), {"maps": 0, "codes": 0})
        compared = None if other is None else torch.from_numpy(other)
        u = map_codes(self.method, torch.from_numpy(sam), torch.from_numpy(refined), compared).numpy()
        filled, doubt = (np.zeros((len(large), *u.shape[1:]), dtype=np.uint8) for _ in range(2))
        filled[large], doubt[large] = refined, u
        rows = map_rows(
            large.tolist(),
            refined=None if self.refiner is None else filled,
            uncertainty=None if self.method is refinement else doubt,
        )
        return MapRows(rows, {"maps": len(sam), "codes": int(u.sum(dtype=np.int64))})


def _refined(
    refiner: Refiner, asked: Sequence[tuple[ToMap, NDArray[np.bool_]]], embeddings: Tensor, *, batch: Halving
) -> Codes:
    """Codes `[K, L, L]` of the refined probabilities of the chosen masks of B images, embeddings `[B, C, h, w]`."""
    device, side = embeddings.device, refiner.core.side
    boxes, points, numbers, planes = list[Tensor](), list[Tensor](), list[int](), list[Codes]()
    for number, (image, large) in enumerate(asked):
        masks = [mask for mask, is_large in zip(image.masks, large.tolist(), strict=True) if is_large]
        boxes.append(boxes_to_model(torch.tensor([mask.box for mask in masks]), hw=image.hw, side=side))
        points.append(points_to_model(torch.tensor([mask.point for mask in masks]), hw=image.hw, side=side))
        numbers += [number] * len(masks)
        planes.append(image.codes[large])
    codes, box, point, index = np.concatenate(planes), torch.cat(boxes), torch.cat(points), torch.tensor(numbers)

    def ask(part: slice) -> list[Codes]:
        sam = logits_of(torch.from_numpy(codes[part]).to(device))[:, None]
        corners, xy = box[part].to(device), point[part].to(device)
        refined = refiner(embeddings, index[part].to(device), sam_logits=sam, box=corners, point=xy)
        return [to_codes(torch.sigmoid(refined.float()))[:, 0].cpu().numpy()]

    return np.concatenate(batch.over(len(codes), ask))
