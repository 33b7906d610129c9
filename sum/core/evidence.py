"""Is what a method doubts wrong, and what it trusts right? Functions on counts of pixels, exact and of flat memory.

Uncertainties are bytes (u = code / 255), so 256 pairs of counts hold all there is to know of any number of pixels:
counts `[256, 2]` int64, a row a code, the columns wrong and right. They add up over masks, images and tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

Counts = NDArray[np.int64]
Real = NDArray[np.float64]

CODES = 256
CUTS = (0.6, 0.8)  # certainties at which the paper tells accuracies (3.2.3)
BINS = 15  # of the reliability curve and ECE: Guo et al., On Calibration of Modern Neural Networks, ICML 2017


@dataclass(frozen=True, slots=True)
class Split:
    """Pixels cut at a certainty; an accuracy is NaN where a side has no pixel."""

    certain_share: float
    certain_accuracy: float
    uncertain_accuracy: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """The bins that hold pixels, by rising value: `[K]` each."""

    stated: Real  # mean certainty or probability
    found: Real  # accuracy, or share of true pixels
    pixels: Counts


def count_codes(codes: NDArray[np.uint8], right: NDArray[np.bool_], where: NDArray[np.bool_]) -> Counts:
    """Counts `[256, 2]` of the pixels `where` is True. All arrays of one shape."""
    pairs = 2 * codes[where].astype(np.int64) + right[where]
    return np.bincount(pairs, minlength=2 * CODES).reshape(CODES, 2).astype(np.int64)


def split_at(counts: Counts, cut: float) -> Split:
    """Accuracy of pixels of certainty 1 - code / 255 above `cut` and of the others."""
    sure = np.arange(CODES) < round(CODES - 1 - (CODES - 1) * cut, 9)
    inside, outside = counts[sure].sum(0), counts[~sure].sum(0)
    total = counts.sum()
    share = float(inside.sum() / total) if total else np.nan
    return Split(share, _accuracy(inside), _accuracy(outside))


def risk_coverage(counts: Counts) -> tuple[Real, Real]:
    """Share of pixels kept when the most certain come first, and share of wrong ones among them: `[K]` each.

    One point a code that occurs; within a code the order is not known. Source: Geifman & El-Yaniv, NeurIPS 2017.
    """
    some = counts[counts.sum(1) > 0].astype(np.float64)
    kept, wrong = some.sum(1).cumsum(), some[:, 0].cumsum()
    return kept / kept[-1:], wrong / kept


def aurc(counts: Counts) -> float:
    """Area under the risk-coverage curve: the mean of the risk over every number of kept pixels, 0 (best) .. 1.

    Pixels of one code come in any order with equal odds, and this is the mean over all orders: with E wrong among the
    N before them and a share r of the n wrong, the risk after j is (E + j r) / (N + j), whose sum over j = 1..n is
    n r + (E - r N) (H(N + n) - H(N)), H the harmonic numbers. NaN without a pixel.
    """
    some = counts[counts.sum(1) > 0].astype(np.float64)
    if not len(some):
        return float("nan")
    size, wrong = some.sum(1), some[:, 0]
    before, failed = size.cumsum() - size, wrong.cumsum() - wrong
    rate = wrong / size
    sums = size * rate + (failed - rate * before) * _harmonic(before, size)
    return float(sums.sum() / size.sum())


def best_aurc(counts: Counts) -> float:
    """The area if every wrong pixel were doubted more than every right one; that of chance is the share of wrong."""
    wrong, right = counts.sum(0).tolist()
    ideal = np.zeros((CODES, 2), dtype=np.int64)
    ideal[0, 1], ideal[1, 0] = right, wrong
    return aurc(ideal)


def error(counts: Counts) -> float:
    """Share of wrong pixels: what a method that doubts nothing (or at random) has as its AURC."""
    return 1 - _accuracy(counts.sum(0))


def reliability(counts: Counts, *, bins: int = BINS, certainty: bool = True) -> Reliability:
    """What is stated against what is found, in `bins` of equal width.

    certainty: the stated value is 1 - code / 255; False: code / 255, for counts of probabilities.
    """
    stated = np.arange(CODES) / (CODES - 1)
    stated = 1 - stated if certainty else stated
    whole = np.arange(CODES) if not certainty else CODES - 1 - np.arange(CODES)  # integers: no bin's edge is rounded
    place = np.minimum(whole * bins // (CODES - 1), bins - 1)
    size = counts.sum(1)
    pixels = np.bincount(place, weights=size, minlength=bins)
    right = np.bincount(place, weights=counts[:, 1], minlength=bins)
    total = np.bincount(place, weights=size * stated, minlength=bins)
    some = pixels > 0
    return Reliability(total[some] / pixels[some], right[some] / pixels[some], pixels[some].astype(np.int64))


def ece(counts: Counts, *, bins: int = BINS, certainty: bool = True) -> float:
    """Expected calibration error: the mean over pixels of |found - stated| of their bin. NaN without a pixel."""
    curve = reliability(counts, bins=bins, certainty=certainty)
    total = curve.pixels.sum()
    return float((curve.pixels * np.abs(curve.found - curve.stated)).sum() / total) if total else float("nan")


def resampled(counts: Counts, measure: Callable[[Counts], float], *, resamples: int, seed: int) -> Real:
    """`measure` of the counts of images drawn again with replacement: `[resamples]`.

    counts: `[K, 256, 2]`, a page an image. The same K and seed draw the same images, so that the values of two methods
    on the same images may be subtracted.
    """
    images = len(counts)
    flat = counts.reshape(images, -1).astype(np.float64)
    rng = np.random.default_rng(seed)
    found = np.empty(resamples)
    for number in range(resamples):
        times = rng.multinomial(images, np.full(images, 1 / images))
        found[number] = measure((times @ flat).reshape(CODES, 2).astype(np.int64))
    return found


def interval(values: Real, *, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values."""
    low, high = np.nanquantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def _accuracy(pair: NDArray[Any]) -> float:
    total = pair.sum()
    return float(pair[1] / total) if total else float("nan")


def _harmonic(before: Real, size: Real) -> Real:
    """H(before + size) - H(before)."""
    found: Real = digamma(before + size + 1) - digamma(before + 1)
    return found
