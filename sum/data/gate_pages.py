"""The gate's verdict as the report shows it: data/registry/BUDGET.json in words and per cent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

YIELD = "yield"  # the family whose figures are masks an image, not shares


@dataclass(frozen=True, slots=True)
class Row:
    """One figure that the gate looked at, in words."""

    kind: str
    name: str
    cells: tuple[str, ...]  # of HEADS
    word: str  # ok, fails or empty where nothing is asked


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate said of one model."""

    model: str
    word: str  # promoted, refused or undecided
    reasons: tuple[str, ...]
    rows: tuple[Row, ...] = ()
    unseen: tuple[str, ...] = ()  # what it did not look at


HEADS = ("base", "tuned", "gain", "95 % interval", "p", "at least", "masks", "images")


def read_verdict(path: Path, *, model: str) -> Verdict:
    """Of data/registry/BUDGET.json; undecided, and with the command, where there is none yet."""
    if not path.is_file():
        return Verdict(model, "undecided", (f"run `dvc repro register@{model}`",))
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = tuple(_row(row) for row in found.get("table", []) if row["scope"] != "dataset")
    return Verdict(model, found["verdict"], tuple(found["reasons"]), rows, tuple(found.get("not_looked_at", [])))


def _row(row: Mapping[str, Any]) -> Row:
    family = row.get("family", row["kind"])
    share = family != YIELD
    factor, form = (100, ".1f") if share else (1, ".2f")
    base, tuned, gain, low, high, limit = (
        None if row.get(key) is None else factor * row[key] for key in ("base", "tuned", "gain", "low", "high", "limit")
    )
    cells = (
        _text(base, form),
        _text(tuned, form),
        _text(gain, f"+{form}"),
        f"{_text(low, f'+{form}')} to {_text(high, f'+{form}')}",
        _text(row.get("p"), ".3f"),
        _text(limit, f"+{form}"),
        f"{row['masks']:,}",
        f"{row['images']:,}",
    )
    word = {True: "ok", False: "fails", None: ""}[row.get("ok")]
    kind = row["kind"] if family in (row["kind"], None) else f"{family}: {row['kind']}"
    return Row(kind, row["name"], cells, word)


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"
