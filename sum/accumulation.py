"""One step over a batch that is too large for the device's memory: image by image or a few at a time, one gradient."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from sum.data.batches import TrainBatch
from sum.models.mask_chunk import MaskChunk
from sum.models.segmenter import Segmenter
from sum.rounds import Autocast, Backward, Rounds, train_rounds


def split_images(batch: TrainBatch, parts: int) -> list[TrainBatch]:
    """The batch in at most `parts` pieces of whole images, as even as can be."""
    pieces = []
    for rows in torch.arange(len(batch.image), device=batch.image.device).tensor_split(min(parts, len(batch.image))):
        own = torch.isin(batch.image_index, rows)
        masks = {name: getattr(batch, name)[own] for name in ("mask", "certainty", "point", "task")}
        index = batch.image_index[own] - rows[0]
        seed = None if batch.seed is None else batch.seed[own]
        pieces.append(TrainBatch(image=batch.image[rows], hw=batch.hw[rows], image_index=index, **masks, seed=seed))
    return pieces


def train_in_parts(
    model: Segmenter,
    batch: TrainBatch,
    *,
    parts: int,
    rounds: Rounds,
    generator: torch.Generator,
    backward: Backward,
    autocast: Autocast = nullcontext,
    chunk: MaskChunk | None = None,
) -> dict[str, Tensor]:
    """`train_rounds` over a batch in `parts` pieces: the gradient of the whole batch, the memory of one piece.

    An image counts the same as in the whole batch, and where the batch has seeds its points are the same.
    """
    play = partial(train_rounds, model, rounds=rounds, generator=generator, autocast=autocast, chunk=chunk)
    if parts == 1:
        return play(batch, backward=backward)
    log: dict[str, Tensor] = {}
    for piece in split_images(batch, parts):
        images, masks = len(piece.image) / len(batch.image), len(piece.mask) / len(batch.mask)

        def scaled(loss: Tensor, share: float = images) -> None:
            backward(loss * share)

        shares = dict.fromkeys(("loss", "loss_mask", "loss_iou"), images)  # of the IoUs: a mask's
        shares |= {"out_of_memory": 1, "mask_chunk": 1 / parts}
        for name, value in play(piece, backward=scaled).items():
            log[name] = log.get(name, torch.zeros(())) + value * shares.get(name, masks)
    return log
