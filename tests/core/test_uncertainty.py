from __future__ import annotations

import math

import pytest
import torch

from sum.core.uncertainty import OTHERS, UNCERTAINTY, confidence, discrepancy, from_codes, refinement, to_codes


def three_logits():
    return (torch.randn(3, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 3).unbind(0)


@pytest.mark.parametrize("name", sorted(UNCERTAINTY))
def test_every_method_keeps_the_contract(name):
    first, second, third = three_logits()
    out = UNCERTAINTY[name](first, second, third)
    assert out.shape == (2, 1, 8, 8)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1
    sure = torch.full_like(first, 20.0)
    assert UNCERTAINTY[name](sure, sure, sure).max() < 0.01  # sure and agreed: nothing to doubt
    assert UNCERTAINTY[name](first.bfloat16(), second.bfloat16(), third.bfloat16()).dtype == torch.float32
    assert UNCERTAINTY[name](first * 1e9, -second * 1e9, third * 1e9).isfinite().all()


@pytest.mark.parametrize("name", sorted(UNCERTAINTY))
def test_another_refiner_is_asked_for_where_one_is_compared_and_nowhere_else(name):
    first, second, third = three_logits()
    if name in OTHERS:
        with pytest.raises(ValueError, match="wants other_logits"):  # refinement would look like an answer
            UNCERTAINTY[name](first, second)
        assert torch.equal(UNCERTAINTY[name](first, second, third), UNCERTAINTY[name](-first, second, third))
    else:
        assert torch.equal(UNCERTAINTY[name](first, second, third), UNCERTAINTY[name](first, second))


@pytest.mark.parametrize(
    ("name", "sam", "refined", "want"),
    [
        ("refinement", 20.0, -20.0, 1.0),  # sure of opposites
        ("refinement", 1.0, 1.0, 0.0),
        ("refinement", math.log(3), 0.0, 0.25),  # 0.75 against 0.5
        ("refinement", 0.0, math.log(3), 0.25),  # either way round
        ("confidence", 0.0, 20.0, 1.0),  # a coin toss
        ("confidence", math.log(3), 0.0, 0.5),  # 1 - |2 * 0.75 - 1|
        ("confidence", -math.log(3), 0.0, 0.5),
        ("none", 0.0, 20.0, 0.0),
    ],
)
def test_values(name, sam, refined, want):
    out = UNCERTAINTY[name](torch.tensor([sam]), torch.tensor([refined]))
    assert out.item() == pytest.approx(want, abs=1e-6)


def test_the_methods_are_their_formulas():
    first, second, third = three_logits()
    p, q, o = (1 / (1 + (-plane.double()).exp()) for plane in (first, second, third))
    torch.testing.assert_close(discrepancy(first, second, third), (q - o).abs().float())
    torch.testing.assert_close(refinement(first, second), (p - q).abs().float())
    torch.testing.assert_close(confidence(first, second), (1 - (2 * p - 1).abs()).float())


def test_codes_round_to_the_nearest_and_come_back():
    codes = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_codes(from_codes(codes)), codes)
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert (from_codes(to_codes(values)) - values).abs().max() <= 0.5 / 255 + 1e-7
    assert to_codes(torch.tensor([0.0, 0.3 / 255, 0.7 / 255, 1.0])).tolist() == [0, 0, 1, 255]
    assert to_codes(torch.tensor([-0.01, 1.01])).tolist() == [0, 255]  # does not wrap around
    assert from_codes(codes).dtype == torch.float32
