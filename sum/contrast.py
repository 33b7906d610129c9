"""U2PL's contrastive term on the image embedding, and its bank of keys of other images (Wang et al., CVPR 2022).

A mask's object is a class of its own: its certain positions are pulled towards their mean and pushed away from
positions that are surely not of it, in its image and, from the bank, in images seen before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sum.core.chance import uniform
from sum.core.contrast import draw_places, info_nce
from sum.data.batches import TrainBatch
from sum.rounds import valid_pixels

WHOLE = 0.999  # of a cell, but for rounding
CHANCES = 1 << 12  # where its numbers begin in a mask's stream of random numbers: beyond those of the rounds


@dataclass(frozen=True, kw_only=True)
class ContrastOptions:
    """Numbers of the term; the first three are U2PL's, whose banks of a class hold 30,000 keys."""

    temperature: float = 0.5
    anchors: int = 256  # of a mask, drawn with repetition
    negatives: int = 50  # of an anchor, drawn with repetition
    weight: float = 1.0
    theta: float = 0.6  # a position is reliable when its certainty is above
    keys: int = 16  # that an image leaves in the bank
    bank: int = 1024  # keys of a task; a multiple of `keys`


class KeyBank:
    """The newest keys of each task row, first in first out. Its tensors are part of the training's state."""

    def __init__(self, tasks: int, *, size: int, channels: int, device: torch.device) -> None:
        """size: keys of a task row at most."""
        self.keys = torch.zeros(tasks, size, channels, device=device)
        self.count = torch.zeros(tasks, dtype=torch.int64, device=device)  # ever put in

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """By name; changed in place."""
        return {"bank.keys": self.keys, "bank.count": self.count}

    def of_tasks(self, task: Tensor) -> tuple[Tensor, Tensor]:
        """Keys `[N, size, C]` of task rows `[N]`, and which of them are there yet: bool `[N, size]`."""
        there = torch.arange(self.keys.shape[1], device=task.device) < self.count[task][:, None]
        return self.keys[task], there

    def put(self, keys: Tensor, task: Tensor, good: Tensor) -> None:
        """Put in the keys `[B, K, C]` of images of task rows `[B]`, one image after the other; good: bool `[B]`, the
        others are left out. K divides the size.
        """
        size, step = self.keys.shape[1], torch.arange(keys.shape[1], device=keys.device)
        for number in range(len(keys)):  # slices: a number read from a device would be waited for
            row, fit = task[number : number + 1], good[number : number + 1]
            place = (self.count[row] + step) % size
            before = self.keys[row, place]
            self.keys[row, place] = torch.where(fit[:, None], keys[number], before)
            self.count[row] += fit * len(step)


def regions(batch: TrainBatch, *, grid: tuple[int, int], theta: float) -> tuple[Tensor, Tensor]:
    """Which positions of the embedding's grid (h, w) are surely of each mask, and which surely are not: `[N, h * w]`.

    Of it: more than half covered, and certain above theta in the mean. Not of it: image all over and not touched by the
    mask, certain or not: an uncertain position is still no part of an object that ends elsewhere (U2PL's unreliable
    negatives). Positions that are neither teach nothing.
    """
    cover, certainty, valid = (
        F.adaptive_avg_pool2d(plane.float(), grid).flatten(1)
        for plane in (batch.mask, batch.certainty, valid_pixels(batch))
    )
    return (cover > 0.5) & (certainty > theta), (cover == 0) & (valid > WHOLE)


class PixelContrast:
    """The term: see sum.rounds.Term. Masks and certainty come down to the embedding's grid by their means."""

    name = "contrast"

    def __init__(
        self,
        bank: KeyBank,
        *,
        options: ContrastOptions,
        ranks: int = 1,
        gather: Callable[[Tensor], Tensor] = lambda own: own,
    ) -> None:
        """gather: `[n, ...]` of each of the `ranks` processes -> `[ranks * n, ...]`, in their order."""
        self.bank, self.options = bank, options
        self._gather, self._ranks = gather, ranks
        self._new: list[tuple[Tensor, Tensor, Tensor]] = []  # keys, task, good of the images of this step so far

    def loss(self, embedding: Tensor, batch: TrainBatch, *, seeds: Tensor, share: Tensor) -> Tensor:
        """The weighted loss of some masks; one without a reliable position, or without a key, costs 0."""
        asked = self.options
        anchor, background = regions(batch, grid=(embedding.shape[2], embedding.shape[3]), theta=asked.theta)
        flat = embedding.flatten(2).transpose(1, 2)  # [B, P, C]
        own = flat.detach().float()[batch.image_index]
        stored, there = self.bank.of_tasks(batch.task)
        keys, allowed = torch.cat([own, stored], 1), torch.cat([background, there], 1)
        drawn = uniform(seeds, start=CHANCES, count=asked.anchors * (1 + asked.negatives))
        spots, reliable = draw_places(anchor, drawn[:, : asked.anchors])
        others, known = draw_places(allowed, drawn[:, asked.anchors :])
        inside = anchor.float()
        mean = (inside[:, None] @ own)[:, 0] / inside.sum(1, keepdim=True).clamp(min=1)
        each = info_nce(
            flat[batch.image_index[:, None], spots],
            mean,
            keys,
            others.view(len(spots), asked.anchors, asked.negatives),
            temperature=asked.temperature,
        )
        return asked.weight * (share * torch.where(reliable & known, each, torch.zeros_like(each))).sum()

    @torch.no_grad()
    def remember(self, embedding: Tensor, batch: TrainBatch, *, seeds: Tensor) -> None:
        """Take aside keys that surely are not of the first mask of each image; `end_step` puts them into the bank."""
        images = torch.arange(len(batch.image), device=embedding.device)
        first = (batch.image_index[None] == images[:, None]).int().argmax(1)
        masks = replace(batch, image_index=images, seed=None, mask_ids=(), **_of_masks(batch, first))
        _, background = regions(masks, grid=(embedding.shape[2], embedding.shape[3]), theta=self.options.theta)
        start = CHANCES + self.options.anchors * (1 + self.options.negatives)
        places, some = draw_places(background, uniform(seeds[first], start=start, count=self.options.keys))
        keys = embedding.detach().flatten(2).transpose(1, 2).float()[images[:, None], places]
        self._new.append((keys, batch.task[first], some & keys.isfinite().flatten(1).all(1)))

    def end_step(self) -> None:
        """Put the step's keys of all processes into the bank, in the order of the images of the whole batch."""
        keys, task, good = (torch.cat(parts) for parts in zip(*self._new, strict=True))
        self._new.clear()
        self.bank.put(self._in_order(keys), self._in_order(task), self._in_order(good.to(torch.uint8)) > 0)

    def _in_order(self, own: Tensor) -> Tensor:
        """`[B, ...]` of each process -> those of the whole batch, whose images the processes have in turn."""
        every = self._gather(own.contiguous()).view(self._ranks, *own.shape)
        return every.transpose(0, 1).reshape(-1, *own.shape[1:])


def _of_masks(batch: TrainBatch, rows: Tensor) -> dict[str, Any]:
    return {name: getattr(batch, name)[rows] for name in ("mask", "certainty", "point", "task")}
