"""What the rows of an ablation reached: means over seeds with intervals, differences to the base and between rows.

All of one game (a first prompt, with or without the task prompt) and one output: no row whose best of three answers
counts stands beside one that has a single answer. Seeds are drawn again as images are, and a difference is paired mask
by mask, between two rows also seed by seed: see sum.data.scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sum.ablation import BASE, FULL, Row
from sum.data.published import SAM, published
from sum.data.score_tables import Game, of_game, read_rows
from sum.data.scores import METRICS, averages, spread, task_names
from sum.errors import DataError

READER = "ablate"
REFERENCE = "sum"  # the method that all others of its budget and architecture are set beside
MEAN = "mean"  # in place of a round: the mean over those that are told
PAPER = {  # method -> how the published tables call it, before its budget
    "vanilla": "Vanilla",
    "mask_refinement": "Mask Refinement",
    "sum_without_task_prompt": "SUM without task prompt",
    "sum_continuous_task_prompt": "SUM continuous",
    "sum_confidence": "Confidence",
    "sum_discrepancy": "Discrepancy",
    "augseg": "AugSeg",
    "u2pl": "U2PL",
    "sum": "SUM",
}
PAPER_SINGLE = {  # (method, arch) -> how Table 11, of single outputs, calls it; it names no budget
    ("human_only", "hq"): "HQ-SAM",
    ("vanilla", "hq"): "Vanilla in HQ-SAM",
    ("sum", "hq"): "SUM in HQ-SAM",
}
ORACLE, SINGLE = "oracle", "single"  # outputs, docs/evaluation.md
Wide = pd.DataFrame  # of `spread`
COLUMNS = ("row", "budget", "method", "arch", "prompt", "output", "task", "metric", "round", "seeds")
ESTIMATES = ("mean", "low", "high", "gain", "gain_low", "gain_high")


@dataclass(frozen=True, slots=True)
class Scored:
    """A row that has been evaluated."""

    row: Row
    seeds: Mapping[int, Path]  # seed -> the folder that evaluate wrote


@dataclass(frozen=True, slots=True)
class Draws:
    """How intervals are made."""

    resamples: int
    seed: int


class Board:
    """All evaluations of one game and output, read once."""

    def __init__(self, base: Path, scored: Sequence[Scored], game: Game, *, output: str = ORACLE) -> None:
        """base: the folder of the base's evaluation. Raises DataError when an evaluation is of other masks."""
        self.game, self.output, self.scored = game, output, list(scored)
        self.base = _wide(base, game, output)
        self.wides = {
            entry.row: {seed: _wide(folder, game, output) for seed, folder in entry.seeds.items()} for entry in scored
        }
        self.rounds = sorted({int(number) for number in self.base.columns.unique("round")})
        for row, seeds in self.wides.items():
            for seed, wide in seeds.items():
                if not (wide.index.equals(self.base.index) and wide.columns.equals(self.base.columns)):
                    raise DataError(f"row {row.name}, seed {seed} was evaluated on other masks or rounds than the base")

    def gain(self, row: Row) -> list[Wide]:
        """What each seed of a row changed on the base, mask by mask."""
        return [wide - self.base for wide in self.wides[row].values()]

    def between(self, first: Row, second: Row) -> list[Wide]:
        """first - second of each seed that both have; empty without one."""
        one, two = self.wides[first], self.wides[second]
        return [one[seed] - two[seed] for seed in one if seed in two]


def _wide(folder: Path, game: Game, output: str) -> Wide:
    prompt, unspecified = game
    rows = of_game(read_rows(folder, reader=READER), prompt=prompt, unspecified=unspecified)
    return spread(rows, rounds=sorted({int(number) for number in rows["round"]}), output=output)


@dataclass(frozen=True, slots=True)
class Scores:
    """What the main game comes to with one output: of `long_table` and `pair_table`."""

    output: str
    rows: list[Row]
    long: pd.DataFrame
    pairs: pd.DataFrame


def scores(board: Board, draws: Draws, *, rounds: Sequence[int], same_data: frozenset[str]) -> Scores:
    """Both tables of a board; arguments as theirs."""
    long = long_table(board, draws, same_data=same_data)
    return Scores(board.output, list(board.wides), long, pair_table(board, draws, rounds=rounds))


def game_name(game: Game) -> str:
    """A game as one word of the column `prompt`."""
    return f"{game[0]}, no task prompt" if game[1] else game[0]


def long_table(board: Board, draws: Draws, *, same_data: frozenset[str]) -> pd.DataFrame:
    """COLUMNS and ESTIMATES, a row a (row, task or all, metric, round), the base first; values 0..1.

    And published: the paper's figure of the same budget, method, metric, round, prompt and output (per cent / 100,
    NaN without one); published_same_data: whether it is of the same data sets. same_data: of `published.comparable`.
    """
    parts = [_part(None, [board.base], None, board, draws)]
    parts += [_part(row, list(seeds.values()), board.gain(row), board, draws) for row, seeds in board.wides.items()]
    table = pd.concat(parts, ignore_index=True)
    table["published_same_data"] = table["published"].notna() & table["task"].isin(same_data)
    return table


def _part(row: Row | None, wides: Sequence[Wide], gains: Sequence[Wide] | None, board: Board, draws: Draws) -> Wide:
    found = _averages(wides, draws)
    change = _averages(gains, draws) if gains else None
    for column, of in (("gain", "mean"), ("gain_low", "low"), ("gain_high", "high")):
        found[column] = float("nan") if change is None else change[of]
    names = (row.name, row.budget, row.method, row.arch) if row else (BASE, "", BASE, "")
    about = dict(zip(COLUMNS, (*names, game_name(board.game), board.output), strict=False))
    found = found.assign(**about, task=found["name"], seeds=len(wides))
    places = found[["task", "prompt", "metric", "round"]].itertuples(index=False, name=None)
    found["published"] = [_published(row, board.output, *place) for place in places]
    return found[[*COLUMNS, *ESTIMATES, "published"]]


def _averages(wides: Sequence[Wide], draws: Draws) -> pd.DataFrame:
    """Over all sets and by task; without the data sets one by one."""
    found = averages(list(wides), resamples=draws.resamples, seed=draws.seed)
    return found[found["scope"] != "dataset"].reset_index(drop=True)


def pair_table(board: Board, draws: Draws, *, rounds: Sequence[int]) -> pd.DataFrame:
    """A row a (pair of rows of one budget, task or all, metric): `first` - `second`, means over `rounds`.

    Columns budget, output, first, second, task, metric, seeds, difference, low, high, sure (the interval leaves out 0).
    The base is a row, too. Pairs without a common seed are left out.
    """
    found = []
    for budget in dict.fromkeys(row.budget for row in board.wides):
        rows = [row for row in board.wides if row.budget == budget]
        changes: list[tuple[str, str, list[Wide]]] = [(row.name, BASE, board.gain(row)) for row in rows]
        changes += [(one.name, two.name, board.between(one, two)) for one, two in itertools.combinations(rows, 2)]
        for first, second, wides in changes:
            if not wides:
                continue
            part = _averages([mean_of(wide, rounds) for wide in wides], draws)
            part = part.rename(columns={"name": "task", "mean": "difference"})
            part = part.assign(budget=budget, output=board.output, first=first, second=second, seeds=len(wides))
            found.append(part.assign(sure=(part["low"] > 0) | (part["high"] < 0)))
    columns = ["budget", "output", "first", "second", "task", "metric", "seeds", "difference", "low", "high", "sure"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def mean_of(wide: Wide, rounds: Sequence[int]) -> Wide:
    """The mean over rounds of every mask: one column a metric, its round called MEAN."""
    columns = {(metric, MEAN): wide[metric][list(rounds)].to_numpy().mean(axis=1) for metric in METRICS}
    return pd.DataFrame(columns, index=wide.index).rename_axis(columns=["metric", "round"])


def difference(pairs: pd.DataFrame, first: Row, second: str, *, metric: str = "iou") -> dict[str, Any] | None:
    """The line of `pair_table` about first - second over all sets, whichever way round it stands; None without one."""
    chosen = pairs[(pairs["task"] == "all") & (pairs["metric"] == metric)]
    for one, two, sign in ((first.name, second, 1), (second, first.name, -1)):
        found = chosen[(chosen["first"] == one) & (chosen["second"] == two)]
        if len(found):
            line = found.iloc[0]
            ends = sorted((sign * line["low"], sign * line["high"]))
            return {
                "difference": sign * line["difference"],
                "low": ends[0],
                "high": ends[1],
                "seeds": int(line["seeds"]),
            }
    return None


def task_differences(pairs: pd.DataFrame, row: Row, *, metric: str = "iou") -> list[dict[str, Any]]:
    """The lines of `pair_table` about row - base, a task each, in the order of the paper's tables."""
    chosen = pairs[(pairs["first"] == row.name) & (pairs["second"] == BASE) & (pairs["metric"] == metric)]
    by_task: dict[str, Any] = {str(line["task"]): line for line in chosen.to_dict("records")}
    return [by_task[task] for task in task_names(by_task.keys() - {"all"})]


def seed_counts(scores: Scores) -> dict[str, int]:
    """Name of a row -> how many seeds it has been trained with."""
    found = scores.long.drop_duplicates("row").set_index("row")["seeds"]
    return {row.name: int(found[row.name]) for row in scores.rows}


def over(scores: Scores) -> str:
    """What the intervals of its rows are over."""
    counts = set(seed_counts(scores).values())
    if counts == {1}:
        return "images (one seed)"
    return "seeds and images (of images only where there is one seed)" if 1 in counts else "seeds and images"


def reference(row: Row) -> str:
    """The name of the row that `row` is set beside: SUM of its budget and architecture."""
    return Row(row.budget, REFERENCE, row.arch).name


def _published(row: Row | None, output: str, name: str, prompt: str, metric: str, number: int) -> float:
    """The paper's figure, 0..1; NaN without one."""
    label = paper_label(row, output=output) or ""
    value = published(name, prompt=prompt, number=number, metric=metric, output=output).get(label)
    return float("nan") if value is None else value / 100


def paper_label(row: Row | None, *, output: str = ORACLE) -> str | None:
    """How the published tables call a row, None for one that they lack.

    The light-weight ones name no budget there: those of Table 11, of single outputs, stand for every budget.
    """
    if row is None:
        return SAM
    if output == SINGLE:
        return PAPER_SINGLE.get((row.method, row.arch))
    return f"{PAPER[row.method]} FT-{row.budget.capitalize()}" if row.arch == FULL and row.method in PAPER else None


def published_gains(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Every published figure of a row that was run, with the difference to SAM beside its own; per cent.

    table: of `long_table`, the main game. published_gain is NaN where nothing was published of SAM.
    """
    base = table[table["row"] == BASE].set_index(["task", "metric", "round"])["published"]
    told = table[(table["row"] != BASE) & table["published"].notna()]
    for line in told.to_dict("records"):
        before = base[line["task"], line["metric"], line["round"]]
        own = {key: 100 * line[key] for key in ("gain", "gain_low", "gain_high")}
        place = {key: line[key] for key in ("row", "output", "task", "metric", "round")}
        gain = 100 * (line["published"] - before)
        yield {**place, "published": 100 * line["published"], "published_gain": gain, **own}
