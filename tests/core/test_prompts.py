"""Prompts of training; the truth here is the law of the draw (chi-square). Evaluation's clicks: test_clicks.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sum.core import prompts
from sum.core.chance import normal
from sum.core.prompts import (
    correction_points,
    correction_weights,
    jitter_boxes,
    point_labels,
    sample_points,
)
from tests.drawing import draw

DRAWS = [prompts._draw_sparse, prompts._draw_dense]  # the way of the CPU and the way of the GPU: one law


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def maps(side=16):
    """Weights `[8, side, side]`: flat, one pixel, two unequal pixels, sparse, dense, steep, edges, codes."""
    out = torch.zeros(8, side, side)
    out[0] = 1
    out[1, 3, 5] = 0.2
    out[2, 0, 0], out[2, -1, -1] = 0.9, 0.1
    out[3] = torch.rand(side, side, generator=seeded(3)) * (torch.rand(side, side, generator=seeded(4)) < 0.05)
    out[4] = torch.rand(side, side, generator=seeded(5))
    out[5] = torch.logspace(0, -4, side)[:, None]
    out[6, 0], out[6, -1], out[6, :, 0], out[6, :, -1] = 0.1, 0.4, 0.7, 1
    out[7] = torch.randint(0, 256, (side, side), generator=seeded(6)) / 255
    return out


def p_value(index, weights):
    """Chi-square of drawn flat indices against the weights; rare pixels are counted together."""
    chance = weights.flatten().double().numpy()
    expected = chance / chance.sum() * len(index)
    seen = np.bincount(index.numpy(), minlength=len(expected))
    assert not seen[chance == 0].any()
    often = expected >= 5
    groups = [(seen[often], expected[often])]
    if expected[~often].sum() > 0:
        groups.append((seen[~often].sum(keepdims=True), expected[~often].sum(keepdims=True)))
    seen, expected = (np.concatenate(part) for part in zip(*groups, strict=True))
    return stats.chisquare(seen, expected).pvalue if len(seen) > 1 else 1.0


@pytest.mark.parametrize("drawn", DRAWS)
def test_points_follow_the_weights(drawn):
    weights, times = maps(), 5000
    chance = torch.rand(8 * times, generator=seeded(11), dtype=torch.float64)
    index, found = drawn(weights.repeat(times, 1, 1), chance)
    assert found.all()
    for which in range(8):
        assert p_value(index.view(times, 8)[:, which], weights[which]) > 1e-3, which


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_points_of_the_public_function_follow_the_weights(device):
    weights = maps()[:, None].repeat(2000, 1, 1, 1)
    xy, found = (answer.cpu() for answer in sample_points(weights.to(device), generator=seeded(12)))
    assert found.all()
    index = (xy[:, 1] * 16 + xy[:, 0]).long().view(2000, 8)
    for which in range(8):
        assert p_value(index[:, which], weights[which]) > 1e-3, which


def test_the_two_ways_draw_the_same_pixel():
    weights, chance = maps(), torch.rand(8, generator=seeded(13), dtype=torch.float64)
    for shift in torch.linspace(0, 0.999, 50, dtype=torch.float64):
        first, second = (drawn(weights, (chance + shift) % 1)[0] for drawn in DRAWS)
        assert torch.equal(first, second)


@pytest.mark.parametrize("drawn", DRAWS)
@settings(max_examples=100, deadline=None)
@given(
    weights=st.lists(
        st.lists(st.sampled_from([0.0, 0.0, 0.0, 1e-30, 1e-3, 0.1, 0.3, 1.0]), min_size=12, max_size=12),
        min_size=1,
        max_size=4,
    ),
    chance=st.sampled_from([0.0, 1e-300, 0.1, 1 / 3, 0.5, 0.7, 1 - 2**-53]),
)
def test_never_on_zero_weight(drawn, weights, chance):
    planes = torch.tensor(weights).view(-1, 3, 4)
    index, found = drawn(planes, torch.full((len(planes),), chance, dtype=torch.float64))
    assert torch.equal(found, planes.flatten(1).sum(1) > 0)
    assert torch.all(planes.flatten(1).gather(1, index[:, None])[:, 0][found] > 0)


@pytest.mark.parametrize("drawn", DRAWS)
@pytest.mark.parametrize(("chance", "want"), [(0.0, 0), (0.24, 0), (0.25, 2), (0.5, 4), (0.75, 5), (0.99, 5)])
def test_each_pixel_owns_its_share_of_the_chance(drawn, chance, want):
    weights = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]])
    assert drawn(weights, torch.tensor([chance], dtype=torch.float64))[0].item() == want


@pytest.mark.parametrize("drawn", DRAWS)
def test_the_highest_chance_stays_in_its_mask(drawn):
    weights = torch.rand(5000, 3, 4, generator=seeded(8)) * (torch.rand(5000, 3, 4, generator=seeded(9)) < 0.3)
    index, found = drawn(weights, torch.full((5000,), 1 - 2**-53, dtype=torch.float64))
    last = torch.tensor([int(mask.nonzero()[-1]) for mask in weights.flatten(1)[found]])
    assert torch.equal(index[found], last)


@pytest.mark.parametrize("drawn", DRAWS)
@pytest.mark.parametrize("ulps", [-2, -1, 0, 1, 2])
def test_the_end_of_a_row_is_not_its_empty_margin(drawn, ulps):
    weights = torch.rand(3000, 3, 40, generator=seeded(10)) ** 8  # so uneven that float64 sums are rounded
    weights[:, :, :10] = weights[:, :, 30:] = 0
    row = weights.double().sum(2)
    chance = row[:, :2].sum(1) / row.sum(1) * (1 + ulps * 2**-53)  # where the draw passes from one row to the next
    index, _ = drawn(weights, chance)
    assert torch.all(weights.flatten(1).gather(1, index[:, None]) > 0)


@pytest.mark.parametrize("drawn", DRAWS)
@pytest.mark.parametrize("shape", [(1, 65, 1), (1, 1, 65)])
def test_light_pixels_beside_a_heavy_one_are_in_reach(drawn, shape):
    weights = torch.ones(65)
    weights[0] = 2**24  # a float32 sum stops growing here
    for want in (1, 32, 64):
        chance = torch.tensor([(2**24 + want - 0.5) / (2**24 + 64)], dtype=torch.float64)
        assert drawn(weights.view(shape), chance)[0].item() == want


@pytest.mark.parametrize("drawn", DRAWS)
def test_a_million_small_weights_are_all_in_reach(drawn):
    weights = torch.full((1, 1000, 1000), 1 / 255)  # a float32 sum would miss some
    chance = torch.tensor([0.999_999_9], dtype=torch.float64)
    assert drawn(weights, chance)[0].item() == 999_999
    chance = torch.tensor([0.999_998_5], dtype=torch.float64)
    assert drawn(weights, chance)[0].item() == 999_998


@pytest.mark.parametrize("drawn", DRAWS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", [3, 100])  # below and above BLOCK squared
def test_a_weight_that_is_not_finite_stays_in_its_mask_and_leaves_the_others_alone(drawn, value, side):
    weights = torch.rand(6, side, side, generator=seeded(14))
    bad = weights.clone()
    bad[1, 0, 1], bad[3, -1, -1], bad[5] = value, value, value
    for share in (0.0, 0.3, 1 - 2**-53):
        chance = torch.full((6,), share, dtype=torch.float64)
        index, _ = drawn(bad, chance)
        assert torch.all((index >= 0) & (index < side**2))
        assert torch.equal(index[::2], drawn(weights, chance)[0][::2])
        none, ones = torch.zeros(6, 1, side, side), torch.ones(6, 1, side, side)
        xy, _, _ = correction_points(none, ones, bad[:, None], chance=chance)
        assert torch.all((xy >= 0) & (xy < side))


def test_masks_without_weight_are_told_apart():
    weights = torch.cat((draw("... ..."), draw("... .#."), draw("... ...")))
    xy, found = sample_points(weights, generator=seeded())
    assert found.tolist() == [False, True, False]
    assert xy.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert xy.dtype == torch.float32
    assert not sample_points(weights[:1], generator=seeded())[1].any()
    assert sample_points(weights[:0], generator=seeded())[0].shape == (0, 2)


def test_a_mask_draws_the_same_whatever_its_neighbours_are():
    weights = maps()[:, None]
    xy, _ = sample_points(weights, generator=seeded(1))
    changed = weights.clone()
    changed[:4] *= 0.5
    changed[4:] = 0
    assert torch.equal(sample_points(changed, generator=seeded(1))[0][:4], xy[:4])


def test_sampling_takes_half_precision_and_leaves_gradients_alone():
    weights = maps()[:, None].bfloat16().requires_grad_()
    xy, found = sample_points(weights, generator=seeded())
    assert found.all()
    assert not xy.requires_grad


def test_box_noise_has_the_right_spread_and_its_coordinates_are_independent():
    box = torch.tensor([[400.0, 500.0, 600.0, 900.0]])  # 200 wide, 400 high
    drawn = normal(torch.arange(40_000), start=0, count=4)
    noise = jitter_boxes(box.repeat(40_000, 1), side=2048, noise=drawn, limit=1e9) - box
    assert noise.std(0).tolist() == pytest.approx([20, 40, 20, 40], rel=0.02)
    assert (noise.mean(0) / noise.std(0)).abs().max() < 0.02  # the public code moves boxes right and down only
    assert (torch.corrcoef(noise.T) - torch.eye(4)).abs().max() < 0.02


def test_box_noise_is_cut_not_drawn_again():
    box = torch.tensor([[400.0, 500.0, 600.0, 900.0]])
    drawn = normal(torch.arange(40_000), start=0, count=4)
    noise = jitter_boxes(box.repeat(40_000, 1), side=2048, noise=drawn) - box
    assert noise.abs().max() <= 20
    at_limit = (noise.abs() > 19.999).double().mean(0)
    outside = [2 * stats.norm.sf(20 / sd) for sd in (20, 40, 20, 40)]
    assert at_limit.tolist() == pytest.approx(outside, abs=0.01)


@settings(max_examples=50, deadline=None)
@given(
    corners=st.lists(st.integers(0, 63), min_size=4, max_size=4),
    scale=st.floats(0, 5),
    seed=st.integers(0, 10),
)
def test_noisy_boxes_stay_boxes_in_the_frame(corners, scale, seed):
    x, y = sorted(corners[:2]), sorted(corners[2:])
    box = torch.tensor([[x[0], y[0], x[1], y[1]]])
    out = jitter_boxes(box, side=64, noise=normal(torch.tensor([seed]), start=0, count=4), scale=scale)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 63
    assert torch.all(out[:, :2] <= out[:, 2:])
    if scale == 0:
        assert torch.equal(out, box.float())


@pytest.mark.parametrize("kind", ["bool", "float", "logits"])
def test_correction_weights_are_the_certainty_where_the_prediction_is_wrong(kind):
    seen = draw("##. #..")
    prediction = {"bool": seen > 0, "float": seen, "logits": seen * 0.6 - 0.3}[kind]
    certainty = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.0]]).view(1, 1, 2, 3)
    out = correction_weights(prediction, draw("#.. ..#"), certainty)
    assert out.dtype == certainty.dtype
    torch.testing.assert_close(out[0, 0], torch.tensor([[0.0, 0.2, 0.0], [0.4, 0.0, 0.0]]))


@pytest.mark.parametrize("kind", ["bool", "float", "logits"])
def test_correction_points_are_the_points_of_their_weights(kind):
    """The short way of the CPU against the long one; half of the masks have errors of no certainty or none at all."""
    generator = seeded(21)
    target = torch.rand(400, 1, 9, 7, generator=generator) > 0.5
    seen = target ^ (torch.rand(400, 1, 9, 7, generator=generator) < torch.rand(400, 1, 1, 1, generator=generator) / 9)
    certainty = torch.rand(400, 1, 9, 7, generator=generator) * (torch.rand(400, 1, 9, 7, generator=generator) > 0.5)
    chance = torch.rand(400, generator=generator, dtype=torch.float64)
    prediction = {"bool": seen, "float": seen.float(), "logits": seen * 0.6 - 0.3}[kind]
    label = target if kind == "bool" else target.float()
    xy, labels, found = correction_points(prediction, label, certainty, chance=chance)
    weights = correction_weights(prediction, label, certainty)
    index, some = prompts._draw_dense(weights[:, 0], chance)
    assert torch.equal(found, some)
    assert 100 < found.sum() < 350
    assert torch.equal((xy[:, 1] * 7 + xy[:, 0]).long(), torch.where(found, index, 0))
    assert torch.equal(labels[found], point_labels(label, xy)[found])
    assert torch.all(labels[~found] == 1)


@pytest.mark.parametrize("side", [1, 8, 100])
def test_errors_without_certainty_are_no_place_for_a_point(side):
    none, all_of_it = torch.zeros(3, 1, side, side), torch.ones(3, 1, side, side)
    certainty = torch.cat([none[:1], all_of_it[:1], none[:1]])
    xy, label, found = correction_points(
        none, all_of_it, certainty, chance=torch.full((3,), 1 - 2**-53, dtype=torch.float64)
    )
    assert found.tolist() == [False, True, False]
    assert xy.tolist() == [[0, 0], [side - 1, side - 1], [0, 0]]
    assert label.tolist() == [1, 1, 1]


def test_correction_points_follow_the_certainty():
    weights, times = maps()[:, None], 5000
    target = torch.rand(weights.shape, generator=seeded(1)) > 0.5
    wrong = torch.rand(weights.shape, generator=seeded(2)) > 0.3
    chance = torch.rand(8 * times, generator=seeded(22), dtype=torch.float64)
    given = (x.repeat(times, 1, 1, 1) for x in (target ^ wrong, target, weights))
    xy, _, found = correction_points(*given, chance=chance)
    index = (xy[:, 1] * 16 + xy[:, 0]).long().view(times, 8)
    for which in range(8):
        some = (weights * wrong)[which]
        assert torch.all(found.view(times, 8)[:, which] == (some.sum() > 0))
        if some.any():
            assert p_value(index[:, which], some) > 1e-3, which


def test_corrections_only_fall_on_certain_errors_and_carry_the_right_label():
    generator = seeded(7)
    target = (torch.rand(50, 1, 9, 9, generator=generator) > 0.5).float()
    prediction = torch.rand(50, 1, 9, 9, generator=generator) > 0.5
    certainty = torch.rand(50, 1, 9, 9, generator=generator) * (torch.rand(50, 1, 9, 9, generator=generator) > 0.3)
    xy, found = sample_points(correction_weights(prediction, target, certainty), generator=generator)
    labels = point_labels(target, xy)
    assert found.all()
    for mask, ((x, y), label) in enumerate(zip(xy.long().tolist(), labels.tolist(), strict=True)):
        assert certainty[mask, 0, y, x] > 0
        assert label == target[mask, 0, y, x]
        assert label != prediction[mask, 0, y, x]
