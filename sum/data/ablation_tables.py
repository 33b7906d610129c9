"""The tables of an ablation in the paper's shapes, as cells that Markdown and the page show alike. Per cent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sum.ablation import BASE, Row
from sum.data.ablation_costs import by_row
from sum.data.ablation_scores import REFERENCE, difference, published_gains, reference
from sum.data.grids import MARKS, PUBLISHED, Cell, Words, markdown
from sum.data.scores import METRICS, task_names

NONE = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """A table and what stands above it; a line is its name and its cells, whose `change` stands in brackets."""

    title: str
    words: str
    head: list[str]
    lines: list[tuple[str, list[Cell | Words]]]

    def to_markdown(self) -> str:
        """Title, words and table."""
        rows = [[name, *map(_text, cells)] for name, cells in self.lines]
        return "\n\n".join([f"## {self.title}", self.words, markdown(self.head, rows)])


def _text(cell: Cell | Words) -> str:
    return cell.value if cell.change == "–" else f"{cell.value} ({cell.change})"


def tables(
    long: pd.DataFrame, pairs: pd.DataFrame, costs: pd.DataFrame, *, rows: Sequence[Row], told: Sequence[int]
) -> list[Table]:
    """All of them. long: of the main game; told: the rounds that are shown."""
    unit = "prompts" if long["prompt"].iloc[0] == "box" else "points"
    found = []
    for budget in dict.fromkeys(row.budget for row in rows):
        own = [row for row in rows if row.budget == budget]
        found.append(_scores(long, own, told, name="all", title=f"{budget}: all tasks (as Table 1)", unit=unit))
        found.append(_variants(long, pairs, own, told, title=f"{budget}: methods (as Table 2)", unit=unit))
        tasks = task_names(long.loc[long["task"] != "all", "task"])
        found += [_scores(long, own, told, name=task, title=f"{budget}: {task}", unit=unit) for task in tasks]
    found.append(_costs(costs, rows))
    told_gains = list(published_gains(long))
    return [*found, _published(told_gains, rows)] if told_gains else found


def _scores(long: pd.DataFrame, rows: Sequence[Row], told: Sequence[int], *, name: str, title: str, unit: str) -> Table:
    """Rows, mIoU and mBIoU after the told rounds; published figures below where they are of the same data."""
    columns = [(metric, number) for metric in METRICS for number in told]
    part = long[long["task"] == name]
    lines: list[tuple[str, list[Cell | Words]]] = []
    for label, of in [(BASE, BASE), *((row.label, row.name) for row in rows)]:
        own = part[part["row"] == of].set_index(["metric", "round"]).to_dict("index")
        lines.append((label, [_cell(own[key]) for key in columns]))
        if any(line["published_same_data"] for line in own.values()):
            lines.append((f"{label}, {PUBLISHED}", [_printed(own[key]) for key in columns]))
    head = ["method", *(f"{METRICS[metric]}, {number}" for metric, number in columns)]
    words = f"After {', '.join(map(str, told))} {unit}; in brackets the difference to the base on the same masks."
    return Table(title, words, head, lines)


def _variants(
    long: pd.DataFrame, pairs: pd.DataFrame, rows: Sequence[Row], told: Sequence[int], *, title: str, unit: str
) -> Table:
    """mIoU over all sets after the told rounds, and what of the mean over them is sure: to the base, and to SUM."""
    part = long[(long["task"] == "all") & (long["metric"] == "iou")]
    lines: list[tuple[str, list[Cell | Words]]] = []
    for label, of in [(BASE, None), *((row.label, row) for row in rows)]:
        own = part[part["row"] == (of.name if of else BASE)].set_index("round").to_dict("index")
        cells: list[Cell | Words] = [Words(_cell(own[number]).value) for number in told]
        to_base = difference(pairs, of, BASE) if of else None
        to_sum = difference(pairs, of, reference(of)) if of and of.method != REFERENCE else None
        seeds = str(own[told[0]]["seeds"]) if of else NONE
        lines.append((label, [*cells, _difference(to_base), _difference(to_sum), Words(seeds)]))
    head = ["method", *(f"mIoU, {number}" for number in told), "to the base", f"to `{REFERENCE}` of its arch", "seeds"]
    words = (
        f"mIoU over all sets after {', '.join(map(str, told))} {unit}. Differences: of the mean over these, on the "
        f"same masks, with bounds of 95 % intervals over seeds and images; {MARKS['better']}, {MARKS['worse']}: the "
        "interval leaves out 0, others may be chance. Of twenty differences that are none, one is marked on average."
    )
    return Table(title, words, head, lines)


def _cell(row: Mapping[Any, Any]) -> Cell:
    gains = [100 * row[key] for key in ("gain", "gain_low", "gain_high")]
    own = [100 * row[key] for key in ("mean", "low", "high")]
    return Cell(*own, *gains) if row["gain"] == row["gain"] else Cell(*own)


def _printed(row: Mapping[Any, Any]) -> Words:
    return Words(f"{100 * row['published']:.1f}" if row["published"] == row["published"] else NONE)


def _difference(found: Mapping[str, float] | None) -> Words:
    if found is None:
        return Words(NONE)
    middle, low, high = (100 * found[key] for key in ("difference", "low", "high"))
    verdict = "better" if low > 0 else "worse" if high < 0 else ""
    return Words(f"{middle:+.1f} [{low:+.1f}, {high:+.1f}] {MARKS[verdict]}".rstrip(), verdict=verdict)


def _costs(costs: pd.DataFrame, rows: Sequence[Row]) -> Table:
    shown: Sequence[tuple[str, str, Callable[[float], str]]] = (
        ("trained", "trained numbers", lambda value: f"{value:,.0f}"),
        ("delta_mb", "delta, MB", lambda value: f"{value:.2f}"),
        ("seconds_a_step", "s a step", lambda value: f"{value:.2f}"),
        ("peak_memory_mb", "peak memory, MB", lambda value: f"{value:,.0f}"),
        ("training_seconds", "training, min", lambda value: f"{value / 60:.1f}"),
        ("total_seconds", "with evaluation, min", lambda value: f"{value / 60:.1f}"),
    )
    means = by_row(costs)
    lines: list[tuple[str, list[Cell | Words]]] = []
    for row in rows:
        values = [(float(means.loc[row.name, key]), text) for key, _, text in shown]  # type: ignore[arg-type]
        cells: list[Cell | Words] = [Words(text(value) if value == value else NONE) for value, text in values]
        lines.append((f"{row.budget}: {row.label}", cells))
    words = (
        "Of one run, means over seeds. Delta: the file of only what was trained. Memory: of the process on a CPU, of "
        "the device on a GPU. Runs that share a CPU slow each other down; cost.csv tells each run's device and threads."
    )
    return Table("What it costs", words, ["row", *(head for _, head, _ in shown)], lines)


def _published(gains: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> Table:
    """The paper's differences to SAM beside one's own."""
    labels = {row.name: f"{row.budget}: {row.label}" for row in rows}
    lines: list[tuple[str, list[Cell | Words]]] = []
    for line in gains:
        place = f"{labels[line['row']]}: {line['task']} {METRICS[line['metric']]}, {line['round']}"
        own = f"{line['gain']:+.1f} [{line['gain_low']:+.1f}, {line['gain_high']:+.1f}]"
        cells = [Words(f"{line['published']:.1f}"), Words(f"{line['published_gain']:+.1f}"), Words(own)]
        lines.append((place, [*cells]))
    words = (
        "As published for the same name of budget, method, metric and points: ViT-H on the paper's 14 sets. Where "
        "they are not the data sets above, values cannot be compared; at most the direction of a difference to SAM can."
    )
    return Table("Published", words, ["row", "published", "published, to SAM", "here, to the base"], lines)
