"""The tables of an ablation in the paper's shapes, as cells that Markdown and the page show alike. Per cent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sum.ablation import BASE, Row
from sum.data.ablation_costs import by_row
from sum.data.ablation_scores import REFERENCE, SINGLE, Scores, difference, over, published_gains, reference
from sum.data.grids import MARKS, PUBLISHED, Cell, Words
from sum.data.scores import METRICS, task_names

NONE = "-"
OF_PAPER = "Published"  # title of the table of figures of other data
TABLE_11 = 6  # its number of points
BEST = "the best of three answers after the first one counts (output oracle)"
ONE = (
    "the single answer counts in every round (output single), so that rows with one output, which stand in no other "
    "table of figures, are measured as all others are"
)


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
        return "\n\n".join([f"## {self.title}", self.words, _markdown(self.head, rows)])

    @property
    def published(self) -> bool:
        """Whether a figure of the paper stands in it."""
        return self.title == OF_PAPER or any(name.endswith(f", {PUBLISHED}") for name, _ in self.lines)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of a column of names and columns of figures, aligned in a terminal, too."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    texts = [
        [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]
        for line in (head, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in texts)


def _text(cell: Cell | Words) -> str:
    return cell.value if cell.change == "–" else f"{cell.value} ({cell.change})"


def tables(oracle: Scores, single: Scores, costs: pd.DataFrame, *, told: Sequence[int]) -> list[Table]:
    """All of them. oracle: of the rows with several outputs; single: of all rows; told: the rounds that are shown."""
    found, tasks = [], task_names(single.long.loc[single.long["task"] != "all", "task"])
    for budget in dict.fromkeys(row.budget for row in single.rows):
        own = [row for row in oracle.rows if row.budget == budget]
        if own:
            found.append(_scores(oracle, own, told, name="all", title=f"{budget}: all tasks (as Table 1)"))
            found.append(_variants(oracle, own, told, title=f"{budget}: methods (as Table 2)"))
            found += [_scores(oracle, own, told, name=task, title=f"{budget}: {task}") for task in tasks]
        own = [row for row in single.rows if row.budget == budget]
        found.append(_by_task(single, own, tasks, title=f"{budget}: single output (as Table 11)"))
        found.append(_variants(single, own, told, title=f"{budget}: single output, methods"))
    found.append(_costs(costs, single.rows))
    gains = [*published_gains(oracle.long), *published_gains(single.long)]
    return [*found, _published(gains, single.rows)] if gains else found


def _unit(scores: Scores) -> str:
    return "prompts" if scores.long["prompt"].iloc[0] == "box" else "points"


def _counts(scores: Scores) -> str:
    return ONE if scores.output == SINGLE else BEST


def _scores(scores: Scores, rows: Sequence[Row], told: Sequence[int], *, name: str, title: str) -> Table:
    """Rows, mIoU and mBIoU after the told rounds; published figures below where they are of the same data."""
    columns = [(name, metric, number) for metric in METRICS for number in told]
    head = [f"{METRICS[metric]}, {number}" for _, metric, number in columns]
    words = (
        f"After {', '.join(map(str, told))} {_unit(scores)}, where {_counts(scores)}; in brackets the difference to "
        "the base on the same masks."
    )
    return _beside(scores, rows, columns, head, title=title, words=words)


def _by_task(scores: Scores, rows: Sequence[Row], tasks: Sequence[str], *, title: str) -> Table:
    """Rows, mIoU of every task and over all sets after six points, as Table 11 has it, or after the last there is."""
    rounds = {int(number) for number in scores.long["round"]}
    number = TABLE_11 if TABLE_11 in rounds else max(rounds)
    names = [*tasks, "all"]
    words = (
        f"mIoU after {number} {_unit(scores)}, where {_counts(scores)}; in brackets the difference to the base on the "
        "same masks."
    )
    return _beside(scores, rows, [(name, "iou", number) for name in names], names, title=title, words=words)


def _beside(
    scores: Scores,
    rows: Sequence[Row],
    columns: Sequence[tuple[str, str, int]],
    head: Sequence[str],
    *,
    title: str,
    words: str,
) -> Table:
    """The base and rows, a column a (task or all, metric, round) with its name in `head`."""
    lines: list[tuple[str, list[Cell | Words]]] = []
    for label, of in [(BASE, BASE), *((row.label, row.name) for row in rows)]:
        part = scores.long[scores.long["row"] == of].set_index(["task", "metric", "round"]).to_dict("index")
        own = [part[key] for key in columns]
        lines.append((label, [_cell(line) for line in own]))
        if any(line["published_same_data"] for line in own):
            lines.append((f"{label}, {PUBLISHED}", [_printed(line) for line in own]))
    return Table(title, words, ["method", *head], lines)


def _variants(scores: Scores, rows: Sequence[Row], told: Sequence[int], *, title: str) -> Table:
    """mIoU over all sets after the told rounds, and what of the mean over them is sure: to the base, and to SUM."""
    long, pairs = scores.long, scores.pairs
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
        f"mIoU over all sets after {', '.join(map(str, told))} {_unit(scores)}, where "
        f"{_counts(scores)}. Differences: of the mean over these, on the same masks, with bounds of 95 % intervals "
        f"over {over(scores)}; {MARKS['better']}, {MARKS['worse']}: the interval leaves out 0, others may be chance. "
        "Of twenty differences that are none, one is marked on average."
    )
    return Table(title, words, head, lines)


def _cell(row: Mapping[Any, Any]) -> Cell:
    gains = [100 * row[key] for key in ("gain", "gain_low", "gain_high")]
    own = [100 * row[key] for key in ("mean", "low", "high")]
    return Cell(*own, *gains) if row["gain"] == row["gain"] else Cell(*own)


def _printed(row: Mapping[Any, Any]) -> Words:
    return Words(f"{100 * row['published']:.1f}" if row["published_same_data"] else NONE)


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
        output = f", {SINGLE}" if line["output"] == SINGLE else ""
        place = f"{labels[line['row']]}: {line['task']} {METRICS[line['metric']]}, {line['round']}{output}"
        own = f"{line['gain']:+.1f} [{line['gain_low']:+.1f}, {line['gain_high']:+.1f}]"
        gain = line["published_gain"]
        cells = [Words(f"{line['published']:.1f}"), Words(f"{gain:+.1f}" if gain == gain else NONE), Words(own)]
        lines.append((place, [*cells]))
    words = (
        "As published for the same name of budget, method, metric, points and output: ViT-H on the paper's 14 sets; "
        "Table 11, of single outputs, names no budget, and nothing of SAM. Where "
        "they are not the data sets above, values cannot be compared; at most the direction of a difference to SAM can."
    )
    return Table(OF_PAPER, words, ["row", "published", "published, to SAM", "here, to the base"], lines)
