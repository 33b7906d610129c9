"""The truth here is all distances of all pixels; on large masks, scipy's nearest outside pixel."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from sum.core import clicks
from sum.core.clicks import farthest_point, next_click
from tests.drawing import grid


def depths(region):
    """Squared distance of every pixel to the nearest one outside, by looking at all of them."""
    padded = np.pad(region, 1)
    outside = np.argwhere(~padded)
    every = np.argwhere(np.ones_like(padded))
    nearest = ((every[:, None] - outside[None]) ** 2).sum(-1).min(1)
    return nearest.reshape(padded.shape)[1:-1, 1:-1]


def point_by_hand(region):
    if not region.any():
        return None
    row, column = divmod(int(depths(region).argmax()), region.shape[1])
    return column, row


def click_by_hand(prediction, target):
    missed, added = target & ~prediction, prediction & ~target
    if not (missed | added).any():
        return None
    if depths(missed).max() >= depths(added).max():
        return *point_by_hand(missed), 1
    return *point_by_hand(added), 0


@pytest.mark.parametrize(
    ("picture", "want"),
    [
        ("... ...", None),
        ("... .#.", (1, 1)),  # one pixel
        ("##### ##### #####", (1, 1)),  # all set: the image border is outside, the first of three equals
        ("#.. ... ...", (0, 0)),
        ("..### ..### ..###", (3, 1)),  # touches the border
        ("##### #...# #...# #####", (0, 0)),  # a ring: all pixels are equally deep
        ("###.### ####### ###.###", (1, 1)),
        ("##.... ##.... ...### ...### ...###", (4, 3)),  # the wider of two
    ],
)
def test_farthest_point(picture, want):
    assert farthest_point(grid(picture)) == want


def random_masks(count, seed):
    """Masks of all densities and sizes up to 12 x 12, with blocks in them so that depths differ."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        height, width = rng.integers(1, 13, 2)
        mask = rng.random((height, width)) < rng.choice([0.05, 0.3, 0.7, 0.95])
        top, left = rng.integers(0, height), rng.integers(0, width)
        mask[top : top + rng.integers(0, 9), left : left + rng.integers(0, 9)] ^= True
        yield mask


@pytest.mark.parametrize("sparse", [clicks.SPARSE, 2.0, 0.0])  # as it is; the chamfer for every mask; for none
def test_farthest_point_against_all_distances(monkeypatch, sparse):
    monkeypatch.setattr(clicks, "SPARSE", sparse)
    for mask in random_masks(100, seed=1):
        assert farthest_point(mask) == point_by_hand(mask)
        assert farthest_point(mask.astype(np.uint8) * 255) == point_by_hand(mask)


def nearest_outside(region):
    """Squared distances of every pixel in integers, from the place of the nearest pixel outside that scipy names."""
    padded = np.pad(region, 1)
    places = ndimage.distance_transform_edt(padded, return_distances=False, return_indices=True)
    return ((places - np.indices(padded.shape)) ** 2).sum(0)[1:-1, 1:-1]


def large_pairs():
    """(prediction, target) of some hundred pixels: slivers, a shifted object, specks, one that spans the image."""
    rng = np.random.default_rng(6)
    y, x = np.mgrid[:300, :420]
    far = (np.hypot(y - 150, x - 200) < 80) | (np.hypot(y, x) < 3) | (np.hypot(y - 299, x - 419) < 3)  # sparse, deep
    yield np.zeros_like(far), far
    for reach in (30, 90, 170, 600):
        angle = np.arctan2(y - 150, x - 210)
        radius = reach * (1 + 0.2 * np.cos(3 * angle + 1) + 0.1 * np.sin(7 * angle))
        target = np.hypot(y - 150, x - 210) < radius
        yield np.zeros_like(target), target
        yield np.hypot(y - 150, x - 210) < radius * (1 + 0.06 * np.cos(11 * angle)), target
        yield np.roll(target, (5, -9), (0, 1)), target
        yield target ^ (rng.random(target.shape) < 0.1), target
        yield ndimage.binary_opening(rng.random(target.shape) < 0.8, np.ones((4, 4))), target


def test_clicks_on_large_masks_are_those_of_scipys_nearest_pixels(monkeypatch):
    ways = set()
    exact = clicks._exact

    def seen(part, rough, bounds, **limit):
        found = exact(part, rough, bounds, **limit)
        ways.add((bounds, found is not None))
        return found

    monkeypatch.setattr(clicks, "_exact", seen)
    for prediction, target in large_pairs():
        missed, added = nearest_outside(target & ~prediction), nearest_outside(prediction & ~target)
        depth, label = max((missed.max(), 1), (added.max(), 0))
        row, column = divmod(int((missed if label else added).argmax()), target.shape[1])
        assert next_click(prediction, target) == ((column, row, label) if depth else None)
    assert ways == {(clicks.CHAMFER, True), (clicks.CHAMFER, False), (clicks.PRECISE, True)}


@pytest.mark.parametrize(
    ("size", "bounds", "slack"), [(5, clicks.CHAMFER, 0.001), (cv2.DIST_MASK_PRECISE, clicks.PRECISE, 2e-5)]
)
@pytest.mark.parametrize("threads", [1, 2])  # OpenCV 5 computes otherwise with one
def test_opencvs_distances_keep_their_bounds(request, size, bounds, slack, threads):
    """Least and most of them by the true distance, for every step up to 1200 x 1200 pixels."""
    request.addfinalizer(partial(cv2.setNumThreads, cv2.getNumThreads()))
    cv2.setNumThreads(threads)
    apart = np.ones((1201, 1201), dtype=np.uint8)
    apart[0, 0] = 0
    true = np.hypot(*np.indices(apart.shape))
    ratio = cv2.distanceTransform(apart, cv2.DIST_L2, size)[true > 0] / true[true > 0]
    assert bounds[0] < ratio.min() < bounds[0] + slack
    assert bounds[1] - slack < ratio.max() < bounds[1]


@settings(deadline=None, max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.integers(0, 3), st.integers(0, 3))
def test_turning_and_padding_with_outside_move_the_click_along(region, above, left):
    if not region.any():
        assert farthest_point(np.pad(region, ((above, 0), (left, 1)))) is None
        return
    x, y = farthest_point(region)
    assert farthest_point(np.pad(region, ((above, 2), (left, 1)))) == (x + left, y + above)
    for turned in (region.T, region[::-1], region[:, ::-1]):  # the tie may fall otherwise, the depth may not
        other_x, other_y = farthest_point(turned)
        assert depths(turned)[other_y, other_x] == depths(region)[y, x]


def test_farthest_point_in_large_disks_is_exact():
    y, x = np.mgrid[:1500, :1600]
    region = (y - 733) ** 2 + (x - 801) ** 2 < 700**2  # about 150 pixels lie within one of the deepest
    assert farthest_point(region) == (801, 733)
    assert farthest_point(np.ones((1500, 1600), dtype=bool)) == (749, 749)


def test_next_click_against_all_distances():
    masks = list(random_masks(150, seed=2))
    labels = set()
    for target, seed in zip(masks, range(150), strict=True):
        prediction = np.random.default_rng(seed).random(target.shape) < 0.5 if seed % 2 else np.roll(target, 2, 1)
        click = next_click(prediction, target)
        assert click == click_by_hand(prediction, target)
        assert click == next_click(prediction.astype(np.uint8) * 255, target.astype(np.uint8))
        labels.add(click and click[2])
    assert labels == {0, 1, None}


@pytest.mark.parametrize(
    ("prediction", "target", "want"),
    [
        ("##. ##.", "##. ##.", None),  # nothing wrong
        ("... ...", ".#. ...", (1, 0, 1)),  # missed
        (".#. ...", "... ...", (1, 0, 0)),  # added
        ("#.. ...", "..# ...", (2, 0, 1)),  # equally deep: the missed one
        ("###... ###... ###...", "...... .....# ......", (1, 1, 0)),  # the deeper one
        ("..... ##### .....", "##### ..... #####", (0, 0, 1)),  # an added strip splits the missed: not one deep block
    ],
)
def test_next_click(prediction, target, want):
    assert next_click(grid(prediction), grid(target)) == want
    numbers = (grid(picture).astype(np.uint8) for picture in (prediction, target))
    assert next_click(*numbers) == want


def test_clicking_where_told_ends_at_the_truth():
    target = next(mask for mask in random_masks(50, seed=4) if mask.sum() > 20)
    prediction = np.zeros_like(target)
    for _ in range(target.size):
        click = next_click(prediction, target)
        if click is None:
            break
        x, y, label = click
        prediction[y, x] = label
    assert np.array_equal(prediction, target)
