"""The truth here is pycocotools, the boundary band by its definition and by OpenCV, and a bootstrap drawn by hand."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from sum.core import metrics
from sum.core.metrics import bootstrap_interval, boundary_iou, clicks_needed, iou, paired_interval
from tests.drawing import grid


@pytest.mark.parametrize(
    ("pred", "truth", "want"),
    [
        ("##. ##.", "##. ##.", 1.0),  # same
        ("##. ##.", "#.. #..", 0.5),  # one column too wide
        ("##. ...", ".## ...", 1 / 3),
        ("#.. ...", "... ..#", 0.0),  # apart
        ("... ...", "#.. ...", 0.0),
        ("... ...", "... ...", 1.0),  # two empty masks agree
    ],
)
def test_iou(pred, truth, want):
    assert iou(grid(pred), grid(truth)) == pytest.approx(want)


def blobs(rng, height, width):
    """A disk and a shifted, speckled copy of it."""
    y, x = np.mgrid[:height, :width]
    cy, cx, radius = rng.integers(height), rng.integers(width), rng.integers(1, max(height, width))
    truth = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    pred = np.roll(truth, rng.integers(-3, 4, 2), (0, 1)) ^ (rng.random((height, width)) < rng.choice([0, 0.02]))
    return pred, truth


def by_pycocotools(pred, truth):
    first, second = (coco.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in (pred, truth))
    return coco.iou([first], [second], [0])[0, 0]


def test_iou_is_that_of_pycocotools_to_the_last_digit():
    rng = np.random.default_rng(0)
    pairs = [blobs(rng, *rng.integers(2, 40, 2)) for _ in range(50)]
    pairs += [(rng.random(hw) < 0.5, rng.random(hw) < 0.5) for hw in [(1, 1), (1, 7), (2, 2), (9, 1), (333, 517)] * 5]
    empty, full, half = np.zeros((40, 70), dtype=bool), np.ones((40, 70), dtype=bool), rng.random((40, 70)) < 0.5
    one = empty.copy()
    one[39, 69] = True
    pairs += [(first, second) for first in (empty, full, half, one) for second in (full, half, one)]
    for pred, truth in pairs:
        if (pred | truth).any():  # of two empty masks it says 0 / 0
            assert iou(pred, truth) == by_pycocotools(pred, truth)
            assert iou(truth, pred) == iou(pred, truth)


same_size = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda hw: st.tuples(arrays(bool, hw), arrays(bool, hw))
)


@settings(deadline=None, max_examples=60)
@given(same_size, st.integers(0, 70))
def test_laws_of_both_metrics(pair, margin):
    pred, truth = pair
    for metric in (iou, boundary_iou):
        value = metric(pred, truth)
        assert 0 <= value <= 1
        assert metric(pred, pred) == 1
        assert metric(truth, pred) == value
        assert metric(pred.T, truth.T) == value
        assert metric(pred[::-1], truth[::-1]) == value
        assert metric(pred[:, ::-1], truth[:, ::-1]) == value
    assert iou(np.pad(pred, margin), np.pad(truth, margin)) == iou(pred, truth)


@pytest.mark.parametrize("metric", [iou, boundary_iou])
@pytest.mark.parametrize(
    "kind", [lambda m: m, lambda m: m.astype(np.uint8), lambda m: m.astype(np.uint8) * 255, np.asfortranarray]
)
def test_any_nonzero_number_is_mask(metric, kind):
    pred, truth = blobs(np.random.default_rng(3), 30, 40)
    assert metric(kind(pred), kind(truth)) == metric(pred, truth)
    assert metric(kind(pred), truth) == metric(pred, truth)


def band_by_hand(mask, dilation):
    """Mask pixels with something else, or the outside of the image, within `dilation` steps in any direction."""
    padded = np.pad(mask, dilation)
    out = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        out[y, x] = not padded[y : y + 2 * dilation + 1, x : x + 2 * dilation + 1].all()
    return out


@pytest.mark.parametrize("ratio", [0.02, 0.05, 0.2])
def test_boundary_iou_is_its_definition(ratio):
    rng = np.random.default_rng(1)
    for _ in range(30):
        pred, truth = blobs(rng, *rng.integers(2, 60, 2))
        dilation = max(1, round(ratio * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)))
        first, second = band_by_hand(pred, dilation), band_by_hand(truth, dilation)
        want = (first & second).sum() / (first | second).sum() if (first | second).any() else 1.0
        assert boundary_iou(pred, truth, ratio=ratio) == want


def band_by_opencv(mask, dilation):
    """What so many erosions by 3 x 3 take away, each pixel beyond the image being outside."""
    framed = np.pad(mask, 1).astype(np.uint8)
    return mask & (cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=dilation)[1:-1, 1:-1] == 0)


@pytest.mark.parametrize("hw", [(500, 700), (701, 390), (64, 1000)])
@pytest.mark.parametrize("reach", [0.05, 0.3, 2])
def test_boundary_iou_of_large_masks_is_that_of_repeated_erosions(hw, reach):
    y, x = (np.indices(hw).T - np.array(hw) / 2).T
    angle, rng = np.arctan2(y, x), np.random.default_rng(8)
    truth = np.hypot(y, x) < reach * min(hw) * (1 + 0.2 * np.cos(3 * angle))
    for pred in (np.roll(truth, (3, -5), (0, 1)), truth ^ (rng.random(hw) < 0.001), ~truth, np.zeros_like(truth)):
        dilation = round(0.02 * math.hypot(*hw))
        first, second = band_by_opencv(pred, dilation), band_by_opencv(truth, dilation)
        assert boundary_iou(pred, truth) == (first & second).sum() / (first | second).sum()
        assert boundary_iou(pred.view(np.uint8) * 255, truth.view(np.uint8)) == boundary_iou(pred, truth)


@pytest.mark.parametrize(
    ("pred", "truth", "want"),
    [
        ("..... .....", "..... .....", 1.0),  # two empty masks agree
        ("##### ##### ##### ##### #####", "##### ##### ##.## ##### #####", 16 / 24),  # a hole: 16 border + 8 around it
        ("##### ##### #####", "##### ##### #####", 1.0),
        ("..... #....", "..... .....", 0.0),
    ],
)
def test_boundary_iou_of_small_masks(pred, truth, want):
    assert boundary_iou(grid(pred), grid(truth)) == pytest.approx(want)


def test_boundary_iou_is_strict_where_iou_is_lenient():
    y, x = np.mgrid[:200, :200]
    truth, pred = (y - 100) ** 2 + (x - 100) ** 2 < 80**2, (y - 100) ** 2 + (x - 100) ** 2 < 76**2
    assert iou(pred, truth) > 0.9
    assert boundary_iou(pred, truth) < 0.35


@pytest.mark.parametrize(
    ("ious", "threshold", "want"),
    [
        ([0.5, 0.9, 0.95], 0.9, 2),  # reaching it is enough
        ([0.5, 0.6, 0.9], 0.9, 3),  # with the last click, which RITM's count calls a failure
        ([0.95, 0.2], 0.9, 1),  # later losses do not matter
        ([0.5, 0.6], 0.9, None),
        ([], 0.9, None),
        (np.array([0.1, 0.8]), 0.8, 2),
    ],
)
def test_clicks_needed(ious, threshold, want):
    assert clicks_needed(ious, threshold) == want


def test_the_mean_is_over_masks_not_over_images():
    mean, low, high = bootstrap_interval([1, 1, 1, 0], ["a", "a", "a", "b"])
    assert mean == 0.75
    assert (low, high) == (0, 1)  # a quarter of the draws each takes one image twice


def test_equal_values_have_no_interval():
    assert bootstrap_interval([0.5] * 10, range(10)) == (0.5, 0.5, 0.5)


def test_interval_of_independent_values_is_the_normal_one():
    values = np.random.default_rng(0).normal(3, 2, 2000)
    mean, low, high = bootstrap_interval(values, np.arange(2000), resamples=2000)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)
    _, low, high = bootstrap_interval(values, np.arange(2000), resamples=2000, level=0.68)
    assert (high - low) / 2 == pytest.approx(0.994 * values.std() / math.sqrt(2000), rel=0.1)


def test_interval_against_a_bootstrap_by_hand():
    rng = np.random.default_rng(5)
    images = rng.integers(0, 12, 60)
    values = rng.random(60) + images / 6
    means = []
    for _ in range(2000):
        drawn = rng.choice(np.unique(images), len(np.unique(images)))
        means.append(np.concatenate([values[images == image] for image in drawn]).mean())
    got = bootstrap_interval(values, [f"image {number}" for number in images], resamples=4000)
    assert got[0] == pytest.approx(values.mean())
    assert got[1:] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)


def test_masks_of_one_image_do_not_count_as_independent():
    images = np.repeat(np.arange(40), 25)
    values = np.random.default_rng(0).random(40)[images]
    _, low, high = bootstrap_interval(values, images)
    _, low_wrong, high_wrong = bootstrap_interval(values, np.arange(1000))
    assert (high - low) / (high_wrong - low_wrong) == pytest.approx(5, rel=0.15)  # root of 25


def test_interval_depends_on_the_seed_only(monkeypatch):
    values, images = np.random.default_rng(0).random(50), np.arange(50) // 3
    first = bootstrap_interval(values, images, seed=1)
    assert bootstrap_interval(values, images, seed=1) == first
    assert bootstrap_interval(values, images, seed=2) != first
    monkeypatch.setattr(metrics, "CHUNK", 7)
    assert bootstrap_interval(values, images, seed=1) == pytest.approx(first)


def test_nothing_to_average_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([], [])
    with pytest.raises(ValueError, match="2 values, 3 clusters"):
        bootstrap_interval([1, 2], [1, 2, 3])


def test_paired_interval_sees_a_small_gain_that_separate_intervals_hide():
    rng = np.random.default_rng(0)
    hard = rng.random(300)
    better, worse = hard + 0.01 + rng.normal(0, 0.01, 300), hard
    mean, low, high = paired_interval(better, worse, np.arange(300), seed=3)
    assert mean == pytest.approx((better - worse).mean())
    assert 0 < low < mean < high < 0.02
    assert bootstrap_interval(better, np.arange(300))[1] < worse.mean()
    assert paired_interval(worse, better, np.arange(300), seed=3) == pytest.approx((-mean, -high, -low))
