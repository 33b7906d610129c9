"""Tables of the report beside the main one: by size of mask, kind of prompt, clicks needed, checks, yield, calibration.

All are group-bys over evaluation rows: `games` maps a model to its rows, the base first. Values are 0..1 in, per cent
out; means are those of sum.data.scores, over masks, then sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sum.core.first_prompts import prompt_words
from sum.data.grids import MARKS, Grid, Line, Words, make_grid, to_cell
from sum.data.score_tables import EVERYTHING, Game, of_game
from sum.data.scores import (
    KEY,
    LEVELS,
    METRICS,
    averages,
    comparison_table,
    effort_estimates,
    efforts,
    one_column,
    task_names,
)

Tables = Mapping[str, pd.DataFrame]  # model -> a table of it, the base first
SIZES = {  # COCO's: Lin et al., ECCV 2014, and its evaluation code; px of the true mask, at the photo's original size
    "small: under 32² px": (0, 32**2),
    "medium: 32² to 96² px": (32**2, 96**2),
    "large: 96² px and more": (96**2, np.inf),
}
CHECKS = {
    "background": "a click beside all masks does not give the mask",
    "swap": "clicks on two masks of an image give each its own",
    "negative": "a click off the object takes that place away",
}
HEADS = {"noc": "NoC: clicks until an IoU of … %", "nof": "NoF: masks that never get there, at … %"}
ENDS = {"": "mean", "_low": "low", "_high": "high"}  # how a column of gains ends -> what it is of
Records = dict[tuple[str, str, int], dict[Any, Any]]  # name, metric, round -> a row of `averages`


def by_size(rows: Tables, *, number: int, resamples: int, seed: int) -> Grid:
    """Masks by COCO's sizes after round `number`, with how many there are. rows: of one game."""
    base = next(iter(rows))
    tables, counts = [], dict[str, Records]()
    for words, (low, high) in SIZES.items():
        parts = {model: table[(table["area"] >= low) & (table["area"] < high)] for model, table in rows.items()}
        if parts[base].empty:
            continue
        found = comparison_table(parts, rounds=[number], base=base, resamples=resamples, seed=seed)
        tables.append(found.assign(size=words))
        counts[words] = _records(found[found["model"] == base])
    grid = make_grid(pd.concat(tables, ignore_index=True), group="size")
    lines: list[Line] = []
    for words, own in grid.groups:
        sizes = [counts[words].get((name, "iou", number)) for name, _ in grid.columns]
        heads = ["masks" if metric == METRICS["iou"] else "images" for _, metric in grid.columns]
        cells = [Words(f"{row[head]:,}") if row else None for row, head in zip(sizes, heads, strict=True)]
        lines += [*own, Line(words, "masks | images", tuple(cells))]
    return Grid(grid.columns, tuple(lines))


def by_prompt(rows: Tables, games: Sequence[Game], *, rounds: Sequence[int], resamples: int, seed: int) -> Grid:
    """Every game after the rounds that it has: a group a kind of prompt and number of prompts. rows: of all games."""
    tables = []
    for prompt, unspecified in games:
        parts = {model: of_game(table, prompt=prompt, unspecified=unspecified) for model, table in rows.items()}
        base = next(iter(parts))
        there = [1] if prompt == EVERYTHING else sorted(set(rounds) & set(parts[base]["round"]))
        found = comparison_table(parts, rounds=there, base=base, resamples=resamples, seed=seed)
        words = {number: game_words(prompt, number, unspecified=unspecified) for number in there}
        tables += [found[found["round"] == number].assign(kind=text) for number, text in words.items()]
    return make_grid(pd.concat(tables, ignore_index=True), group="kind")


def game_words(prompt: str, number: int, *, unspecified: bool = False) -> str:
    """What was given to the model in a game, in words: `1 point, no task prompt`, `automatic masks`."""
    text = "automatic masks" if prompt == EVERYTHING else prompt_words(prompt, [number])
    return f"{text}, no task prompt" if unspecified else text


def needed(rows: Tables, *, resamples: int, seed: int) -> Grid:
    """Clicks needed and failures: a group all sets and each task. rows: of one game; differences are paired."""
    base = next(iter(rows))
    one = efforts(rows[base])
    own, gains = {}, dict[str, Records]()
    for model, table in rows.items():
        own[model] = _records(effort_estimates(table, resamples=resamples, seed=seed))
        if model != base:
            change = averages(efforts(table) - one, resamples=resamples, seed=seed, counted=("nof",))
            gains[model] = _records(change)
    columns = [(metric, level) for metric in HEADS for level in LEVELS]
    lines = []
    for name in ("all", *task_names(rows[base]["task"])):
        for model in rows:
            keys = [(name, metric, level) for metric, level in columns]
            cells = tuple(_effort(own[model][key], gains.get(model, {}).get(key)) for key in keys)
            lines.append(Line(name, model, cells))
    return Grid(tuple((HEADS[metric], str(level)) for metric, level in columns), tuple(lines))


def passed(checks: Tables, *, resamples: int, seed: int) -> Grid:
    """Share of the checks of fidelity.parquet that a model passes, in per cent: a group a check that was asked."""
    base = next(iter(checks))
    columns = [*task_names(checks[base]["task"]), "all"]
    lines = []
    for kind, words in CHECKS.items():
        asked = {model: table[table["check"] == kind] for model, table in checks.items()}
        wide = {model: one_column(table, "passed") for model, table in asked.items() if not table.empty}
        if base not in wide:
            continue
        for model, records in _compared(wide, resamples=resamples, seed=seed).items():
            found = [records.get((name, "passed", 1)) for name in columns]
            lines.append(Line(words, model, tuple(to_cell(row) if row else None for row in found)))
    return Grid(tuple((name, "passed, %") for name in columns), tuple(lines))


def generated(counts: Tables, *, resamples: int, seed: int) -> Grid:
    """Masks an image that automatic generation keeps, and how many times those of the base."""
    base = next(iter(counts))
    columns = [*task_names(counts[base]["task"]), "all"]
    wide = {model: one_column(table, "generated", key=KEY[:3]) for model, table in counts.items()}
    found = _compared(wide, resamples=resamples, seed=seed)
    lines = []
    for model, records in found.items():
        cells = []
        for name in columns:
            row, first = (table[name, "generated", 1] for table in (records, found[base]))
            times = row["mean"] / first["mean"] if first["mean"] else np.nan
            value = f"{row['mean']:.1f} ±{(row['high'] - row['low']) / 2:.1f}"
            cells.append(Words(value, "–" if model == base else f"× {times:.2f}"))
        lines.append(Line("masks an image", model, tuple(cells)))
    return Grid(tuple((name, "kept") for name in columns), tuple(lines))


def _compared(wide: Tables, *, resamples: int, seed: int) -> dict[str, Records]:
    """`averages` of every model, and as gain its paired difference to the base on what both have."""
    base = next(iter(wide))
    found = {}
    for model, table in wide.items():
        records = _records(averages(table, resamples=resamples, seed=seed))
        both = table.index.intersection(wide[base].index)  # `negative` is asked only where an answer has a wrong pixel
        gains: Records = {}
        if model != base and len(both):
            gains = _records(averages(table.loc[both] - wide[base].loc[both], resamples=resamples, seed=seed))
        for key, row in records.items():
            gain = gains.get(key, {})
            row |= {f"gain{end}": gain.get(name, np.nan) for end, name in ENDS.items()}
        found[model] = records
    return found


def _records(table: pd.DataFrame) -> Records:
    """Rows of `averages` by name, metric and round (or level), without those of single data sets."""
    rows = table[table["scope"] != "dataset"].to_dict("records")
    return {(str(row["name"]), str(row["metric"]), int(row["round"])): dict(row) for row in rows}


def _effort(row: Mapping[Any, Any], change: Mapping[Any, Any] | None) -> Words:
    """One figure of `needed`; fewer is better."""
    form = ".2f" if row["metric"] == "noc" else ",.0f"
    value = f"{row['mean']:{form}} ±{(row['high'] - row['low']) / 2:{form}}"
    if change is None:
        return Words(value)
    verdict = "better" if change["high"] < 0 else "worse" if change["low"] > 0 else ""
    text = f"{change['mean']:+{form}} ±{(change['high'] - change['low']) / 2:{form}} {MARKS[verdict]}".rstrip()
    return Words(value, text, verdict)
