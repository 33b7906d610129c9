"""The small files beside an evaluation's tables, against means of pandas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sum.data.score_tables import ROW_SCHEMA, ROWS, write_table
from sum.data.summaries import CURVES, PLAIN, SUMMARY, write_summaries

SETS = {"a": "part", "b": "part", "c": "salient"}


@pytest.fixture
def rows(tmp_path: Path) -> pd.DataFrame:
    """Two games of three rounds on three sets without an entity, IoUs by chance, and their file."""
    rng, found = np.random.default_rng(0), []
    for number, (dataset, task) in enumerate(SETS.items()):
        for mask in range(2 + number):
            place = {"model": "base", "dataset": dataset, "task": task, "image_id": f"{dataset}/{mask}"}
            place |= {"mask_id": f"{dataset}/{mask}#0", "task_prompt": task, "area": 9, "click_label": 1}
            for prompt in ("box", "point"):
                for output in ("oracle", "single"):
                    found += [
                        {**place, "prompt": prompt, "output": output, "round": turn, "iou": rng.random()}
                        | {"boundary_iou": 0.5, "predicted_iou": 0.5, "click_x": 1, "click_y": 1}
                        for turn in (1, 2, 3)
                    ]
    write_table(tmp_path / ROWS, found, ROW_SCHEMA)
    return pd.DataFrame(found)


def test_curves_are_the_oracles_means_of_the_main_game_in_per_cent(rows: pd.DataFrame, tmp_path: Path) -> None:
    summary = write_summaries(tmp_path, games=[("point", False), ("box", False)], rounds=[1, 3], resamples=5, seed=0)
    table = pd.read_csv(tmp_path / CURVES)
    assert list(table) == ["round", "salient", "entity", "part", "all"]
    assert list(table["round"]) == [1, 2, 3]  # those of no table, too
    assert table["entity"].isna().all()  # a column that DVC's plots find, without a figure
    game = rows[(rows["prompt"] == "point") & (rows["output"] == "oracle")]
    sets = 100 * game.pivot_table(index="round", columns="dataset", values="iou", aggfunc="mean")
    for name, part in (("salient", ["c"]), ("part", ["a", "b"]), ("all", ["a", "b", "c"])):
        assert list(table[name]) == pytest.approx(list(sets[part].mean(axis=1)), abs=1e-4)
    assert json.loads((tmp_path / SUMMARY).read_text()) == summary


def test_plain_figures_are_those_of_the_summary(rows: pd.DataFrame, tmp_path: Path) -> None:
    summary = write_summaries(tmp_path, games=[("box", False), ("point", False)], rounds=[1, 3], resamples=5, seed=0)
    plain = json.loads((tmp_path / PLAIN).read_text())
    assert set(plain) == {"all", "task-part", "task-salient", *SETS}
    assert plain["a"]["iou_at_3"] == summary["dataset"]["a"]["iou@3"]["mean"]
    assert plain["task-part"]["point_iou_at_1"] == summary["games"]["point"]["task"]["part"]["iou@1"]["mean"]
    assert plain["all"]["nof_at_90"] == summary["overall"]["nof@90"]["count"]
