"""The page that lays evaluations side by side, the base first: tables, charts and pictures, rendered to one file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sum.data import breakdowns, calibration, published
from sum.data.charts import curves
from sum.data.gate_pages import HEADS
from sum.data.grids import Grid, make_grid, transposed, with_published
from sum.data.page_templates import page_templates
from sum.data.pictures import ADDED, LONGEST, MENDED, MISSED, RIGHT, SPOILT, to_jpeg
from sum.data.records import Manifest
from sum.data.report_pictures import examples
from sum.data.scatters import panels
from sum.data.score_tables import (
    EVERYTHING_SCHEMA,
    FIDELITY,
    FIDELITY_SCHEMA,
    GENERATED,
    Game,
    games_of,
    of_game,
    read_rows,
    read_table,
)
from sum.data.scores import LEVELS, Seeds, comparison_table, estimates, seeds_of, task_names
from sum.data.showcase import KINDS, Example, iou_by_model

READER = "report"
QUALITY = 82  # of a JPEG of a page
CONFIDENT = "confident"  # the output whose predicted IoU decides which mask a user gets


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a page is told that evaluations do not say."""

    base: str  # what the base is, in words
    tuned: Sequence[tuple[str, str]]  # model -> what it is
    outputs: Mapping[str, str]  # name -> meaning
    report_rounds: Sequence[int]
    resamples: int
    seed: int
    pictures: int  # examples a task
    side: int  # px of the models' frame
    stated: Mapping[str, float | None]  # data set -> its entry's expect.point_miou

    @property
    def shown(self) -> int:
        """The round of pictures and of what is told of one round only."""
        return min(self.report_rounds)


@dataclass(frozen=True, slots=True)
class Page:
    """A page before it is rendered, and the parts that go elsewhere, too."""

    words: dict[str, Any]  # what the template reads
    grid: Grid
    unit: str  # what a round adds
    chart: bytes  # PNG of the curves
    examples: list[Example]


def build(
    folders: Mapping[str, Path],
    protocols: Mapping[str, Mapping[str, Any]],
    about: About,
    *,
    manifest: Manifest,
    seeds: Mapping[str, Sequence[str]] | None = None,
) -> Page:
    """All that evaluations say. folders, protocols: model -> data/evaluation/MODEL and its protocol.json, base first.

    seeds: label -> those of the models that are seeds of one; the main tables, curves and outputs have them as one.
    `render` wants more keys beside `Page.words`, see EXTRAS. Raises MissingInput and DataError.
    """
    protocol = protocols[next(iter(folders))]
    played = {model: read_rows(folder, reader=READER) for model, folder in folders.items()}
    first, last = protocol["prompts"][0], min(int(facts["rounds"]) for facts in protocols.values())
    about = replace(about, report_rounds=[n for n in about.report_rounds if n <= last] or [1])
    played = {model: table[table["round"] <= last] for model, table in played.items()}  # what all have, if forced
    rows = {model: of_game(table, prompt=first) for model, table in played.items()}
    base = next(iter(rows.values()))
    pooled = _pooled(rows, seeds or {})
    unit = "prompts" if first == "box" else "points"  # with a box first it is not always a point
    draws: dict[str, Any] = {"resamples": about.resamples, "seed": about.seed}
    table = comparison_table(pooled, rounds=sorted(set(base["round"])), base=next(iter(rows)), **draws)
    short = table[table["round"].isin(list(about.report_rounds))]
    grid = make_grid(short)
    tested = dict(base[["dataset", "task"]].drop_duplicates().itertuples(index=False, name=None))
    same = published.comparable(tested, about.stated)
    chart, iou = curves(table, unit=unit), iou_by_model(rows, number=about.shown)
    shown = examples(folders, rows, iou, manifest=manifest, shown=about.shown, count=about.pictures, side=about.side)
    words = {
        "grid": with_published(grid, same, prompt=first),
        "by_set": transposed(with_published(make_grid(short, scope="dataset"), same, prompt=first)),
        "published": {"tables": published.tables(same), "source": published.source()} if same else None,
        "curves": base64.b64encode(chart).decode(),
        "panels": panels(iou),
        "examples": shown,
        "sizes": breakdowns.by_size(rows, number=about.shown, **draws),
        "kinds_of_prompt": breakdowns.by_prompt(played, _games(protocols), rounds=about.report_rounds, **draws),
        "needed": breakdowns.needed(rows, **draws),
        "passed": _beside(folders, FIDELITY, FIDELITY_SCHEMA, breakdowns.passed, about),
        "generated": _beside(folders, GENERATED, EVERYTHING_SCHEMA, breakdowns.generated, about),
        "calibration": _calibration(rows),
        "output_rows": _outputs(pooled, table, about),
        "base": next(iter(rows)),
        "models": [*rows],
        "pooled": [*pooled],
        **_words(base, about, protocol, unit=unit),
    }
    return Page(words, grid, unit, chart, shown)


EXTRAS = {  # what `render` shows beside, and what there is without it
    "title": "what fine-tuning changed",
    "first": "the model before tuning",
    "others": "each tuned model",
    "question": "May it replace the champion?",
    "warnings": (),
    "verdicts": (),
    "evidence": None,
    "datasets": (),
    "training": (),
    "stages": (),
    "protocol": (),
}


def render(page: Page, **extras: Any) -> str:
    """The page as one HTML file that needs no network and runs no script. extras: of EXTRAS."""
    unknown = extras.keys() - EXTRAS.keys()
    if unknown:
        raise TypeError(f"render: unknown {sorted(unknown)}, known are {sorted(EXTRAS)}")
    environment = page_templates()
    environment.filters["jpeg"] = lambda picture: base64.b64encode(to_jpeg(picture, quality=QUALITY)).decode()
    return environment.get_template("report.html.j2").render({**EXTRAS, **page.words, **extras})


def _beside(
    folders: Mapping[str, Path], file: str, schema: Any, table: Callable[..., Grid], about: About
) -> Grid | None:
    """A table of a file that evaluate writes only where it is asked to; None where a model has none or an empty one."""
    if not all((folder / file).is_file() for folder in folders.values()):
        return None
    found = {
        model: read_table(folder / file, schema, reader=READER, maker=f"evaluate@{folder.name}")
        for model, folder in folders.items()
    }
    if any(frame.empty for frame in found.values()):
        return None
    return table(found, resamples=about.resamples, seed=about.seed)


def _calibration(rows: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Chart, a row a bin with (masks, reached) a model, and (ECE, surplus) a model; in words."""
    tables = {model: calibration.bins(table, output=CONFIDENT) for model, table in rows.items()}
    lines = []
    for place in range(calibration.BINS):
        found = [table.iloc[place] for table in tables.values()]
        if not any(row["masks"] for row in found):
            continue
        cells = [(f"{row['masks']:,.0f}", f"{100 * row['reached']:.1f}" if row["masks"] else "–") for row in found]
        lines.append((f"{100 * found[0]['low']:.0f} to {100 * found[0]['high']:.0f}", cells))
    errors = [
        (f"{100 * calibration.expected_error(table):.1f}", f"{100 * calibration.surplus(table):+.1f}")
        for table in tables.values()
    ]
    return {"chart": calibration.chart(tables), "lines": lines, "errors": errors}


def _games(protocols: Mapping[str, Mapping[str, Any]]) -> list[Game]:
    """Those that all have, in the order of the first."""
    first, *others = (games_of(protocol) for protocol in protocols.values())
    return [game for game in first if all(game in games for games in others)]


def _pooled(rows: Mapping[str, pd.DataFrame], seeds: Mapping[str, Sequence[str]]) -> dict[str, Seeds]:
    """Models in their order, with those that are seeds of one in its place."""
    of = {member: label for label, members in seeds.items() for member in members}
    found: dict[str, Seeds] = {}
    for model, table in rows.items():
        label = of.get(model, model)
        found[label] = [rows[member] for member in seeds[label]] if model in of else table
    return found


def _outputs(rows: Mapping[str, Seeds], table: pd.DataFrame, about: About) -> list[dict[str, Any]]:
    """mIoU over all data sets of each kind of output: a row an output and round, a cell a model. table: of oracle."""
    (base,) = seeds_of(next(iter(rows.values())))
    found = []
    for output in about.outputs:
        rounds = sorted(set(base.loc[base["output"] == output, "round"]) & set(about.report_rounds))
        tables = {model: table[table["model"] == model] for model in rows}
        if output != "oracle" and rounds:
            tables = {
                model: estimates(part, rounds=rounds, output=output, resamples=about.resamples, seed=about.seed)
                for model, part in rows.items()
            }
        for number in rounds:
            cells = []
            for part in tables.values():
                wanted = (part["scope"] == "overall") & (part["metric"] == "iou") & (part["round"] == number)
                row = part[wanted].iloc[0]
                cells.append(f"{100 * row['mean']:.1f} ±{50 * (row['high'] - row['low']):.1f}")
            found.append({"output": output, "round": number, "cells": cells})
    return found


def _words(base: pd.DataFrame, about: About, protocol: Mapping[str, Any], *, unit: str) -> dict[str, Any]:
    """Names and numbers in the page's sentences."""
    return {
        "masks": base["mask_id"].nunique(),
        "images": base["image_id"].nunique(),
        "sets": base["dataset"].nunique(),
        "tasks": task_names(base["task"]),
        "tuned": about.tuned,
        "backbone": about.base,
        "unit": unit,
        "first_prompt": protocol["prompts"][0],
        "first_words": breakdowns.game_words(protocol["prompts"][0], about.shown),
        "unspecified": bool(protocol.get("unspecified")),
        "band": f"{protocol['boundary_ratio']:.0%}",
        "rounds": int(base["round"].max()),
        "levels": LEVELS,
        "shown": about.shown,
        "kinds": KINDS,
        "meanings": about.outputs,
        "colours": {"right": RIGHT, "missed": MISSED, "added": ADDED, "mended": MENDED, "spoilt": SPOILT},
        "tile_side": LONGEST,
        "gate_heads": HEADS,
    }
