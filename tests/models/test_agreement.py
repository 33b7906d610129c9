"""Agreement of two sets of masks, against every pair of pixel masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sum.models.agreement import partners
from sum.models.candidates import GeneratedMask, encode

HW = (20, 30)


def masks(planes: np.ndarray) -> list[GeneratedMask]:
    none = np.zeros((1, 1), dtype=np.float16)
    return [
        GeneratedMask(code, 0, (0, 0, 0, 0), (0.0, 0.0), 0.0, 0.0, none) for code in encode(torch.from_numpy(planes))
    ]


def planes(count: int, seed: int) -> np.ndarray:
    """Rectangles: some pairs are nearly the same."""
    chance = np.random.default_rng(seed)
    out = np.zeros((count, *HW), dtype=bool)
    for plane in out:
        y, x = chance.integers(0, 3, 2)
        height, width = chance.integers(8, 16, 2)
        plane[y : y + height, x : x + width] = True
    return out


@pytest.mark.parametrize("least", [0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_every_pair_is_compared(least: float, seed: int) -> None:
    first, second = planes(12, seed), planes(17, seed + 100)
    ious = np.array([[(a & b).sum() / (a | b).sum() for b in second] for a in first])
    one, other = partners(masks(first), masks(second), hw=HW, least=least)
    assert one.tolist() == (ious >= least).any(1).tolist()
    assert other.tolist() == (ious >= least).any(0).tolist()
    if least == 0.8:
        assert 0 < one.sum() < 12


def test_masks_without_any_to_compare_have_no_partner() -> None:
    some = masks(planes(3, 0))
    assert [part.tolist() for part in partners(some, [], hw=HW)] == [[False] * 3, []]
    assert [part.tolist() for part in partners([], some, hw=HW)] == [[], [False] * 3]
    assert [part.tolist() for part in partners(some, some, hw=HW)] == [[True] * 3] * 2
