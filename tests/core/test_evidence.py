"""Histograms against all pixels one by one: sorted, cut and averaged with nothing but their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sum.core import evidence
from sum.core.evidence import count_codes, ece, reliability, resampled, risk_coverage, split_at


def pixels(seed, count=3000, codes=256):
    """Codes and right/wrong of pixels; the higher the code, the more often wrong."""
    rng = np.random.default_rng(seed)
    code = np.minimum(rng.integers(0, codes, count), rng.integers(0, codes, count)).astype(np.uint8)
    return code, rng.random(count) > 0.02 + 0.7 * code / 255


def counted(code, right):
    return count_codes(code, right, np.ones(code.shape, dtype=bool))


def test_counts_are_those_of_a_loop_and_leave_out_the_rest():
    code, right = pixels(0, count=500)
    where = np.random.default_rng(1).random(500) < 0.6
    want = np.zeros((256, 2), dtype=np.int64)
    for one, good, inside in zip(code, right, where, strict=True):
        if inside:
            want[one, int(good)] += 1
    assert np.array_equal(count_codes(code.reshape(20, 25), right.reshape(20, 25), where.reshape(20, 25)), want)


def test_counts_of_parts_add_up():
    code, right = pixels(2)
    assert np.array_equal(counted(code, right), counted(code[:900], right[:900]) + counted(code[900:], right[900:]))


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.6, 0.8])
def test_accuracies_at_a_cut(cut):
    code, right = pixels(3)
    sure = np.array([255 - int(one) > round(255 * cut, 9) for one in code])
    found = split_at(counted(code, right), cut)
    assert found.certain_share == sure.mean()
    assert found.certain_accuracy == right[sure].mean()
    assert found.uncertain_accuracy == right[~sure].mean()


@pytest.mark.parametrize(("cut", "first"), [(0.6, 102), (0.8, 51)])  # certainty 0.6 and 0.8 themselves are not above
def test_the_cut_itself_is_uncertain(cut, first):
    for code, share in ((first, 0.0), (first - 1, 1.0)):
        counts = counted(np.array([code], dtype=np.uint8), np.array([True]))
        assert split_at(counts, cut).certain_share == share


def test_a_side_without_pixels_has_no_accuracy():
    found = split_at(counted(np.zeros(4, dtype=np.uint8), np.array([True, True, True, False])), 0.6)
    assert (found.certain_share, found.certain_accuracy) == (1.0, 0.75)
    assert math.isnan(found.uncertain_accuracy)


def area_by_sorting(code, right, *, orders=1, seed=0):
    """Mean risk over all numbers of kept pixels, the mean over random orders of ties."""
    rng, areas = np.random.default_rng(seed), []
    for _ in range(orders):
        order = np.lexsort((rng.random(len(code)), code))
        areas.append(((~right[order]).cumsum() / np.arange(1, len(code) + 1)).mean())
    return float(np.mean(areas))


def test_area_is_that_of_sorted_pixels_without_ties():
    rng = np.random.default_rng(4)
    code = rng.permutation(256).astype(np.uint8)
    right = rng.random(256) > code / 300
    assert evidence.aurc(counted(code, right)) == pytest.approx(area_by_sorting(code, right), rel=1e-12)


def test_area_is_the_mean_over_all_orders_of_ties():
    """Ten pixels, two codes, every order of each code's pixels."""
    from itertools import permutations

    first, second = [True, False, True, True], [False, True, False]
    areas = [
        (~np.array(one + two)).cumsum() / np.arange(1, 8) for one in permutations(first) for two in permutations(second)
    ]
    code = np.array([3] * 4 + [9] * 3, dtype=np.uint8)
    assert evidence.aurc(counted(code, np.array(first + second))) == pytest.approx(np.mean(areas), rel=1e-12)


def test_area_of_many_ties_against_random_orders():
    code, right = pixels(5, count=2000, codes=6)
    found = evidence.aurc(counted(code, right))
    assert found == pytest.approx(area_by_sorting(code, right, orders=400), abs=1e-3)


def test_area_does_not_lose_digits_on_billions_of_pixels():
    """One code only: the area is the share of wrong, whatever the number (digamma at 1e12)."""
    counts = np.zeros((256, 2), dtype=np.int64)
    counts[0], counts[200] = (10**10, 10**12), (10**9, 10**9)
    few = counts // 10**6
    assert evidence.aurc(counts) == pytest.approx(evidence.aurc(few), rel=1e-4)


def test_best_and_chance():
    code, right = pixels(6)
    counts = counted(code, right)
    assert evidence.best_aurc(counts) == pytest.approx(area_by_sorting((~right).astype(np.uint8), right), rel=1e-12)
    assert evidence.error(counts) == pytest.approx((~right).mean())
    flat = counted(np.full_like(code, 7), right)
    assert evidence.aurc(flat) == pytest.approx((~right).mean(), rel=1e-12)
    assert evidence.best_aurc(counts) < evidence.aurc(counts) < evidence.error(counts)


def test_curve_is_that_of_sorted_pixels_at_the_ends_of_codes():
    code, right = pixels(7)
    order = np.argsort(code, kind="stable")
    risk = (~right[order]).cumsum() / np.arange(1, len(code) + 1)
    ends = np.flatnonzero(np.diff(np.append(code[order].astype(int), 999)))
    coverage, found = risk_coverage(counted(code, right))
    np.testing.assert_allclose(coverage, (ends + 1) / len(code))
    np.testing.assert_allclose(found, risk[ends])


@pytest.mark.parametrize("certainty", [True, False])
def test_reliability_bin_by_bin(certainty):
    code, right = pixels(8)
    stated = 1 - code / 255 if certainty else code / 255
    whole = 255 - code.astype(int) if certainty else code.astype(int)  # 255 times what is stated: edges are exact
    curve = reliability(counted(code, right), bins=10, certainty=certainty)
    error, filled = 0.0, 0
    for k in range(10):
        inside = (whole * 10 >= k * 255) & ((whole * 10 < (k + 1) * 255) | (k == 9))
        if inside.any():
            assert curve.stated[filled] == pytest.approx(stated[inside].mean())
            assert curve.found[filled] == pytest.approx(right[inside].mean())
            assert curve.pixels[filled] == inside.sum()
            error += inside.mean() * abs(right[inside].mean() - stated[inside].mean())
            filled += 1
    assert filled == len(curve.pixels)
    assert ece(counted(code, right), bins=10, certainty=certainty) == pytest.approx(error)


def test_calibrated_pixels_have_hardly_an_error():
    code = np.repeat(np.arange(256), 200).astype(np.uint8)
    right = np.random.default_rng(9).random(len(code)) < 1 - code / 255
    assert ece(counted(code, right)) < 0.02
    assert ece(counted(code, ~right)) > 0.4  # the opposite: mean |2c - 1| is one half


def test_resampling_images_is_a_bootstrap_by_hand():
    pages, rng = [], np.random.default_rng(10)
    for image in range(12):
        code, right = pixels(image, count=200)
        pages.append(counted(code, right | (rng.random() < 0.3)))
    found = resampled(np.stack(pages), evidence.error, resamples=3000, seed=0)
    wrong, total = np.array([[page[:, 0].sum(), page.sum()] for page in pages]).T
    draws = rng.integers(12, size=(3000, 12))
    by_hand = wrong[draws].sum(1) / total[draws].sum(1)
    assert evidence.interval(found) == pytest.approx(tuple(np.quantile(by_hand, (0.025, 0.975))), abs=0.01)
    assert np.array_equal(found, resampled(np.stack(pages), evidence.error, resamples=3000, seed=0))


def test_no_pixel_is_no_number():
    empty = np.zeros((256, 2), dtype=np.int64)
    assert math.isnan(evidence.aurc(empty))
    assert math.isnan(ece(empty))
    assert math.isnan(split_at(empty, 0.6).certain_share)
