"""One step over a batch that is gone through in pieces, with one gradient in the end.

Pieces are for memory, image by image or a few at a time; and for students' views, which are trained otherwise than
other images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from sum.data.batches import TrainBatch
from sum.models.mask_chunk import MaskChunk
from sum.models.segmenter import Segmenter
from sum.rounds import Autocast, Backward, Rounds, train_rounds


def even_groups(images: int, parts: int) -> list[list[int]]:
    """Rows of `images` in their order, in at most `parts` groups, as even as can be.

    Without tensors: under the planner's trace they have no values.
    """
    parts = min(parts, images)
    size, more = divmod(images, parts)
    edges = [number * size + min(number, more) for number in range(parts + 1)]
    return [list(range(low, high)) for low, high in pairwise(edges)]


def apart(groups: Sequence[Sequence[int]], views: Sequence[int]) -> list[list[int]]:
    """The same groups, each in two: the rows that are not in `views`, and those that are."""
    own = set(views)
    halves = [[row for row in group if (row in own) is kind] for group in groups for kind in (False, True)]
    return [half for half in halves if half]


def split_images(batch: TrainBatch, groups: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], TrainBatch]]:
    """A piece of the batch for each group of its images; with each piece, which masks it has."""
    where = batch.image_index.tolist()
    for group in groups:
        own = set(group)
        masks = [mask for mask, image in enumerate(where) if image in own]
        yield masks, batch.of_images(list(group), masks)


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

    An image counts the same as in the whole batch, and where the batch has seeds its points are the same. Students'
    views are pieces of their own where `rounds.views` says how they are trained; `loss_consistency` is their part of
    the loss.
    """
    play = partial(train_rounds, model, generator=generator, autocast=autocast, chunk=chunk)
    groups = even_groups(len(batch.image), parts)
    if rounds.views is not None:
        groups = apart(groups, batch.views.rows if batch.views else ())
    if parts == 1 and rounds.views is None:
        log = play(batch, rounds=rounds, backward=backward)
    else:
        log = _add_up(play, batch, groups, rounds=rounds, backward=backward)
    for term in rounds.terms:
        term.end_step()
    return log


def _add_up(
    play: partial[dict[str, Tensor]],
    batch: TrainBatch,
    groups: Sequence[Sequence[int]],
    *,
    rounds: Rounds,
    backward: Backward,
) -> dict[str, Tensor]:
    """The figures of the batch of those of its pieces, each of them played with its share of the loss."""
    log: dict[str, Tensor] = {}
    losses = torch.zeros(len(batch.mask), device=batch.mask.device)
    if rounds.views is not None:
        log["loss_consistency"] = torch.zeros((), device=batch.mask.device)
    of_images = ("loss", "loss_mask", "loss_iou", "loss_consistency", *(f"loss_{term.name}" for term in rounds.terms))
    for rows, piece in split_images(batch, groups):
        images, masks = len(piece.image) / len(batch.image), len(piece.mask) / len(batch.mask)

        def scaled(loss: Tensor, share: float = images) -> None:
            backward(loss * share)

        shares = dict.fromkeys(of_images, images)  # of the IoUs: a mask's
        shares |= {"out_of_memory": 1, "mask_chunk": 1 / len(groups)}
        viewed = rounds.views if piece.views else None
        found = play(piece, rounds=viewed or rounds, backward=scaled)
        losses[rows] = found.pop("mask_losses")
        if viewed:
            found["loss_consistency"] = found["loss"]
        for name, value in found.items():
            log[name] = log.get(name, torch.zeros(())) + value * shares.get(name, masks)
    return log | {"mask_losses": losses}
