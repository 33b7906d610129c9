"""Run lengths, their sums and boxes, against drawn masks; what is no code is told apart, never read beyond its end."""

from __future__ import annotations

import numpy as np
import pytest

from sum.data.records import encode_mask
from sum.data.runs import AT_ONCE, BAD, read_runs, run_facts
from tests.data.coded import code


def test_totals_are_those_of_the_masks() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random(rng.integers(1, 60, 2)) < rng.random() for _ in range(600)]
    masks += [np.ones((3000, 2000), dtype=bool), np.zeros((5, 7), dtype=bool)]
    assert len(masks) > AT_ONCE
    pixels, area, alternate = run_facts([encode_mask(mask) for mask in masks])
    assert pixels.tolist() == [mask.size for mask in masks]
    assert area.tolist() == [mask.sum() for mask in masks]
    assert alternate.all()


@pytest.mark.parametrize("text", ["", "c", "0c", "PPPPPPPPPPPP0", "1 2", "1\x7f2", "\u00e9"])
def test_what_breaks_off_is_no_code(text: str) -> None:
    pixels, area, alternate = run_facts([text, "12", text])
    assert (pixels.tolist(), area.tolist()) == ([BAD, 3, BAD], [BAD, 2, BAD])
    assert alternate.tolist() == [False, True, False]


def test_nothing_is_nothing() -> None:
    assert [len(part) for part in run_facts([])] == [0, 0, 0]
    assert read_runs([]).boxes(np.zeros(0, dtype=np.int64)).shape == (0, 4)


def test_boxes_are_those_of_the_drawn_masks() -> None:
    rng = np.random.default_rng(1)
    masks = [rng.random(rng.integers(1, 30, 2)) < rng.random() ** 3 for _ in range(400)]
    found = read_runs([encode_mask(mask) for mask in masks]).boxes(np.array([len(mask) for mask in masks]))
    for mask, box in zip(masks, found.tolist(), strict=True):
        ys, xs = np.nonzero(mask)
        assert box == ([xs.min(), ys.min(), xs.max(), ys.max()] if len(xs) else [BAD] * 4)


@pytest.mark.parametrize(("runs", "right"), [
    ([0, 3, 4], True),  # the first pixel is on
    ([3, 4], True),
    ([3, 0, 2, 4], False),
    ([3, 4, 0], False),
    ([9, 5, -3, 4], False),
    ([100_000, 1, 70_000, 33, 1], True),
])  # fmt: skip
def test_runs_of_other_writers(runs: list[int], right: bool) -> None:
    """Codes by hand, of runs that no mask has among them: the lengths come back, what is wrong is told."""
    found = read_runs([code(runs), code([1, 2])])
    assert found.lengths.tolist() == [*runs, 1, 2]
    assert found.alternate.tolist() == [right, True]
    assert found.pixels.tolist() == [sum(runs), 3]
    assert found.area.tolist() == [sum(runs[1::2]), 2]
