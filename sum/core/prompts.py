"""Prompts of training: what a simulated user would click or draw, by chance; evaluation's are in sum.core.clicks.

Weighted by certainty (Liu et al., NeurIPS 2024, appendix B.1): the first point or box, then points of the error region.
Points are `(x, y)` pixel indices, boxes `(x0, y0, x1, y1)` with both ends inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

BOOL = {torch.bool, np.dtype(bool)}
NEAR = 1 << 20  # pixels that are looked at at once
BLOCK = 64  # weights that are added up before they are looked at one by one


def sample_points(weights: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one pixel a mask with probability `w_i / sum w`.

    weights: `[B, 1, H, W]`, 0 or more; a pixel of weight 0 is never drawn. The generator may live on another device.
    Returns xy `[B, 2]` float32 and found `[B]` bool, False (and xy 0, 0) where a mask has no weight at all.
    """
    chance = torch.rand(len(weights), generator=generator, device=generator.device, dtype=torch.float64)
    return place_points(weights, chance)


def beside(values: Tensor, like: Tensor) -> Tensor:
    """To the device of `like`; to a GPU without waiting for it."""
    return values.to(like.device, non_blocking=like.device.type != "cpu")


def place_points(weights: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """As `sample_points`, for numbers drawn before: chance `[B]` float64 in [0, 1), on any device."""
    draw = _draw_sparse if _has_values_here(weights) else _draw_dense
    index, found = draw(weights[:, 0], beside(chance, weights))
    return _as_xy(index, found, width=weights.shape[-1]), found


def correction_points(
    prediction: Tensor, target: Tensor, certainty: Tensor, *, chance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one pixel a mask where the prediction is wrong, by certainty, for numbers drawn before.

    prediction, target, certainty: as in `correction_weights`; chance `[B]` float64 in [0, 1), on any device.
    Returns xy `[B, 2]` float32, label `[B]` int64 (of the target there, 1 where nothing is found) and found `[B]` bool,
    False where no error has a certain pixel. The same as `place_points` and `point_labels`, on a CPU many times faster.
    """
    if _has_values_here(certainty):
        index, found = _draw_errors(prediction[:, 0], target[:, 0], certainty[:, 0], chance.to(certainty.device))
        xy = _as_xy(index, found, width=certainty.shape[-1])
    else:
        xy, found = place_points(correction_weights(prediction, target, certainty), chance)
    return xy, torch.where(found, point_labels(target, xy), 1), found


def jitter_boxes(xyxy: Tensor, *, side: int, noise: Tensor, scale: float = 0.1, limit: float = 20.0) -> Tensor:
    """Move each coordinate of a box by its own normal noise, as a hasty user would.

    xyxy: `[B, 4]` in the model frame of `side` pixels; noise: `[B, 4]` standard normal numbers. They move a coordinate
    by `scale` times the box's width (x) or height (y), at most +-`limit` pixels (20 at side 1024: callers scale it).
    Returns float `[B, 4]` inside 0..side - 1, with x0 <= x1 and y0 <= y1.
    """
    box = xyxy.to(torch.promote_types(xyxy.dtype, torch.float32))
    reach = scale * (box[:, 2:] - box[:, :2]).repeat(1, 2)
    moved = (box + (noise.to(box.dtype) * reach).clamp(-limit, limit)).clamp(0, side - 1)
    low, high = torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])
    return torch.cat((low, high), dim=1)


def correction_weights(prediction: Tensor, target: Tensor, certainty: Tensor) -> Tensor:
    """Weights of the next point: the certainty where the prediction is wrong, 0 elsewhere.

    prediction: `[B, 1, H, W]`, bool, 0/1, or logits (cut at 0); target 0 or 1; certainty 0..1, 0 on padding.
    Returns `[B, 1, H, W]` of certainty's type.
    """
    wrong = _cut(prediction, above=0) != _cut(target, above=0.5)
    return torch.where(wrong, certainty, 0)


def point_labels(target: Tensor, xy: Tensor) -> Tensor:
    """Label of each point: 1 where the target is 1, else 0. target `[B, 1, H, W]`, xy `[B, 2]` -> int64 `[B]`."""
    x, y = xy.round().long().unbind(1)
    mask = torch.arange(len(xy), device=xy.device)
    return (target[mask, 0, y, x] > 0.5).long()


def _cut(mask: Any, *, above: float) -> Any:
    """A tensor or an array as it is if bool, else where it is above a number."""
    return mask if mask.dtype in BOOL else mask > above


def _rows(mask: Tensor) -> NDArray[Any]:
    """`[B, H, W]` -> `[B, H * W]`, bool or float."""
    flat = mask.detach().flatten(1)
    return flat.numpy() if flat.dtype == torch.bool else flat.float().numpy()


def _has_values_here(weights: Tensor) -> bool:
    return weights.device.type == "cpu" and not isinstance(weights, FakeTensor)  # the planner's have none


def _as_xy(index: Tensor, found: Tensor, *, width: int) -> Tensor:
    xy = torch.stack((index % width, torch.div(index, width, rounding_mode="floor")), dim=-1)
    return (xy * found[:, None]).float()


def _draw_sparse(weights: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse CDF over the positive pixels. weights `[B, H, W]`, chance `[B]` in [0, 1) -> index `[B]`, found `[B]`."""
    planes = _rows(weights.float())
    return _land(lambda part: planes[part] > 0, planes, chance)


def _draw_errors(guess: Tensor, truth: Tensor, weights: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """As `_draw_sparse`, over the pixels where guess (cut at 0) and truth (cut at 0.5) differ. All `[B, H, W]`."""
    guesses, truths = _rows(guess), _rows(truth)
    return _land(
        lambda part: _cut(guesses[part], above=0) != _cut(truths[part], above=0.5), _rows(weights.float()), chance
    )


def _land(
    region: Callable[[slice], NDArray[np.bool_]], weights: NDArray[np.float32], chance: Tensor
) -> tuple[Tensor, Tensor]:
    """Where in its region (of some masks: `[n, P]`) each mask's chance falls: index `[B]`, 0 where nothing is found,
    and found `[B]`. weights `[B, P]`, 0 or more.

    An error region is about 1 % of the image: on a CPU this is many times faster than to sum over all pixels. A few
    masks at a time stay in the cache; numpy, because it finds the pixels 5 times faster than torch; float64, because a
    float32 sum over 10^6 weights stops growing.
    """
    count, area = weights.shape
    index, found = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
    shares, step = chance.tolist(), max(1, NEAR // max(1, area))
    for start in range(0, count, step):
        part = slice(start, start + step)
        spot = region(part).ravel().nonzero()[0]
        values = weights[part].ravel().take(spot).astype(np.float64)
        edges = spot.searchsorted(np.arange(step + 1) * area).tolist()
        for mask, (begin, end) in enumerate(pairwise(edges)):
            if begin < end:
                place, found[start + mask] = _fall(values[begin:end], shares[start + mask])
                index[start + mask] = (spot[begin + place] - mask * area) * found[start + mask]
    return torch.from_numpy(index), torch.from_numpy(found)


def _fall(weights: NDArray[np.float64], share: float) -> tuple[int, bool]:
    """Where the running sum of weights `[K]` passes a share of the whole; False: they are all 0.

    Of many weights first the block, then its pixel: a running sum waits for each addition, the sums of blocks do not.
    """
    block = 1 if len(weights) <= BLOCK**2 else BLOCK
    sums = weights if block == 1 else np.add.reduceat(weights, np.arange(0, len(weights), block))
    total = sums.cumsum()
    if total[-1] <= 0:
        return 0, False
    aim = share * float(total[-1])
    index = _passed(total, aim)
    if block == 1:
        return index, True
    rest = aim - (float(total[index - 1]) if index else 0.0)
    begin = index * block
    return begin + _passed(weights[begin : begin + block].cumsum(), rest), True


def _passed(total: NDArray[np.float64], aim: float) -> int:
    """Where a running sum `[K]`, in the end above 0 or NaN, passes aim; some index below K for any numbers.

    The 0 stands first: it is what `max` gives for NaN. NaN is sorted behind every number, and the loss will tell of it.
    """
    last = math.nextafter(float(total[-1]), 0.0)  # rounding must not carry the aim past the last weight
    return int(total.searchsorted(min(max(0.0, aim), last), side="right"))


def _draw_dense(weights: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """The same law as `_draw_sparse` without waiting for a count of the pixels: first the row, then the pixel."""
    line = weights.clamp(min=0).sum(dim=2, dtype=torch.float64)
    y, rest = _invert(line, chance[:, None] * line.sum(dim=1, keepdim=True))
    row = weights[torch.arange(len(weights), device=weights.device), y].clamp(min=0).double()
    x, _ = _invert(row, rest)
    return y * weights.shape[2] + x, (line > 0).any(dim=1)


def _invert(weights: Tensor, aim: Tensor) -> tuple[Tensor, Tensor]:
    """Where the running sum of weights `[B, K]` passes aim `[B, 1]`: index `[B]`, and what is left of the aim."""
    total = weights.cumsum(dim=1)
    last = torch.nextafter(total[:, -1:], torch.zeros_like(aim))  # rounding must not carry the aim past the last weight
    aim = torch.minimum(aim.clamp(min=0), last)
    index = torch.searchsorted(total, aim, right=True).clamp(max=weights.shape[1] - 1)
    return index[:, 0], aim - (total - weights).gather(1, index)
