"""What `python -m sum ablate` leaves: tables.md, index.html, tables.csv, pairs.csv, cost.csv and the curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sum.ablation import Row
from sum.commands.ablate_inputs import Plan
from sum.config import Config
from sum.data import published
from sum.data.ablation_costs import cost_table
from sum.data.ablation_findings import findings
from sum.data.ablation_page import charts, markdown, render
from sum.data.ablation_scores import (
    ORACLE,
    SINGLE,
    Board,
    Draws,
    Scored,
    long_table,
    scores,
)
from sum.data.ablation_tables import tables
from sum.data.protocols import read_protocol, unlike
from sum.data.score_tables import EVERYTHING, Game, games_of, read_rows
from sum.methods import METHODS
from sum.models.archs import ARCHS
from sum.storage import write_atomic

READER = "ablate"


@dataclass(frozen=True, slots=True)
class Result:
    """What was written, and what is said of it in the terminal."""

    files: list[Path]
    text: str


def write(config: Config, plans: Sequence[Plan], failed: Mapping[str, str], *, out: Path) -> Result | None:
    """Compare the runs that are done, those of the whole grid; None while the base or every row lacks.

    failed: run -> what went wrong in this session.
    """
    done = [plan for plan in plans if plan.state == "done"]
    base = next((plan for plan in done if plan.run.row is None), None)
    scored = _scored(done)
    if base is None or not scored:
        return None
    protocols = {plan.run.name: read_protocol(plan.evaluation, reader=READER) for plan in done}
    told = sorted(config.evaluate.report_rounds)
    draws = Draws(config.evaluate.resamples, config.seed)
    main, *others = games_of(protocols[base.run.name])
    same = _same_data(config, base.evaluation)
    oracle, single = (
        scores(board, draws, rounds=told, same_data=same) for board in _boards(base.evaluation, scored, main)
    )
    costs = cost_table(scored, _seconds(done))
    boards = [board for game in others for board in _boards(base.evaluation, scored, game)]
    further = [long_table(board, draws, same_data=frozenset()) for board in boards]
    shown = tables(oracle, single, costs, told=told)
    warnings = [
        *_lacks(plans, failed),
        *(f"{run} was evaluated otherwise: {what}" for run, what in unlike(protocols).items()),
    ]
    found = findings(oracle, single, told=told)
    facts = _facts(config, done, protocols[base.run.name], costs, over=found.over)
    warnings += _unequal(costs)
    words: dict[str, Any] = {"found": found, "facts": facts, "warnings": warnings}
    drawn = charts(oracle, single)
    text = markdown(shown, **words)
    written = {
        "tables.md": text.encode(),
        "index.html": render(shown, drawn, **words).encode(),
        "tables.csv": _csv(pd.concat([oracle.long, single.long, *further])),
        "pairs.csv": _csv(pd.concat([oracle.pairs, single.pairs])),
        "cost.csv": _csv(costs),
        **{f"{name}.png": png for name, _, png in drawn},
    }
    for name, data in written.items():
        write_atomic(out / name, data)
    return Result([out / name for name in written], text)


def _scored(done: Sequence[Plan]) -> list[Scored]:
    found = dict[Row, dict[int, Path]]()
    for plan in done:
        if plan.run.row is not None:
            found.setdefault(plan.run.row, {})[plan.run.seed] = plan.evaluation
    return [Scored(row, dict(sorted(seeds.items()))) for row, seeds in found.items()]


def _one_output(row: Row) -> bool:
    """Whether its models have one output: those that are trained by one-shot prompts."""
    return ARCHS[row.arch].one_shot


def _boards(base: Path, scored: Sequence[Scored], game: Game) -> list[Board]:
    """Of the oracle with the rows that have several outputs, of the single output with all.

    Automatic mask generation has one board of all rows: it takes whatever outputs a model has.
    """
    if game[0] == EVERYTHING:
        return [Board(base, scored, game)]
    several = [entry for entry in scored if not _one_output(entry.row)]
    return [Board(base, several, game, output=ORACLE), Board(base, scored, game, output=SINGLE)]


def _seconds(done: Sequence[Plan]) -> dict[tuple[Row, int], float]:
    return {(plan.run.row, plan.run.seed): plan.times["evaluate"] for plan in done if plan.run.row is not None}


def _same_data(config: Config, base: Path) -> frozenset[str]:
    """What of the test sets is the paper's own."""
    sets = read_rows(base, reader=READER)[["dataset", "task"]].drop_duplicates()
    tested = dict(sets.itertuples(index=False, name=None))
    return published.comparable(tested, {name: entry.expect.point_miou for name, entry in config.datasets.items()})


def _lacks(plans: Sequence[Plan], failed: Mapping[str, str]) -> list[str]:
    """What of the grid is not in the tables."""
    found = [f"failed: {name}: {wrong}" for name, wrong in failed.items()]
    others = [plan.run.name for plan in plans if plan.state == "other"]
    waiting = [plan.run.name for plan in plans if plan.state in ("new", "begun") and plan.run.name not in failed]
    found += [f"not in the tables, begun with something else: {', '.join(others)}"] if others else []
    found += [f"not in the tables, not made yet: {', '.join(waiting)}"] if waiting else []
    return found


def _unequal(costs: pd.DataFrame) -> list[str]:
    """Facts that must be the same in all rows and are not."""
    found = []
    for column in ("steps", "device", "threads"):
        kinds = costs.dropna(subset=[column]).groupby(column)["row"].unique()
        if len(kinds) > 1:
            told = "; ".join(f"{value}: {', '.join(sorted(rows))}" for value, rows in kinds.items())
            found.append(f"rows differ in {column}: {told}")
    return found


def _facts(
    config: Config, done: Sequence[Plan], protocol: Mapping[str, Any], costs: pd.DataFrame, *, over: str
) -> list[tuple[str, str]]:
    """What all rows have in common, and what each has for itself. over: what intervals are over."""
    optim = config.finetune.optim
    rows = [plan.run.row for plan in done if plan.run.row is not None]
    prompts = _prompts(rows, rounds=config.finetune.rounds.rounds)
    steps = ", ".join(str(int(number)) for number in sorted(costs["steps"].dropna().unique())) or "unknown"
    stamp = next(plan.stamp for plan in done if plan.run.row is not None)
    manifest = {name: value for name, value in stamp.items() if name.endswith(".parquet")}
    shown = {name for row in rows for name in (row.method, row.arch)}
    own = {name: numbers for name, numbers in config.ablation.settings.items() if numbers and name in shown}
    games = ", ".join(
        prompt if not plain else f"{prompt} without the task prompt" for prompt, plain in games_of(protocol)
    )
    return [
        ("steps", f"{steps} in every row"),
        ("a step", f"{optim.images_per_batch} images, {optim.masks_per_image} masks each, {prompts}"),
        ("seeds", ", ".join(map(str, sorted({plan.run.seed for plan in done if plan.run.row is not None})))),
        ("settings of rows", json.dumps(own, sort_keys=True) if own else "none: all train with the same numbers"),
        (
            "evaluation",
            f"{games}; {protocol['rounds']} rounds; band of {protocol['boundary_ratio']:.0%} of the diagonal",
        ),
        ("intervals", f"95 %, {config.evaluate.resamples} resamples over {over}"),
        ("base", f"{config.model.backbone}, sha256 {stamp['base']}"),
        ("data", "; ".join(f"{Path(name).name} sha256 {value[:16]}" for name, value in sorted(manifest.items()))),
        ("code", f"sha256 {stamp['code'][:16]} of what trains and evaluates"),
        ("device", ", ".join(sorted({str(name) for name in costs["device"].dropna()})) or "unknown"),
    ]


def _prompts(rows: Sequence[Row], *, rounds: int) -> str:
    """How masks are prompted in training, and which rows have it otherwise."""
    others = dict[str, dict[str, None]]()  # what -> labels, each once
    for row in rows:
        what = ""
        if ARCHS[row.arch].one_shot:
            what = "one prompt a mask (a box, ten points, or the mask with noise)"
        elif METHODS[row.method].consistency != "off":
            what = f"{rounds} rounds of human masks, one prompt of masks of unlabelled images"
        if what:
            others.setdefault(what, {})[f"`{row.label}`"] = None
    told = "; ".join(f"{', '.join(labels)}: {what}" for what, labels in others.items())
    return f"{rounds} rounds, but {told}" if told else f"{rounds} rounds, in every row"


def _csv(table: pd.DataFrame) -> bytes:
    return bytes(table.to_csv(index=False, float_format="%.6g").encode())
