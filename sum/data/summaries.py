"""What an evaluation comes to: summary.json with all figures, figures.json for `dvc metrics`, curves.csv to plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sum.core.figures import tracked_figures
from sum.data.score_tables import (
    EVERYTHING,
    EVERYTHING_SCHEMA,
    FIDELITY,
    FIDELITY_SCHEMA,
    GENERATED,
    UNSPECIFIED,
    Game,
    of_game,
    read_rows,
    read_table,
)
from sum.data.scores import TASK_ORDER, effort_estimates, estimates, fidelity_estimates, task_names
from sum.storage import write_json

Tree = dict[str, Any]
READER = "evaluate"
SUMMARY, PLAIN, CURVES = "summary.json", "figures.json", "curves.csv"


def write_summaries(folder: Path, *, games: Sequence[Game], rounds: Sequence[int], resamples: int, seed: int) -> Tree:
    """Write SUMMARY, PLAIN (sum.core.figures) and CURVES beside the tables in `folder`; returns `summarise`."""
    rows = read_rows(folder, reader=READER)
    summary = summarise(folder, rows, games=games, rounds=rounds, resamples=resamples, seed=seed)
    write_json(folder / SUMMARY, summary)
    write_json(folder / PLAIN, tracked_figures(summary))
    table = curves(of_game(rows, prompt=games[0][0]))
    table.to_csv(folder / CURVES, index=False, float_format="%.4f", lineterminator="\n")
    return summary


def curves(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a round, a column a task, then `all`: mean IoU of the oracle in per cent. rows: of one game.

    All of TASK_ORDER have a column, an empty one without a data set: `dvc plots` warns of a file that lacks one.
    """
    numbers = sorted(set(rows["round"]))
    table = estimates(rows, rounds=numbers, resamples=1)
    means = table[(table["metric"] == "iou") & (table["scope"] != "dataset")]
    wide = 100 * means.pivot(index="round", columns="name", values="mean")
    return wide.reindex(columns=[*TASK_ORDER, "all"]).rename_axis(columns=None).reset_index()


def summarise(
    folder: Path,
    rows: pd.DataFrame,
    *,
    games: Sequence[Game],
    rounds: Sequence[int],
    resamples: int,
    seed: int,
) -> Tree:
    """Figures of the tables in `folder`, of which `rows` are the scores; games: of `games_of`, the main one first.

    `overall`, `task` and `dataset` are of the main game: metric@round -> mean, low, high (0..1), noc@LEVEL in rounds,
    nof@LEVEL with a count of masks. `games` -> another first prompt, `unspecified` or `everything` -> `overall` and
    `task` in the same shape; `fidelity` -> check -> `overall` and `task`: the share that passed, and how many were
    asked; `generated` -> automatic masks an image.
    """
    draws = {"resamples": resamples, "seed": seed}
    main = of_game(rows, prompt=games[0][0])
    found: Tree = {"masks": int(main["mask_id"].nunique()), "images": int(main["image_id"].nunique())}
    found |= _nested(_records(main, rounds=rounds, **draws))
    found["games"] = {
        UNSPECIFIED if unspecified else prompt: _brief(
            _nested(
                _records(
                    of_game(rows, prompt=prompt, unspecified=unspecified),
                    rounds=[1] if prompt == EVERYTHING else rounds,
                    **draws,
                )
            )
        )
        for prompt, unspecified in games[1:]
    }
    if (folder / FIDELITY).is_file():
        checks = read_table(folder / FIDELITY, FIDELITY_SCHEMA, reader=READER, maker=READER)
        found["fidelity"] = {
            str(check): _brief(_nested(fidelity_estimates(part, **draws).to_dict("records")))
            for check, part in checks.groupby("check")
        }
    if (folder / GENERATED).is_file():
        images = read_table(folder / GENERATED, EVERYTHING_SCHEMA, reader=READER, maker=READER)
        found["generated"] = _yields(images)
    return found


def _records(rows: pd.DataFrame, *, rounds: Sequence[int], resamples: int, seed: int) -> list[Mapping[Any, Any]]:
    tables = [estimates(rows, rounds=rounds, resamples=resamples, seed=seed)]
    if set(rows["prompt"]) != {EVERYTHING}:  # there are no clicks to count
        tables.append(effort_estimates(rows, resamples=resamples, seed=seed))
    return [row for table in tables for row in table.to_dict("records")]


def _nested(records: Iterable[Mapping[Any, Any]]) -> Tree:
    """scope -> name -> metric@round -> values."""
    found: Tree = {}
    for row in records:
        place = found.setdefault(row["scope"], {})
        place = place if row["scope"] == "overall" else place.setdefault(row["name"], {})
        values = {key: round(row[key], 6) for key in ("mean", "low", "high")}
        if row["metric"] == "nof":
            values = {"count": round(values.pop("mean")), **values}
        if row["metric"] == "passed":
            place |= {**values, "masks": row["masks"]}
            continue
        place[f"{row['metric']}@{row['round']}"] = values
    return found


def _brief(tree: Tree) -> Tree:
    """Without the data sets: they are in the rows."""
    return {scope: tree[scope] for scope in ("overall", "task")}


def _yields(images: pd.DataFrame) -> Tree:
    """Masks an image of automatic generation; over all images alike, as no set has its own weight in a ratio."""
    mean = images.groupby("task")["generated"].mean()
    tasks = {task: round(float(mean[task]), 6) for task in task_names(images["task"])}
    return {"overall": round(float(images["generated"].mean()), 6), "task": tasks}
