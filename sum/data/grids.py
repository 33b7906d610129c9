"""The comparison table as people read it: a row a model, a column a task and metric, in per cent; Markdown and CSV."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sum.data.scores import METRICS, task_names

MARKS = {"better": "▲", "worse": "▼", "": ""}


@dataclass(frozen=True, slots=True)
class Cell:
    """One mean and its 95 % interval, and the paired difference to the base with its own; all in per cent."""

    mean: float
    low: float
    high: float
    gain: float | None  # None for the base
    gain_low: float
    gain_high: float

    @property
    def value(self) -> str:
        """Mean and half the width of its interval."""
        return f"{self.mean:.1f} ±{(self.high - self.low) / 2:.1f}"

    @property
    def change(self) -> str:
        """Difference to the base, marked when its interval leaves out 0; a dash for the base."""
        if self.gain is None:
            return "–"
        half = (self.gain_high - self.gain_low) / 2
        return f"{round(self.gain, 1) + 0.0:+.1f} ±{half:.1f} {MARKS[self.verdict]}".rstrip()  # + 0.0: no -0.0

    @property
    def verdict(self) -> str:
        """better or worse than the base when the interval of the difference leaves out 0, else empty."""
        if self.gain is None:
            return ""
        return "better" if self.gain_low > 0 else "worse" if self.gain_high < 0 else ""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table: a model after some rounds."""

    round: int
    model: str
    cells: tuple[Cell, ...]  # in the order of `columns`


@dataclass(frozen=True, slots=True)
class Grid:
    """The whole table."""

    columns: tuple[tuple[str, str], ...]  # (task or all, mIoU or mBIoU)
    lines: tuple[Line, ...]


def make_grid(table: pd.DataFrame, *, scope: str = "task") -> Grid:
    """Arrange a `comparison_table`; scope task: the tasks, then all; scope dataset: the data sets."""
    chosen = table[table["scope"] == scope]
    names = task_names(chosen["name"]) if scope == "task" else sorted(set(chosen["name"]))
    if scope == "task":
        chosen, names = table[table["scope"].isin(["task", "overall"])], [*names, "all"]
    columns = tuple((name, metric) for name in names for metric in METRICS)
    cells = {(row["round"], row["model"], row["name"], row["metric"]): _cell(row) for row in chosen.to_dict("records")}
    models = list(dict.fromkeys(chosen["model"]))
    lines = tuple(
        Line(number, model, tuple(cells[number, model, name, metric] for name, metric in columns))
        for number in sorted({int(number) for number in chosen["round"]})
        for model in models
    )
    return Grid(tuple((name, METRICS[metric]) for name, metric in columns), lines)


def to_markdown(grid: Grid, *, unit: str = "points") -> str:
    """Two Markdown tables: the means, and the differences to the base. unit: what a round adds."""
    head = [unit, "model", *(f"{name} {metric}" for name, metric in grid.columns)]
    values = [[str(line.round), line.model, *(cell.value for cell in line.cells)] for line in grid.lines]
    changes = [
        [str(line.round), line.model, *(cell.change for cell in line.cells)]
        for line in grid.lines
        if any(cell.gain is not None for cell in line.cells)
    ]
    parts = [_markdown(head, values), "Per cent; ± is half the width of the 95 % interval (bootstrap over images)."]
    if changes:
        parts += [
            "Difference to the base on the same masks; ▲ better, ▼ worse: the 95 % interval leaves out 0.",
            _markdown(head, changes),
        ]
    return "\n\n".join(parts) + "\n"


def to_csv(grid: Grid) -> str:
    """A row a model; columns `salient mIoU@1` and its low, high, gain, gain_low, gain_high; per cent, two decimals."""
    rows: dict[str, dict[str, float | None]] = {}
    for line in grid.lines:
        row = rows.setdefault(line.model, {})
        for (name, metric), cell in zip(grid.columns, line.cells, strict=True):
            key = f"{name} {metric}@{line.round}"
            row |= {key: cell.mean, f"{key} low": cell.low, f"{key} high": cell.high}
            row |= {f"{key} gain": cell.gain, f"{key} gain_low": cell.gain_low, f"{key} gain_high": cell.gain_high}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    return frame.to_csv(float_format="%.2f", lineterminator="\n")


def _cell(row: Mapping[Hashable, Any]) -> Cell:
    mean, low, high, gain, gain_low, gain_high = (
        100 * row[name] for name in ("mean", "low", "high", "gain", "gain_low", "gain_high")
    )
    return Cell(mean, low, high, None if pd.isna(gain) else gain, gain_low, gain_high)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns are also aligned in a terminal."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    rule = ["-" * width if column < 2 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines = [head, rule, *rows]
    texts = [
        [
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in texts)
