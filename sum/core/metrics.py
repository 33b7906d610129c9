"""How good a mask is, one value a mask, and how sure a mean over masks is. Plain numpy.

Masks are bool `[H, W]` (any number: nonzero is set); logits must be cut before they come here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sum.core.bands import boundary_band, packed

Mask = NDArray[np.bool_] | NDArray[np.uint8]

CHUNK = 1 << 22  # resampled cluster counts held at once: 32 MB


def iou(pred: Mask, truth: Mask) -> float:
    """Intersection over union, 0..1. pred, truth: `[H, W]`; two empty masks agree: 1."""
    first, second = _flags(pred), _flags(truth)
    both = np.count_nonzero(first & second)
    either = np.count_nonzero(first) + np.count_nonzero(second) - both
    return both / either if either else 1.0


def boundary_iou(pred: Mask, truth: Mask, *, ratio: float = 0.02) -> float:
    """IoU of the two masks' inner boundary bands, 0..1; two empty masks agree: 1.

    pred, truth: `[H, W]` of the whole image: the band is `ratio` times its diagonal wide, at least 1 px, and the image
    border counts as boundary. Equal to boundary-iou-api (Cheng et al. 2021), computed on the box around both masks.
    """
    height, width = truth.shape
    dilation = max(1, round(ratio * float(np.hypot(height, width))))
    first, second = packed(_flags(pred)), packed(_flags(truth))
    either = first | second
    rows, columns = np.flatnonzero(either.any(axis=1)), np.flatnonzero(either.any(axis=0))
    if not len(rows):
        return 1.0
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    first, second = boundary_band(first[box], dilation), boundary_band(second[box], dilation)
    return int(np.bitwise_count(first & second).sum()) / int(np.bitwise_count(first | second).sum())


def clicks_needed(ious: Sequence[float], threshold: float) -> int | None:
    """Number of clicks until the IoU first reaches `threshold`; None if it never does.

    ious: after click 1, 2, ... of one mask. Reaching it with the very last click counts.
    """
    return next((click for click, value in enumerate(ious, start=1) if value >= threshold), None)


def bootstrap_interval(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Mean of one value a mask, and its interval when whole images are drawn again with replacement.

    values: `[N]`; clusters: `[N]` image of each value, numbers or strings: masks of an image are not independent.
    Returns (mean, low, high), the percentile interval of `level`. Every mask weighs the same.
    """
    data = np.asarray(values, dtype=np.float64)
    if not data.size:
        raise ValueError("bootstrap_interval: no values to average")
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    if member.shape != data.shape:
        raise ValueError(f"bootstrap_interval: {data.size} values, {member.size} clusters")
    sums, counts = np.bincount(member, weights=data), np.bincount(member)
    means = _resampled_means(sums, counts, resamples=resamples, rng=np.random.default_rng(seed))
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2))
    return float(data.mean()), float(low), float(high)


def paired_interval(
    first: ArrayLike, second: ArrayLike, clusters: ArrayLike, **options: Any
) -> tuple[float, float, float]:
    """`bootstrap_interval` of the differences first - second, mask by mask: is one method better on the same masks?"""
    return bootstrap_interval(np.subtract(first, second), clusters, **options)


def _flags(mask: Mask) -> NDArray[np.bool_]:
    return np.ascontiguousarray(mask, dtype=bool)


def _resampled_means(
    sums: NDArray[Any], counts: NDArray[Any], *, resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means of `resamples` draws of K clusters out of K. sums, counts: `[K]` of each cluster."""
    size = len(sums)
    step = max(1, CHUNK // size)
    means = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        draws = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        times = np.bincount(draws.ravel(), minlength=rows * size).reshape(rows, size)
        means.append((times @ sums) / (times @ counts))
    return np.concatenate(means)
