"""The gate's verdict as the report shows it: data/registry/BUDGET.json in words and per cent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sum.data.scores import METRICS

YIELD = "yield"  # the family whose figures are masks an image, not shares
HEADS = ("base", "tuned", "gain", "95 % interval", "p", "at least", "masks", "images")
NONE = "–"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure that the gate looked at, in words."""

    kind: str
    name: str
    cells: tuple[str, ...]  # of HEADS
    word: str  # ok, fails or empty where nothing is asked

    @property
    def gain(self) -> str:
        """Tuned less base."""
        return self.cells[HEADS.index("gain")]

    @property
    def interval(self) -> str:
        """Of the gain, 95 %."""
        return self.cells[HEADS.index("95 % interval")]

    @property
    def limit(self) -> str:
        """What the lower end (of a yield the gain) had to reach."""
        return self.cells[HEADS.index("at least")]


@dataclass(frozen=True, slots=True)
class Line:
    """A kind of prompt or check: what was asked of it, and its row of every name, None where there is none."""

    kind: str
    limit: str  # the same for all, or from the least to the most
    rows: tuple[Row | None, ...]  # of Verdict.names


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate said of one model."""

    model: str
    word: str  # promoted, refused or undecided
    reasons: tuple[str, ...]
    rows: tuple[Row, ...] = ()
    unseen: tuple[str, ...] = ()  # what it did not look at
    notes: tuple[str, ...] = ()  # the figure it decided by, an override, and who was champion then

    @property
    def names(self) -> list[str]:
        """`all` and the tasks, in the order of the first kinds that have them."""
        return list(dict.fromkeys(row.name for row in self.rows))

    @property
    def lines(self) -> list[Line]:
        """The rows as a table of kinds by names."""
        found: dict[str, dict[str, Row]] = {}
        for row in self.rows:
            found.setdefault(row.kind, {})[row.name] = row
        return [
            Line(kind, _span([row.limit for row in rows.values()]), tuple(rows.get(name) for name in self.names))
            for kind, rows in found.items()
        ]


def read_verdict(path: Path, *, model: str) -> Verdict:
    """Of data/registry/BUDGET.json; undecided, and with the command, where there is none yet."""
    if not path.is_file():
        return Verdict(model, "undecided", (f"run `dvc repro register@{model}`",))
    return to_verdict(json.loads(path.read_text(encoding="utf-8")), model=model)


def to_verdict(found: Mapping[str, Any], *, model: str) -> Verdict:
    """Of what stage register writes there."""
    rows = tuple(_row(row) for row in found.get("table", []) if row["scope"] != "dataset")
    unseen = tuple(found.get("not_looked_at", []))
    return Verdict(model, found["verdict"], tuple(found["reasons"]), rows, unseen, tuple(_notes(found)))


def _notes(found: Mapping[str, Any]) -> Iterator[str]:
    if "metric" in found:
        yield f"by {METRICS[found['metric']]} after rounds {', '.join(map(str, found['rounds']))}"
    if found.get("override"):
        yield f"champion against the gate, by override: {found['override']}"
    held = found.get("champion") or {}
    if "why" in held:
        now = f"version {held['version']} ({held['budget']})" if held.get("version") else "nobody"
        yield f"champion when this was decided: {now}; {held['why']}"


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
    kind = row["kind"] if family in row["kind"] else f"{family}: {row['kind']}"  # `box + 2 points` says that it is box
    return Row(kind, row["name"], cells, word)


def _span(limits: Sequence[str]) -> str:
    """What several rows were asked, in words."""
    asked = sorted({limit for limit in limits if limit != NONE}, key=float)
    return " to ".join(dict.fromkeys(asked[:1] + asked[-1:])) or NONE


def _text(value: float | None, form: str) -> str:
    return NONE if value is None else f"{value:{form}}"
