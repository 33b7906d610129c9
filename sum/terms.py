"""Losses beside those of the masks: what one must be, and how its gradient joins that of a batch's rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sum.data.batches import TrainBatch
from sum.models.mask_chunk import needs_room


class Term(Protocol):
    """One more loss, of the image embedding."""

    name: str

    def loss(self, embedding: Tensor, batch: TrainBatch, *, seeds: Tensor, share: Tensor) -> Tensor:
        """What some masks add to the loss of their batch, weight and all: a scalar.

        embedding: `[B, C, h, w]`; seeds, share: `[n]`, of each of the batch's masks, what it counts.
        """
        ...

    def remember(self, embedding: Tensor, batch: TrainBatch, *, seeds: Tensor) -> None:
        """Called once for the images of an embedding with all their masks: for what later steps are to know."""
        ...

    def end_step(self) -> None:
        """All images of this process's step were looked at."""
        ...


def add_terms(
    terms: Sequence[Term],
    embedding: Tensor,
    batch: TrainBatch,
    *,
    parts: Sequence[slice],
    seeds: Tensor,
    share: Tensor,
    backward: Callable[[Tensor], None],
    log: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Add the gradients of terms by the embedding, some masks at a time (`parts`).

    log: the batch's figures so far. Returns those that change or are new: loss, and the part of each term.
    """
    found = {"loss": log["loss"]}
    for term in terms:
        total = torch.zeros((), device=share.device)
        with needs_room(f"the {term.name} of the image embedding"):
            for part in parts:
                loss = term.loss(embedding, batch.masks(part), seeds=seeds[part], share=share[part])
                backward(loss)
                total = total + loss.detach()
            term.remember(embedding, batch, seeds=seeds)
        found |= {"loss": found["loss"] + total, f"loss_{term.name}": total}
    return found
