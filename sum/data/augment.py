"""Augmentation of training images, off by default as in the paper: horizontal flips and scale jitter.

What is drawn comes from the generator that draws an image's masks: a function of seed, step and place in the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sum.data.batches import ImageSource, Sample, image_part
from sum.data.samples import replaced


@dataclass(frozen=True, slots=True)
class Move:
    """x' = ax * x + bx, y' = ay * y + by, in continuous pixels of the model frame; then hw of the frame is image."""

    ax: float
    bx: float
    ay: float
    by: float
    hw: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Augmented:
    """An image source whose samples are flipped with odds `flip` and resized by a factor of `scale` (low, high)."""

    source: ImageSource
    flip: float
    scale: tuple[float, float]

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int, *, masks: int, rng: np.random.Generator) -> Sample:
        """The source's sample, moved."""
        plain = self.source.sample(index, masks=masks, rng=rng)
        side, (height, width) = plain.image.shape[-1], plain.hw.tolist()
        return moved(plain, draw_move((height, width), side=side, flip=self.flip, scale=self.scale, rng=rng))


def augmented(sources: list[ImageSource], *, flip: float, scale: tuple[float, float]) -> list[ImageSource]:
    """The sources with the changes of images that are asked for; themselves when none is."""
    if not flip and scale[0] == scale[1] == 1:
        return sources
    return [Augmented(source=source, flip=flip, scale=scale) for source in sources]


def draw_move(
    hw: tuple[int, int], *, side: int, flip: float, scale: tuple[float, float], rng: np.random.Generator
) -> Move:
    """A flip and a factor, even in its logarithm, of an image of hw in a frame of `side`.

    An image larger than the frame is cut at a place drawn evenly.
    """
    chance, where, place = rng.random(), rng.random(), rng.random(2)
    factor = scale[0] * (scale[1] / scale[0]) ** where
    large = [max(1, round(length * factor)) for length in hw]
    cut = [math.floor(at * (max(0, length - side) + 1)) for at, length in zip(place, large, strict=True)]
    ay, ax = (new / old for new, old in zip(large, hw, strict=True))
    inner = (min(large[0], side), min(large[1], side))
    if chance < flip:
        return Move(-ax, large[1] - cut[1], ay, -cut[0], inner)
    return Move(ax, -cut[1], ay, -cut[0], inner)


def moved(sample: Sample, move: Move) -> Sample:
    """Image, masks, certainty and points of a sample under one move.

    A mask of which nothing is left is dropped; if that is all of them, the sample stays as it is. A point that left its
    mask goes to the pixel deepest inside it.
    """
    hw: tuple[int, int] = (int(sample.hw[0]), int(sample.hw[1]))
    if (move.ax, move.ay, move.bx, move.by) == (1, 1, 0, 0):
        return sample
    side, loss_side = sample.image.shape[-1], sample.mask.shape[-1]
    part = image_part(move.hw, side=side, loss_side=loss_side)
    mask = torch.stack([_warp(plane, move, hw=hw, side=side) for plane in sample.mask.float()])
    kept = (mask > 0.5) & (part > 0)
    rows = kept.flatten(1).any(1)
    if not rows.any():
        return sample
    certainty = torch.stack([_warp(plane, move, hw=hw, side=side) for plane in sample.certainty[rows]])
    image = torch.stack([_warp(plane, move, hw=hw, side=side) for plane in sample.image])
    image[:, move.hw[0] :], image[:, :, move.hw[1] :] = 0, 0
    xy = (sample.point[rows] + 0.5) * torch.tensor([move.ax, move.ay]) + torch.tensor([move.bx, move.by]) - 0.5
    target, xy = replaced(kept[rows], xy, kept[rows], side=side)
    names = tuple(name for name, left in zip(sample.mask_ids, rows.tolist(), strict=False) if left)
    hw_now = torch.tensor(move.hw)
    return Sample(image, hw_now, target, certainty * part, xy, sample.task, image_id=sample.image_id, mask_ids=names)


def _warp(plane: Tensor, move: Move, *, hw: tuple[int, int], side: int) -> Tensor:
    """A plane `[P, P]` over the frame, bilinear. hw: what of the frame of `side` is image; its edge goes on beyond."""
    size, ratio = plane.shape[-1], plane.shape[-1] / side
    source = plane[: math.ceil(hw[0] * ratio), : math.ceil(hw[1] * ratio)].numpy()
    table = np.array(
        [
            [move.ax, 0, 0.5 * move.ax + ratio * move.bx - 0.5],
            [0, move.ay, 0.5 * move.ay + ratio * move.by - 0.5],
        ]
    )
    found: NDArray[np.generic] = cv2.warpAffine(
        np.ascontiguousarray(source), table, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return torch.from_numpy(found)
