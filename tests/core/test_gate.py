"""The gate as a table: changes in, verdict out."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import get_args, get_type_hints

import pytest

from sum.core import gate
from sum.core.gate import ASKED, CHECKS, USUAL, Change, Limits, Verdict, decide
from sum.data import score_tables
from sum.models import fidelity
from sum.settings import EvaluateConfig, RegisterConfig

LIMITS = Limits(min_gain=0.0, tolerance=0.01, fidelity_tolerance=0.05, min_yield=0.5, require=USUAL)


def change(
    family: str, kind: str, name: str, base: float, tuned: float, *, spread: float = 0.005, scope: str = "task"
) -> Change:
    """With an interval of `spread` to both sides."""
    gain = tuned - base
    bounds = {"gain": gain, "low": gain - spread, "high": gain + spread}
    return Change(family, kind, scope, name, base, tuned, p=0.5, masks=10, images=4, **bounds)


GOOD = {
    "gain": change("gain", "1, 3, 5 points", "all", 0.6, 0.63, scope="overall"),
    "point": change("point", "1 point", "part", 0.5, 0.52),
    "box": change("box", "box", "part", 0.521, 0.521),
    "everything": change("everything", "everything", "part", 0.4, 0.4),
    **{check: change("fidelity", check, "all", 0.98, 0.97, spread=0.02, scope="overall") for check in CHECKS},
    "yield": change("yield", "generated masks an image", "part", 12.0, 7.0),
}


def judged(limits: Limits = LIMITS, **other: Change | None) -> Verdict:
    """The verdict on GOOD with some rows replaced, or taken away."""
    return decide((row for row in (GOOD | other).values() if row is not None), limits=limits)


def test_better_and_nowhere_worse_is_promoted():
    verdict = judged()
    assert verdict.promoted
    told = "overall, 1, 3, 5 points: 60.0 -> 63.0: rises by 3.0 [2.5, 3.5]"
    assert verdict.reasons == (f"{told}; no task falls by more than 1.0 with any prompt",)
    assert verdict.not_looked_at == ()
    assert all(row.ok for row in verdict.table)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            change("gain", "1, 3, 5 points", "all", 0.6, 0.603, scope="overall"),  # not surely a gain
            "overall, 1, 3, 5 points: 60.0 -> 60.3: rises by 0.3 [-0.2, 0.8], wanted is surely more than 0.0",
        ),
        (
            change("box", "box", "part", 0.521, 0.502, spread=0.007),
            "part, box: 52.1 -> 50.2: falls by 1.9 [1.2, 2.6], at most 1.0 is tolerated",
        ),
        (
            change("point", "3, 5 points", "part", 0.521, 0.517, spread=0.01),  # tolerated, but may be more
            "part, 3, 5 points: 52.1 -> 51.7: falls by 0.4 [-0.6, 1.4], a fall of more than 1.0 is not ruled out",
        ),
        (
            change("box", "box", "part", 0.5, 0.4898, spread=0.001),  # 1.0 would look like the limit
            "part, box: 50.00 -> 48.98: falls by 1.02 [0.92, 1.12], at most 1.00 is tolerated",
        ),
        (
            change("point", "box", "part", 0.5, 0.496, spread=0.00604),  # as would its bound, also with two digits
            "part, box: 50.000 -> 49.600: falls by 0.400 [-0.204, 1.004], a fall of more than 1.000 is not ruled out",
        ),
        (
            change("everything", "everything", "part", 0.5, 0.51, spread=0.03),
            "part, everything: 50.0 -> 51.0: rises by 1.0 [-2.0, 4.0], a fall of more than 1.0 is not ruled out",
        ),
        (
            change("fidelity", "negative", "all", 0.98, 0.91, scope="overall"),
            "fidelity, negative: 98.0 -> 91.0: falls by 7.0 [6.5, 7.5], at most 5.0 is tolerated",
        ),
        (
            change("yield", "generated masks an image", "part", 12.0, 4.5),
            "part, generated masks an image: 12.0 -> 4.5, at least 50% of the base's is wanted",
        ),
        (
            change("yield", "generated masks an image", "all", 12.0, 4.5, scope="overall"),
            "overall, generated masks an image: 12.0 -> 4.5, at least 50% of the base's is wanted",
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, Change) else "",
)
def test_one_thing_worse_is_refused_and_told_in_figures(row, reason):
    place = row.kind if row.family == "fidelity" else row.family
    verdict = judged(**{place: row})
    assert not verdict.promoted
    assert verdict.reasons == (reason,)


@pytest.mark.parametrize(
    ("family", "scope", "kept", "lost"),
    [
        ("gain", "overall", 1e-6, 0.0),  # no gain is no gain
        ("point", "task", -0.01, -0.010001),
        ("box", "task", -0.01, -0.010001),
        ("everything", "task", -0.01, -0.010001),
        ("fidelity", "overall", -0.05, -0.050001),
    ],
)
def test_the_lower_bound_decides_at_the_limit_itself(family, scope, kept, lost):
    for low, ok in ((kept, True), (lost, False)):
        row = replace(change(family, "negative", "all", 0.5, 0.5, scope=scope), low=low)
        assert judged(**{"negative" if family == "fidelity" else family: row}).promoted is ok


@pytest.mark.parametrize(("tuned", "ok"), [(6.0, True), (5.99, False)])
def test_a_yield_is_compared_itself_not_by_its_bound(tuned, ok):
    assert judged(**{"yield": change("yield", "masks", "part", 12.0, tuned, spread=3.0)}).promoted is ok


def test_a_base_that_generates_nothing_asks_nothing_of_the_yield():
    assert judged(**{"yield": change("yield", "masks", "part", 0.0, 0.0)}).promoted


def test_data_sets_are_looked_at_only():
    for family in ("gain", "box", "fidelity", "yield"):
        row = change(family, "box", "coift", 0.9, 0.1, scope="dataset")
        verdict = judged(extra=row)
        assert verdict.promoted
        assert [entry.ok for entry in verdict.table if entry.change == row] == [None]


@pytest.mark.parametrize("place", list(GOOD))
def test_nan_is_never_a_pass(place):
    verdict = judged(**{place: replace(GOOD[place], tuned=math.nan, gain=math.nan, low=math.nan, high=math.nan)})
    assert not verdict.promoted
    assert "nan" in verdict.reasons[0]


def test_all_that_is_wrong_is_told():
    worse = {name: change("box", "box", name, 0.5, 0.3) for name in ("entity", "part", "salient")}
    assert [reason.split(",")[0] for reason in judged(**worse).reasons] == ["entity", "part", "salient"]


@pytest.mark.parametrize(
    ("gone", "name"),
    [(["box"], "box"), (["everything"], "everything"), (["yield"], "everything"), ([*CHECKS], "fidelity")],
)
def test_what_was_not_evaluated_does_not_pass_in_silence(gone, name):
    without = dict.fromkeys(gone)
    verdict = judged(**without)
    assert not verdict.promoted
    assert verdict.reasons[0].startswith(f"{name}: not evaluated, but register.require names it; see evaluate.")
    assert verdict.not_looked_at == (name,)
    lax = judged(replace(LIMITS, require=("point",)), **without)
    assert lax.promoted
    assert lax.not_looked_at == (name,)  # named all the same


def test_a_check_without_a_mask_to_ask_of_is_named():
    verdict = judged(swap=None)
    assert verdict.promoted
    assert verdict.not_looked_at == ("fidelity: swap",)


def test_a_table_without_an_overall_gain_is_no_ground_to_decide():
    with pytest.raises(ValueError, match="no overall gain"):
        judged(gain=None)


def test_settings_may_require_all_that_can_be_asked():
    require = get_type_hints(RegisterConfig)["require"]
    assert set(get_args(get_args(require)[0])) == set(ASKED)
    prompts = get_type_hints(EvaluateConfig)["prompts"]
    assert set(get_args(get_args(prompts)[0])) == set(ASKED) - {"everything", "fidelity"}
    assert tuple(RegisterConfig().require) == USUAL
    assert set(gate.CHECKS) == set(fidelity.CHECKS)
    assert gate.EVERYTHING == score_tables.EVERYTHING


def test_a_change_is_flat():
    assert not [value for value in asdict(GOOD["box"]).values() if not isinstance(value, str | int | float)]
