"""Sums of run lengths against drawn masks; what is no code is told apart and never read beyond its end."""

from __future__ import annotations

import numpy as np
import pytest

from sum.data.records import encode_mask
from sum.data.runs import BAD, run_totals


def test_totals_are_those_of_the_masks() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random(rng.integers(1, 60, 2)) < rng.random() for _ in range(600)]
    masks += [np.ones((3000, 2000), dtype=bool), np.zeros((5, 7), dtype=bool)]
    pixels, area = run_totals([encode_mask(mask) for mask in masks])
    assert pixels.tolist() == [mask.size for mask in masks]
    assert area.tolist() == [mask.sum() for mask in masks]


@pytest.mark.parametrize("code", ["", "c", "0c", "PPPPPPPPPPPP0"])
def test_what_breaks_off_is_no_code(code: str) -> None:
    pixels, area = run_totals([code, "12"])
    assert (pixels.tolist(), area.tolist()) == ([BAD, 3], [BAD, 2])


def test_nothing_is_nothing() -> None:
    assert [len(part) for part in run_totals([])] == [0, 0]
