"""Where people disagree about boundaries, and whether numbers go with it. Plain numpy.

Annotations are label maps `[H, W]`: pixels of one region share a number, which means nothing beyond its map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage, stats

Flags = NDArray[np.bool_]
Real = NDArray[np.float64]


def boundary(labels: NDArray[Any]) -> Flags:
    """Pixels with a 4-neighbour of another label. `[H, W]` -> bool `[H, W]`; the image border is none."""
    found = np.zeros(labels.shape, dtype=bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    found[1:] |= down
    found[:-1] |= down
    found[:, 1:] |= across
    found[:, :-1] |= across
    return found


def near(flags: Flags, distance: float) -> Flags:
    """Pixels at most `distance` px (Euclidean) from a set one; all False when none is set."""
    if not flags.any():
        return np.zeros_like(flags)
    found: Flags = ndimage.distance_transform_edt(~flags) <= distance
    return found


def denial(annotations: Sequence[NDArray[Any]], *, tolerance: float) -> Real:
    """Share of annotators without a boundary within `tolerance` px of a pixel: 0 all draw one there, 1 nobody does."""
    found: Real = 1 - np.mean([near(boundary(labels), tolerance) for labels in annotations], axis=0)
    return found


def pearson(first: ArrayLike, second: ArrayLike) -> float:
    """Linear correlation, -1..1; NaN when one side does not vary or there are fewer than three values."""
    x, y = (np.asarray(side, dtype=np.float64).ravel() for side in (first, second))
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / np.sqrt((x @ x) * (y @ y)))


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Correlation of ranks, ties at their mean rank; NaN as `pearson`."""
    return pearson(stats.rankdata(np.ravel(first)), stats.rankdata(np.ravel(second)))


def permutation_p(
    first: ArrayLike, second: ArrayLike, groups: ArrayLike, *, rounds: int = 2000, seed: int = 0
) -> float:
    """How often a rank correlation as high as this one comes by chance, when `second` is shuffled within its groups.

    groups: `[N]`, the image of each value: that some images are harder than others is no evidence. Returns
    (1 + hits) / (1 + rounds).
    """
    x, y = stats.rankdata(np.ravel(first)), stats.rankdata(np.ravel(second))
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(member, kind="stable")
    x, y, member = x[order], y[order], member[order]
    rng, observed, hits = np.random.default_rng(seed), pearson(x, y), 0
    for _ in range(rounds):
        shuffled = y[np.lexsort((rng.random(len(y)), member))]
        hits += pearson(x, shuffled) >= observed - 1e-12
    return (1 + hits) / (1 + rounds)
