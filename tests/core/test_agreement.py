"""Disagreement drawn by hand; correlations against closed forms and scipy; the permutation test against all orders."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from sum.core.agreement import boundary, denial, near, pearson, permutation_p, spearman


def halves(column, *, height=6, width=12):
    """Two regions that meet between column - 1 and column."""
    return np.broadcast_to(np.arange(width) >= column, (height, width)).astype(np.uint8)


def test_a_boundary_has_a_pixel_on_both_sides():
    assert np.flatnonzero(boundary(halves(5)).all(0)).tolist() == [4, 5]
    assert not boundary(np.full((3, 4), 7)).any()
    square = np.zeros((4, 4), dtype=int)
    square[1, 1] = 3
    assert boundary(square).sum() == 5  # the pixel and its 4 neighbours, no corner


def test_near_is_a_disk():
    dot = np.zeros((9, 9), dtype=bool)
    dot[4, 4] = True
    y, x = np.mgrid[:9, :9]
    assert np.array_equal(near(dot, 2), (y - 4) ** 2 + (x - 4) ** 2 <= 4)
    assert not near(np.zeros((3, 3), dtype=bool), 2).any()


def test_who_denies_a_boundary_where():
    """Boundaries of three people at columns 5, 6 and nowhere: within 1 px these are columns 3..6 and 4..7."""
    found = denial([halves(5), halves(6), np.zeros((6, 12), dtype=np.uint8)], tolerance=1)
    want = [1, 1, 1, 2 / 3, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 1, 1, 1, 1]
    np.testing.assert_allclose(found, np.broadcast_to(want, (6, 12)))


def test_names_of_regions_mean_nothing():
    np.testing.assert_array_equal(denial([halves(5) * 9, 4 - halves(5)], tolerance=1), denial([halves(5)], tolerance=1))


def test_correlations_by_closed_forms():
    x = np.arange(10.0)
    assert pearson(x, 3 - 2 * x) == pytest.approx(-1)
    assert pearson([0, 1, 2], [0, 1, 0]) == pytest.approx(0)
    assert pearson([0, 0, 1], [0, 1, 1]) == pytest.approx(0.5)
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert pearson(x, np.exp(x)) < 0.8
    y = [0, 2, 1, 4, 3, 5, 6, 7, 9, 8]
    assert spearman(x, y) == pytest.approx(1 - 6 * 6 / (10 * 99))  # 1 - 6 sum d^2 / n (n^2 - 1)
    assert math.isnan(pearson([1, 1, 1], [1, 2, 3]))
    assert math.isnan(spearman([1, 2], [1, 2]))


def test_correlations_are_scipys():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 20, 300)
    y = x + rng.integers(0, 30, 300)
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_permutation_is_that_of_all_orders():
    x, y = [1, 2, 3, 4, 5], [2, 1, 3, 5, 4]
    every = [stats.spearmanr(x, order).statistic for order in permutations(y)]
    want = np.mean(np.array(every) >= stats.spearmanr(x, y).statistic - 1e-9)
    assert permutation_p(x, y, [0] * 5, rounds=4000) == pytest.approx(want, abs=0.02)


def test_groups_alone_are_no_evidence():
    """Between the groups the numbers go together perfectly, within them not at all."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(10), 20)
    x, y = groups * 100 + rng.random(200), groups * 100 + rng.random(200)
    assert spearman(x, y) > 0.98
    assert permutation_p(x, y, groups, rounds=200) > 0.05
    assert permutation_p(x, y, np.zeros(200), rounds=200) == pytest.approx(1 / 201)
