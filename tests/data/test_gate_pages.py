"""The gate's table in words, and folded to kinds by names."""

from __future__ import annotations

from typing import Any

from sum.data.gate_pages import to_verdict


def row(
    family: str, kind: str, name: str, *, limit: float | None, ok: bool | None, gain: float = 0.01
) -> dict[str, Any]:
    scope = {"all": "overall", "a": "dataset"}.get(name, "task")
    figures = {"base": 0.5, "tuned": 0.5 + gain, "gain": gain, "low": gain - 0.02, "high": gain + 0.02, "p": 0.25}
    place = {"family": family, "kind": kind, "scope": scope, "name": name}
    return {**place, **figures, "masks": 1200, "images": 40, "limit": limit, "ok": ok}


def test_kinds_by_names_say_what_was_asked_and_what_came() -> None:
    table = [
        row("box", "box + 2, 4 points", "all", limit=None, ok=None),
        row("box", "box + 2, 4 points", "part", limit=-0.02, ok=False, gain=-0.014),
        row("box", "box + 2, 4 points", "a", limit=None, ok=None),
        row("fidelity", "swap", "all", limit=-0.1, ok=True),
        row("yield", "generated masks an image", "all", limit=-9.585, ok=True, gain=2.5),
        row("yield", "generated masks an image", "part", limit=-10.25, ok=True, gain=3.0),
    ]
    verdict = to_verdict({"verdict": "refused", "reasons": ["part falls"], "table": table}, model="small")
    assert verdict.names == ["all", "part"]  # data sets have no column
    assert [(line.kind, line.limit) for line in verdict.lines] == [
        ("box + 2, 4 points", "-2.0"),  # asked of tasks only
        ("fidelity: swap", "-10.0"),
        ("yield: generated masks an image", "-10.25 to -9.59"),
    ]
    box, swap, generated = (line.rows for line in verdict.lines)
    assert [(found.word, found.gain, found.interval) for found in box if found] == [
        ("", "+1.0", "-1.0 to +3.0"),
        ("fails", "-1.4", "-3.4 to +0.6"),
    ]
    assert swap[1] is None
    assert [found.gain for found in generated if found] == ["+2.50", "+3.00"]
    assert verdict.rows[0].cells == ("50.0", "51.0", "+1.0", "-1.0 to +3.0", "0.250", "–", "1,200", "40")


def test_a_kind_of_which_nothing_is_asked_has_no_limit() -> None:
    verdict = to_verdict(
        {"verdict": "promoted", "reasons": [], "table": [row("box", "box", "all", limit=None, ok=None)]}, model="large"
    )
    assert [line.limit for line in verdict.lines] == ["–"]
