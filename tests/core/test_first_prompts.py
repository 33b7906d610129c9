"""First prompts: the truth here is all distances of all pixels, closed forms, and the law of the draw."""

from __future__ import annotations

import hashlib
from typing import get_args, get_type_hints

import numpy as np
import pytest
from scipy import stats

from sum.core import first_prompts
from sum.core.first_prompts import FIRST_POINTS, FIRST_PROMPTS, boundary_point, first_draw, prompt_words, random_point
from sum.models.interact import Protocol
from sum.settings import EvaluateConfig
from tests.drawing import grid


def test_settings_protocol_words_and_functions_know_the_same_names():
    assert FIRST_PROMPTS.keys() == {"box", *FIRST_POINTS}
    assert set(get_args(get_type_hints(Protocol)["first_prompt"])) == FIRST_PROMPTS.keys()
    (settings,) = get_args(get_type_hints(EvaluateConfig)["prompts"])
    assert set(get_args(settings)) == FIRST_PROMPTS.keys()


@pytest.mark.parametrize(
    ("prompt", "rounds", "want"),
    [
        ("point", [1], "1 point"),
        ("point", [3, 5], "3, 5 points"),
        ("box", [1], "box"),
        ("box", [2], "box + 1 point"),
        ("boundary", [3, 5], "boundary point + 2, 4 points"),
        ("random", [1, 3], "random point + 0, 2 points"),
    ],
)
def test_words_say_what_the_model_was_given(prompt, rounds, want):
    assert prompt_words(prompt, rounds) == want


def random_masks(count, seed, side=13):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        height, width = rng.integers(1, side, 2)
        mask = rng.random((height, width)) < rng.choice([0.02, 0.3, 0.7, 0.97])
        top, left = rng.integers(0, height), rng.integers(0, width)
        mask[top : top + rng.integers(0, side), left : left + rng.integers(0, side)] ^= True
        yield mask


@pytest.mark.parametrize("name", sorted(FIRST_POINTS))
def test_every_first_point_is_a_pixel_of_the_mask(name):
    find = FIRST_POINTS[name]
    for number, mask in enumerate(random_masks(100, seed=0)):
        draw = first_draw(0, str(number))
        point = find(mask, draw)
        if not mask.any():
            assert point is None
            continue
        x, y = point
        assert mask[y, x]
        assert find(mask.astype(np.uint8) * 255, draw) == point
        moved = np.pad(mask, ((3, 2), (1, 4)))
        assert find(moved, draw) == (x + 1, y + 3)  # zeros around are outside, as what lies beyond the image


def boundary_by_hand(mask, edge):
    """By definition, with the distances of all pairs and fractions avoided by doubling."""
    padded = np.pad(mask, 1)
    outside, pixels = np.argwhere(~padded) - 1, np.argwhere(mask)
    depth = ((pixels[:, None] - outside[None]) ** 2).sum(-1).min(1)
    near = [(int(x), int(y)) for (y, x), squared in zip(pixels, depth, strict=True) if squared <= edge**2]
    middle = [sorted(axis)[(len(near) - 1) // 2] + sorted(axis)[len(near) // 2] for axis in zip(*near, strict=True)]
    return min(near, key=lambda p: ((2 * p[0] - middle[0]) ** 2 + (2 * p[1] - middle[1]) ** 2, p[1], p[0]))


@pytest.mark.parametrize("edge", [1, 2, 3])
def test_boundary_point_against_all_distances(monkeypatch, edge):
    monkeypatch.setattr(first_prompts, "EDGE", edge)
    for mask in random_masks(150, seed=edge):
        assert boundary_point(mask) == (boundary_by_hand(mask, edge) if mask.any() else None)


def test_boundary_point_against_all_distances_at_ten_pixels():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:48, :52]
    for _ in range(12):
        y, x, radius = rng.uniform(15, 33), rng.uniform(15, 37), rng.uniform(11, 25)
        mask = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        mask[tuple(rng.integers(0, 48, 2))] ^= True  # a hole or a speck
        assert boundary_point(mask) == boundary_by_hand(mask, 10)


@pytest.mark.parametrize(
    ("picture", "want"),
    [
        ("....", None),
        ("#####", (2, 0)),
        ("####", (1, 0)),  # the median is 1.5: of two equally near the first
        ("#....#", (0, 0)),  # and 2.5 here, of which no pixel is near
        (".##. .##.", (1, 0)),
        ("#..... ...... .....# .....# .....#", (5, 2)),  # medians x 5, y 2.5: rows 2 and 3 are as near
    ],
)
def test_boundary_point_of_small_masks(picture, want):
    assert boundary_point(grid(picture)) == want


def test_boundary_point_of_rectangles():
    """Of a ring 10 px wide the medians are the middle; the nearest pixel of the ring lies ten rows below the top."""
    assert boundary_point(np.ones((41, 61), dtype=bool)) == (30, 9)
    assert boundary_point(np.ones((40, 60), dtype=bool)) == (29, 9)
    assert boundary_point(np.ones((61, 41), dtype=bool)) == (9, 30)
    wide = np.zeros((2000, 3000), dtype=bool)
    wide[100:1901, 200:2801] = True
    assert boundary_point(wide) == (1500, 109)


def test_random_point_is_the_pixel_that_sha256_names():
    mask = next(mask for mask in random_masks(50, seed=3) if mask.sum() > 20)
    pixels = [(int(x), int(y)) for y, x in np.argwhere(mask)]  # in reading order
    for number in range(50):
        digest = hashlib.sha256(f"7 things/3#{number}".encode()).hexdigest()
        assert random_point(mask, first_draw(7, f"things/3#{number}")) == pixels[int(digest, 16) % len(pixels)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_points_are_uniform_over_the_mask(seed):
    mask = grid("#..#### .##.### ###..## ####### ..##.#.")
    draws = 200 * int(mask.sum())
    points = [random_point(mask, first_draw(seed, f"set/image-{k // 20}#{k % 20}")) for k in range(draws)]
    counts = np.zeros(mask.shape, dtype=int)
    np.add.at(counts, tuple(np.array(points).T[::-1]), 1)
    assert stats.chisquare(counts[mask]).pvalue > 1e-3


def test_seeds_and_ids_draw_apart():
    """Neighbours in id or seed share no more pixels than chance has it: 1 of 100."""
    mask = np.ones((10, 10), dtype=bool)
    ids = [f"set/image#{number}" for number in range(2000)]
    first, second = ([random_point(mask, first_draw(seed, mask_id)) for mask_id in ids] for seed in (0, 1))
    for one, other in ((first, second), (first, first[1:])):
        same = sum(a == b for a, b in zip(one, other, strict=False))
        assert stats.binomtest(same, len(other), 0.01).pvalue > 1e-3
