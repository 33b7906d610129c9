"""One step over a batch that is too large for the device's memory: image by image or a few at a time, one gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from sum.data.batches import TrainBatch
from sum.models.segmenter import Segmenter
from sum.rounds import Backward, Rounds, train_rounds


def split_images(batch: TrainBatch, parts: int) -> list[TrainBatch]:
    """The batch in at most `parts` pieces of whole images, as even as can be."""
    pieces = []
    for rows in torch.arange(len(batch.image), device=batch.image.device).tensor_split(min(parts, len(batch.image))):
        own = torch.isin(batch.image_index, rows)
        masks = {name: getattr(batch, name)[own] for name in ("mask", "certainty", "point", "task")}
        index = batch.image_index[own] - rows[0]
        pieces.append(TrainBatch(image=batch.image[rows], hw=batch.hw[rows], image_index=index, **masks))
    return pieces


def train_in_parts(
    model: Segmenter,
    batch: TrainBatch,
    *,
    parts: int,
    rounds: Rounds,
    generator: torch.Generator,
    backward: Backward,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Tensor]:
    """`train_rounds` over a batch in `parts` pieces: the gradient of the whole batch, the memory of one piece.

    An image counts the same as in the whole batch. The pieces draw one after the other: their points are not those
    of the whole batch.
    """
    if parts == 1:
        return train_rounds(model, batch, rounds=rounds, generator=generator, backward=backward, autocast=autocast)
    log: dict[str, Tensor] = {}
    for piece in split_images(batch, parts):
        images, masks = len(piece.image) / len(batch.image), len(piece.mask) / len(batch.mask)

        def scaled(loss: Tensor, share: float = images) -> None:
            backward(loss * share)

        found = train_rounds(model, piece, rounds=rounds, generator=generator, backward=scaled, autocast=autocast)
        for name, value in found.items():
            log[name] = log.get(name, torch.zeros_like(value)) + value * (images if name == "loss" else masks)
    return log
