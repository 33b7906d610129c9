"""The comparison table as people read it: a row a model, a column a task and metric, in per cent; Markdown and CSV."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import pandas as pd

from sum.data.published import published
from sum.data.scores import METRICS, task_names

PUBLISHED = "published"
MARKS = {"better": "▲", "worse": "▼", "": ""}


@dataclass(frozen=True, slots=True)
class Cell:
    """One mean and its 95 % interval, and the paired difference to the base with its own; all in per cent."""

    mean: float
    low: float = nan  # NaN: no interval is known
    high: float = nan
    gain: float | None = None  # None for the base
    gain_low: float = nan
    gain_high: float = nan

    @property
    def value(self) -> str:
        """Mean and half the width of its interval."""
        if isnan(self.low):
            return f"{self.mean:.1f}"
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
class Words:
    """A cell that is no mean in per cent: what stands in it, what stands below, and `better`, `worse` or empty."""

    value: str
    change: str = "–"
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table: a model after some rounds."""

    group: str  # what lines below each other share: the rounds, or the size of masks, ...
    model: str
    cells: tuple[Cell | Words | None, ...]  # in the order of `columns`; None: there is nothing
    published: bool = False  # figures of the paper, not ours


@dataclass(frozen=True, slots=True)
class Grid:
    """The whole table."""

    columns: tuple[tuple[str, str], ...]  # (task or all, mIoU or mBIoU)
    lines: tuple[Line, ...]

    @property
    def heads(self) -> list[tuple[str, int]]:
        """The first row of headings: words, and over how many columns they stand."""
        return [(name, len(list(part))) for name, part in itertools.groupby(self.columns, key=lambda pair: pair[0])]

    @property
    def groups(self) -> list[tuple[str, list[Line]]]:
        """The lines, group by group."""
        return [(name, list(part)) for name, part in itertools.groupby(self.lines, key=lambda line: line.group)]


def make_grid(table: pd.DataFrame, *, scope: str = "task", group: str = "round") -> Grid:
    """Arrange a `comparison_table`; scope task: the tasks, then all; scope dataset: the data sets.

    group: the column that tells groups of lines apart, in the order in which they come.
    """
    chosen = table[table["scope"] == scope]
    names = task_names(chosen["name"]) if scope == "task" else sorted(set(chosen["name"]))
    if scope == "task":
        chosen, names = table[table["scope"].isin(["task", "overall"])], [*names, "all"]
    columns = tuple((name, metric) for name in names for metric in METRICS)
    cells = {(row[group], row["model"], row["name"], row["metric"]): to_cell(row) for row in chosen.to_dict("records")}
    models = list(dict.fromkeys(chosen["model"]))
    lines = tuple(
        Line(str(key), model, tuple(cells.get((key, model, name, metric)) for name, metric in columns))
        for key in _groups(chosen[group])
        for model in models
    )
    return Grid(tuple((name, METRICS[metric]) for name, metric in columns), lines)


def with_published(grid: Grid, names: Collection[str], *, prompt: str) -> Grid:
    """Add what was published of the columns in `names`, after the lines of the same round."""
    metrics = {heading: metric for metric, heading in METRICS.items()}
    lines: list[Line] = []
    for key, own in grid.groups:
        found = [
            published(name, prompt=prompt, number=int(key), metric=metrics[heading]) if name in names else {}
            for name, heading in grid.columns
        ]
        lines += own
        for model in dict.fromkeys(model for column in found for model in column):
            cells = tuple(Cell(column[model]) if model in column else None for column in found)
            lines.append(Line(key, model, cells, published=True))
    return Grid(grid.columns, tuple(lines))


def transposed(grid: Grid) -> Grid:
    """Rows and columns changed: a line a name (data set), a column a model and metric; published ones say so."""
    names = list(dict.fromkeys(name for name, _ in grid.columns))
    metrics = list(dict.fromkeys(metric for _, metric in grid.columns))
    models = list(dict.fromkeys((line.model, line.published) for line in grid.lines))
    lines = []
    for key, own in grid.groups:
        of = {(line.model, line.published): dict(zip(grid.columns, line.cells, strict=True)) for line in own}
        for name in names:
            cells = tuple(of.get(model, {}).get((name, metric)) for model in models for metric in metrics)
            lines.append(Line(key, name, cells))
    heads = [f"{model}, {PUBLISHED}" if printed else model for model, printed in models]
    return Grid(tuple((head, metric) for head in heads for metric in metrics), tuple(lines))


def to_markdown(grid: Grid, *, unit: str = "points") -> str:
    """Two Markdown tables: the means, and the differences to the base. unit: what a round adds."""
    head = [unit, "model", *(f"{name} {metric}" for name, metric in grid.columns)]
    values = [[line.group, line.model, *(cell.value if cell else "–" for cell in line.cells)] for line in grid.lines]
    changes = [
        [line.group, line.model, *(cell.change if cell else "–" for cell in line.cells)]
        for line in grid.lines
        if any(cell.change != "–" for cell in line.cells if cell)
    ]
    parts = [markdown(head, values), "Per cent; ± is half the width of the 95 % interval (bootstrap over images)."]
    if changes:
        parts += [
            "Difference to the base on the same masks; ▲ better, ▼ worse: the 95 % interval leaves out 0.",
            markdown(head, changes),
        ]
    return "\n\n".join(parts) + "\n"


def to_csv(grid: Grid) -> str:
    """A row a model; columns `salient mIoU@1` and its low, high, gain, gain_low, gain_high; per cent, two decimals."""
    rows: dict[str, dict[str, float | None]] = {}
    for line in grid.lines:
        row = rows.setdefault(line.model, {})
        for (name, metric), cell in zip(grid.columns, line.cells, strict=True):
            if not isinstance(cell, Cell):
                continue
            key = f"{name} {metric}@{line.group}"
            row |= {key: cell.mean, f"{key} low": cell.low, f"{key} high": cell.high}
            row |= {f"{key} gain": cell.gain, f"{key} gain_low": cell.gain_low, f"{key} gain_high": cell.gain_high}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")
    return frame.to_csv(float_format="%.2f", lineterminator="\n")


def _groups(keys: Iterable[Any]) -> Sequence[Any]:
    """Distinct keys as they come; rounds by number."""
    found = list(dict.fromkeys(keys))
    return found if any(isinstance(key, str) for key in found) else sorted(found)


def to_cell(row: Mapping[Hashable, Any]) -> Cell:
    """A row of a `comparison_table`, values 0..1, in per cent."""
    mean, low, high, gain, gain_low, gain_high = (
        100 * row[name] for name in ("mean", "low", "high", "gain", "gain_low", "gain_high")
    )
    return Cell(mean, low, high, None if pd.isna(gain) else gain, gain_low, gain_high)


def markdown(head: list[str], rows: list[list[str]]) -> str:
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
