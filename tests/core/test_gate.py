"""The gate as a table: figures in, verdict out."""

from __future__ import annotations

import math

import pytest

from sum.core.gate import decide

BASE = {"entity": {"a": 0.6, "b": 0.8}, "part": {"c": 0.5}}


@pytest.mark.parametrize(
    ("tuned", "min_gain", "tolerance", "promoted", "reason"),
    [
        (
            {"entity": {"a": 0.7, "b": 0.8}, "part": {"c": 0.5}},
            0.0,
            0.01,
            True,
            "overall 0.6333 -> 0.6667: gain +0.0333",
        ),
        (BASE, 0.0, 0.01, False, "gain +0.0000, wanted more than 0"),  # equal is no gain
        ({"entity": {"a": 0.7, "b": 0.8}, "part": {"c": 0.5}}, 0.04, 0.01, False, "wanted more than 0.04"),
        (
            {"entity": {"a": 0.9, "b": 0.9}, "part": {"c": 0.48}},
            0.0,
            0.01,
            False,
            "part 0.5000 -> 0.4800: falls by 0.0200",
        ),
        ({"entity": {"a": 0.9, "b": 0.9}, "part": {"c": 0.48}}, 0.0, 0.03, True, "gain"),  # within the tolerance
        (
            {"entity": {"a": 0.9, "b": 0.6}, "part": {"c": 0.5}},
            0.0,
            0.0,
            True,
            "gain",
        ),  # a set may fall if its task rises
        (
            {"entity": {"a": 0.5, "b": 0.8}, "part": {"c": 0.6}},
            -0.5,
            0.0,
            False,
            "entity",
        ),  # overall equal, one task worse
        ({"entity": {"a": math.nan, "b": 0.8}, "part": {"c": 0.9}}, 0.0, 0.01, False, "nan"),  # never by accident
    ],
)
def test_verdict(tuned, min_gain, tolerance, promoted, reason):
    verdict = decide(BASE, tuned, min_gain=min_gain, tolerance=tolerance)
    assert verdict.promoted is promoted
    assert reason in "; ".join(verdict.reasons)


def test_every_set_weighs_the_same_in_the_overall_and_in_its_task():
    verdict = decide(BASE, BASE, min_gain=0, tolerance=0)
    assert verdict.base == pytest.approx((0.6 + 0.8 + 0.5) / 3)  # over sets, not over tasks (0.6)
    assert verdict.tasks["entity"] == (pytest.approx(0.7), pytest.approx(0.7))


def test_all_that_is_wrong_is_told():
    verdict = decide(BASE, {"entity": {"a": 0.1, "b": 0.1}, "part": {"c": 0.1}}, min_gain=0, tolerance=0.01)
    assert [reason.split()[0] for reason in verdict.reasons] == ["overall", "entity", "part"]


@pytest.mark.parametrize(
    "tuned", [{}, {"entity": {"a": 0.6}, "part": {"c": 0.5}}, {"salient": {"a": 0.6, "b": 0.8, "c": 1.0}}]
)
def test_other_data_sets_are_no_comparison(tuned):
    with pytest.raises(ValueError, match="different data sets"):
        decide(BASE, tuned, min_gain=0, tolerance=0)


def test_nothing_measured_is_no_comparison():
    with pytest.raises(ValueError, match="on none"):
        decide({}, {}, min_gain=0, tolerance=0)
