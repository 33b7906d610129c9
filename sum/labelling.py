"""From photos to rows of the label store: SAM's masks, and the embeddings in which they were found.

SAM's probabilities are kept as codes of one byte, and everything behind them starts from the codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from sum.core.uncertainty import to_codes
from sum.data.ahead import Photo
from sum.data.labels import Codes, PseudoMask
from sum.models.generator import Batches, embed_all, generate_all
from sum.models.halving import Halving
from sum.models.segmenter import Segmenter
from sum.models.sieve import GeneratorSettings, Precision


@dataclass(frozen=True, slots=True)
class Labelled:
    """The K masks of an image; codes `[K, L, L]` of SAM's probability; the image's embedding."""

    masks: list[PseudoMask]
    codes: Codes
    embedding: Tensor


def embeddings_of(model: Segmenter, photos: Sequence[Photo], *, precision: Precision, batch: Halving) -> list[Tensor]:
    """`[1, C, h, w]` of each photo, the same in both stages when images go one by one."""
    sizes = [(photo.image.shape[0], photo.image.shape[1]) for photo in photos]
    return embed_all(model, [photo.frame for photo in photos], hw=sizes, precision=precision, batch=batch)


@torch.inference_mode()
def label(
    model: Segmenter, photos: Sequence[Photo], ids: Sequence[str], *, settings: GeneratorSettings, batches: Batches
) -> list[Labelled]:
    """SAM's masks of some photos whose points share batches; ids: of the images; batches: how much fits."""
    embeddings = embeddings_of(model, photos, precision=settings.precision, batch=batches.views)
    images = [photo.image for photo in photos]
    found = generate_all(model, images, settings=settings, embeddings=torch.cat(embeddings), batches=batches)
    wanted = [part.name for part in fields(PseudoMask)][2:]
    labelled = []
    for image_id, masks, embedding in zip(ids, found, embeddings, strict=True):
        rows = [PseudoMask(image_id, n, *(getattr(mask, name) for name in wanted)) for n, mask in enumerate(masks)]
        codes = np.zeros((len(masks), model.low_side, model.low_side), dtype=np.uint8)
        for plane, mask in zip(codes, masks, strict=True):
            plane[:] = to_codes(torch.sigmoid(torch.from_numpy(mask.logits).float())).numpy()
        labelled.append(Labelled(rows, codes, embedding))
    return labelled
