"""Clicks of evaluation (sum/core/prompts.py); the truth here is all distances of all pixels."""

from __future__ import annotations

import numpy as np
import pytest

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


@pytest.mark.parametrize("exact_up_to", [clicks.FLOAT32_DEPTH, 0.0])  # 0: the way of very large regions
def test_farthest_point_against_all_distances(monkeypatch, exact_up_to):
    monkeypatch.setattr(clicks, "FLOAT32_DEPTH", exact_up_to)
    for mask in random_masks(300, seed=1):
        assert farthest_point(mask) == point_by_hand(mask)
        assert farthest_point(mask.astype(np.uint8) * 255) == point_by_hand(mask)


def test_farthest_point_in_large_disks_is_exact():
    y, x = np.mgrid[:1500, :1600]
    region = (y - 733) ** 2 + (x - 801) ** 2 < 700**2  # about 150 pixels lie within one of the deepest
    assert farthest_point(region) == (801, 733)
    assert farthest_point(np.ones((1500, 1600), dtype=bool)) == (749, 749)


def test_next_click_against_all_distances():
    masks = list(random_masks(300, seed=2))
    labels = set()
    for target, seed in zip(masks, range(300), strict=True):
        prediction = np.random.default_rng(seed).random(target.shape) < 0.5 if seed % 2 else np.roll(target, 2, 1)
        click = next_click(prediction, target)
        assert click == click_by_hand(prediction, target)
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
