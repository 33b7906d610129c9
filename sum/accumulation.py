"""One step over a batch that is too large for the device's memory: image by image or a few at a time, one gradient."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from sum.data.batches import TrainBatch
from sum.models.mask_chunk import MaskChunk
from sum.models.segmenter import Segmenter
from sum.rounds import Autocast, Backward, Rounds, train_rounds


def split_images(batch: TrainBatch, parts: int) -> Iterator[tuple[list[int], TrainBatch]]:
    """The batch in at most `parts` pieces of whole images, as even as can be; with each piece, which masks it has."""
    where = batch.image_index.tolist()
    for rows in torch.arange(len(batch.image)).tensor_split(min(parts, len(batch.image))):
        low, high = int(rows[0]), int(rows[-1]) + 1
        masks = [mask for mask, image in enumerate(where) if low <= image < high]
        yield masks, _piece(batch, slice(low, high), masks)


def _piece(batch: TrainBatch, images: slice, masks: list[int]) -> TrainBatch:
    of_masks = {name: getattr(batch, name)[masks] for name in ("mask", "certainty", "point", "task")}
    return TrainBatch(
        image=batch.image[images],
        hw=batch.hw[images],
        image_index=batch.image_index[masks] - images.start,
        **of_masks,
        image_ids=batch.image_ids[images],
        seed=None if batch.seed is None else batch.seed[masks],
        mask_ids=tuple(batch.mask_ids[mask] for mask in masks if batch.mask_ids),
    )


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
    losses = torch.zeros(len(batch.mask), device=batch.mask.device)
    for rows, piece in split_images(batch, parts):
        images, masks = len(piece.image) / len(batch.image), len(piece.mask) / len(batch.mask)

        def scaled(loss: Tensor, share: float = images) -> None:
            backward(loss * share)

        shares = dict.fromkeys(("loss", "loss_mask", "loss_iou"), images)  # of the IoUs: a mask's
        shares |= {"out_of_memory": 1, "mask_chunk": 1 / min(parts, len(batch.image))}
        found = play(piece, backward=scaled)
        losses[rows] = found.pop("mask_losses")
        for name, value in found.items():
            log[name] = log.get(name, torch.zeros(())) + value * shares.get(name, masks)
    return log | {"mask_losses": losses}
