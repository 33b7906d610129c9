"""The report's further tables against group-bys written out here, on evaluations drawn by lot."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from sum.data import breakdowns, calibration, scatters
from sum.data.gate_pages import read_verdict
from sum.data.grids import Cell, Grid, Words, make_grid, transposed, with_published
from sum.data.score_tables import EVERYTHING, UNSPECIFIED, games_of
from sum.data.scores import LEVELS, comparison_table
from sum.storage import write_json

MODELS = ("base", "small", "large")
SETS = {"a": "salient", "b": "part", "c": "part"}
PROTOCOL = {"prompts": ["point", "box"], "unspecified": True, EVERYTHING: {"points_per_side": 4}}
DRAWS = {"resamples": 20, "seed": 0}


def evaluation(model: str, seed: int) -> pd.DataFrame:
    """Three sets of five images, one to four masks each, in all games; areas are the same for all models."""
    rng, layout = np.random.default_rng(seed), np.random.default_rng(99)
    rows = []
    for dataset, task in SETS.items():
        for image in range(5):
            for number in range(int(layout.integers(1, 5))):
                area = int(layout.choice([500, 1023, 1024, 5000, 9215, 9216, 40000]))
                place = {"model": model, "dataset": dataset, "task": task, "image_id": f"{dataset}/{image}"}
                place |= {"mask_id": f"{dataset}/{image}#{number}", "area": area}
                for prompt, words in (
                    ("point", task),
                    ("point", UNSPECIFIED),
                    ("box", task),
                    (EVERYTHING, UNSPECIFIED),
                ):
                    for count in (1,) if prompt == EVERYTHING else (1, 2, 3):
                        for output in ("oracle", "confident") if count == 1 else ("oracle",):
                            scores = dict(zip(("iou", "boundary_iou"), rng.uniform(size=2), strict=True))
                            about = {"prompt": prompt, "task_prompt": words, "round": count, "output": output}
                            rows.append({**place, **about, **scores, "predicted_iou": rng.uniform(-0.2, 1.2)})
    return pd.DataFrame(rows)


ROWS = {model: evaluation(model, seed) for seed, model in enumerate(MODELS)}
MAIN = {model: rows[(rows["prompt"] == "point") & (rows["task_prompt"] != UNSPECIFIED)] for model, rows in ROWS.items()}


def cell(grid: Grid, group: str, model: str, column: tuple[str, str]) -> Cell | Words | None:
    (line,) = [line for line in grid.lines if (line.group, line.model) == (group, model)]
    return line.cells[grid.columns.index(column)]


def mean(rows: pd.DataFrame, name: str, value: str = "iou") -> float:
    """Over masks, then over sets; of a task, or of `all`."""
    own = rows if name == "all" else rows[rows["task"] == name]
    return float(own.groupby("dataset")[value].mean().mean())


def oracle(rows: pd.DataFrame, number: int) -> pd.DataFrame:
    return rows[(rows["output"] == "oracle") & (rows["round"] == number)]


def test_sizes_are_cocos_and_count_their_masks() -> None:
    grid = breakdowns.by_size(MAIN, number=1, **DRAWS)
    bounds = {
        "small: under 32² px": (0, 1023),
        "medium: 32² to 96² px": (1024, 9215),
        "large: 96² px and more": (9216, 10**9),
    }
    assert [name for name, _ in grid.groups] == list(bounds)
    for words, (low, high) in bounds.items():
        parts = {model: oracle(rows, 1) for model, rows in MAIN.items()}
        parts = {model: rows[rows["area"].between(low, high)] for model, rows in parts.items()}
        for name in ("salient", "part", "all"):
            base, large = (cell(grid, words, model, (name, "mIoU")) for model in ("base", "large"))
            assert isinstance(base, Cell)
            assert isinstance(large, Cell)
            assert base.mean == pytest.approx(100 * mean(parts["base"], name))
            assert large.gain == pytest.approx(100 * (mean(parts["large"], name) - mean(parts["base"], name)))
            own = parts["base"] if name == "all" else parts["base"][parts["base"]["task"] == name]
            assert cell(grid, words, "masks | images", (name, "mIoU")) == Words(str(len(own)))
            assert cell(grid, words, "masks | images", (name, "mBIoU")) == Words(str(own["image_id"].nunique()))


def test_a_size_that_no_mask_of_a_task_has_is_left_empty() -> None:
    rows = {model: table[(table["task"] == "part") | (table["area"] < 1024)] for model, table in MAIN.items()}
    grid = breakdowns.by_size(rows, number=1, **DRAWS)
    assert cell(grid, "large: 96² px and more", "small", ("salient", "mIoU")) is None
    assert cell(grid, "large: 96² px and more", "masks | images", ("salient", "mIoU")) is None


def test_every_game_after_every_round_that_it_has() -> None:
    games = games_of(PROTOCOL)
    assert games == [("point", False), ("point", True), ("box", False), (EVERYTHING, False)]
    assert games_of({"prompts": ["box"], "unspecified": False, EVERYTHING: None}) == [("box", False)]
    grid = breakdowns.by_prompt(ROWS, games, rounds=[1, 3], **DRAWS)
    point, plain, box = (
        ("1 point", "3 points"),
        ("1 point, no task prompt", "3 points, no task prompt"),
        ("box", "box + 2 points"),
    )
    assert [name for name, _ in grid.groups] == [*point, *plain, *box, "automatic masks"]
    for words, prompt, without, number in (
        ("3 points", "point", False, 3),
        ("1 point, no task prompt", "point", True, 1),
        ("box + 2 points", "box", False, 3),
        ("automatic masks", EVERYTHING, True, 1),
    ):
        rows = oracle(ROWS["large"], number)
        rows = rows[(rows["prompt"] == prompt) & ((rows["task_prompt"] == UNSPECIFIED) == without)]
        found = cell(grid, words, "large", ("part", "mBIoU"))
        assert isinstance(found, Cell)
        assert found.mean == pytest.approx(100 * mean(rows, "part", "boundary_iou"))


def test_clicks_needed_and_failures_mask_by_mask() -> None:
    grid = breakdowns.needed(MAIN, **DRAWS)
    for model in MODELS:
        rows = MAIN[model][MAIN[model]["output"] == "oracle"]
        for level in LEVELS:
            found = []
            for (dataset, task, _), part in rows.groupby(["dataset", "task", "mask_id"]):
                reached = [int(n) for n, iou in zip(part["round"], part["iou"], strict=True) if iou >= level / 100]
                noc = min(reached, default=3)
                found.append({"dataset": dataset, "task": task, "noc": noc, "nof": not reached})
            table = pd.DataFrame(found)
            columns = [head for head in grid.columns if head[1] == str(level)]
            for name in ("all", "salient", "part"):
                noc, nof = (cell(grid, name, model, column) for column in columns)
                own = table if name == "all" else table[table["task"] == name]
                assert isinstance(noc, Words)
                assert isinstance(nof, Words)
                assert float(noc.value.split()[0]) == pytest.approx(mean(table, name, "noc"), abs=0.006)
                assert nof.value.split()[0] == str(int(own["nof"].sum()))


def test_fewer_clicks_are_better() -> None:
    solved = MAIN["base"].assign(iou=0.99)
    hopeless = MAIN["base"].assign(iou=0.1)
    grid = breakdowns.needed({"base": hopeless, "good": solved}, **DRAWS)
    found = grid.lines[1].cells[0]
    assert found == Words("1.00 ±0.00", "-2.00 ±0.00 ▲", "better")
    grid = breakdowns.needed({"base": solved, "bad": hopeless}, **DRAWS)
    assert grid.lines[1].cells[0] == Words("3.00 ±0.00", "+2.00 ±0.00 ▼", "worse")


def checks(model: str, seed: int) -> pd.DataFrame:
    """As fidelity.parquet; `negative` is asked of other masks of each model."""
    rng = np.random.default_rng(seed)
    table = MAIN[model].drop_duplicates("mask_id")[["model", "dataset", "task", "image_id", "mask_id"]]
    parts = [table.assign(check=kind, passed=rng.uniform(size=len(table)) < 0.7) for kind in ("swap", "negative")]
    parts[1] = parts[1][rng.uniform(size=len(table)) < 0.8]
    return pd.concat(parts, ignore_index=True)


def test_checks_passed_and_their_change_on_the_masks_that_both_were_asked() -> None:
    tables = {model: checks(model, seed) for seed, model in enumerate(MODELS)}
    grid = breakdowns.passed(tables, **DRAWS)
    assert [name for name, _ in grid.groups] == [breakdowns.CHECKS[kind] for kind in ("swap", "negative")]
    for kind in ("swap", "negative"):
        asked = {model: table[table["check"] == kind] for model, table in tables.items()}
        for name in ("part", "all"):
            found = cell(grid, breakdowns.CHECKS[kind], "large", (name, "passed, %"))
            assert isinstance(found, Cell)
            assert found.mean == pytest.approx(100 * mean(asked["large"], name, "passed"))
            both = asked["large"].merge(asked["base"], on=["dataset", "task", "mask_id"], suffixes=("", "_base"))
            both["change"] = both["passed"].astype(float) - both["passed_base"]
            assert found.gain == pytest.approx(100 * mean(both, name, "change"))


def test_yield_of_automatic_generation() -> None:
    images = MAIN["base"].drop_duplicates("image_id")[["dataset", "task", "image_id"]].reset_index(drop=True)
    counts = {
        model: images.assign(generated=(images.index % 4 + 1) * (place + 1)) for place, model in enumerate(MODELS)
    }
    grid = breakdowns.generated(counts, **DRAWS)
    for name in ("salient", "part", "all"):
        found = cell(grid, "masks an image", "large", (name, "kept"))
        assert isinstance(found, Words)
        assert found.change == "× 3.00"
        assert float(found.value.split()[0]) == pytest.approx(mean(counts["large"], name, "generated"), abs=0.06)


def test_calibration_bins_against_cutting_by_hand() -> None:
    rows = MAIN["small"]
    table = calibration.bins(rows, output="confident")
    own = rows[(rows["output"] == "confident") & (rows["round"] == 1)]
    stated = own["predicted_iou"].clip(0, 1)
    place = (stated * 10).astype(int).clip(upper=9)
    assert table["masks"].tolist() == [int((place == number).sum()) for number in range(10)]
    error = 0.0
    for number in range(10):
        inside = place == number
        if inside.any():
            row = table.iloc[number]
            assert row["predicted"] == pytest.approx(stated[inside].mean())
            assert row["reached"] == pytest.approx(own["iou"][inside].mean())
            error += inside.sum() / len(own) * abs(stated[inside].mean() - own["iou"][inside].mean())
    assert calibration.expected_error(table) == pytest.approx(error)
    assert calibration.surplus(table) == pytest.approx((stated - own["iou"]).mean())


@pytest.mark.parametrize(
    ("stated", "place"), [(0.0, 0), (0.1, 1), (0.3, 3), (0.7, 7), (0.999, 9), (1.0, 9), (-3.0, 0), (3.0, 9)]
)
def test_a_prediction_on_an_edge_is_in_the_upper_bin(stated: float, place: int) -> None:
    rows = MAIN["base"].head(1).assign(predicted_iou=stated, output="confident", round=1)
    assert calibration.bins(rows, output="confident")["masks"].to_numpy().nonzero()[0].tolist() == [place]


def test_without_masks_there_is_no_error() -> None:
    table = calibration.bins(MAIN["base"].head(0), output="confident")
    assert np.isnan(calibration.expected_error(table))
    assert np.isnan(calibration.surplus(table))
    assert "<svg" in calibration.chart({"<base>": table})
    assert "<base>" not in calibration.chart({"<base>": table})


def test_every_mask_is_a_dot() -> None:
    iou = pd.DataFrame({"task": "part", "base": [0.1, 0.1, 0.5, 1.0, 0.0], "<big>": [0.2, 0.2, 0.5, 0.3, 0.0]})
    found = scatters.cells(iou[["base", "<big>"]])
    assert found["masks"].sum() == len(iou)
    assert {(row.x, row.y): row.masks for row in found.itertuples()} == {
        (10, 20): 2,
        (50, 50): 1,
        (99, 30): 1,
        (0, 0): 1,
    }
    ((task, model, svg),) = scatters.panels(iou)
    assert (task, model) == ("part", "<big>")
    assert "5 masks: 40% better, 20% worse" in svg
    assert "<big>" not in svg
    paths = {
        colour: sum(map(len, (re.findall("M", d) for d in re.findall(f'fill="{colour}"[^>]* d="([^"]*)"', svg))))
        for colour in (scatters.SAME, scatters.BETTER, scatters.WORSE)
    }
    assert paths == {scatters.SAME: 2, scatters.BETTER: 1, scatters.WORSE: 1}


def test_panels_stay_small_however_many_masks() -> None:
    values = np.random.default_rng(0).uniform(size=(100_000, 2))
    iou = pd.DataFrame(values, columns=["base", "large"]).assign(task="part")
    ((_, _, svg),) = scatters.panels(iou)
    assert len(svg) < 300_000


def test_published_lines_follow_ours_and_turn_into_columns() -> None:
    rows = {model: table.assign(dataset=table["dataset"].replace({"a": "coift"})) for model, table in MAIN.items()}
    grid = make_grid(comparison_table(rows, rounds=[1, 3], **DRAWS), scope="dataset")
    assert with_published(grid, {"b", "c"}, prompt="point") == grid
    both = with_published(grid, {"coift"}, prompt="point")
    assert [(line.group, line.model) for line in both.lines if line.published] == [("1", "SAM ViT-H")]
    turned = transposed(both)
    assert [name for name, _ in turned.heads] == [*MODELS, "SAM ViT-H, published"]
    assert cell(turned, "1", "coift", ("SAM ViT-H, published", "mBIoU")) == Cell(88.0)
    assert cell(turned, "3", "coift", ("SAM ViT-H, published", "mBIoU")) is None
    assert cell(turned, "1", "b", ("SAM ViT-H, published", "mIoU")) is None
    assert cell(turned, "3", "b", ("large", "mIoU")) == cell(grid, "3", "large", ("b", "mIoU"))


def test_the_gates_table_in_words(tmp_path) -> None:
    path = tmp_path / "large.json"
    assert read_verdict(path, model="large").reasons == ("run `dvc repro register@large`",)
    shared = {"name": "part", "p": 0.0125, "masks": 1200, "images": 40}
    keys = ("family", "kind", "scope", "base", "tuned", "gain", "low", "high", "limit", "ok")
    table = [
        ("point", "1 point", "task", 0.5214, 0.502, -0.0194, -0.03, -0.01, -0.01, False),
        ("box", "box", "dataset", 0.5, 0.5, 0.0, 0.0, 0.0, None, None),
        ("yield", "masks", "overall", 18.0, 9.0, -9.0, -10.0, -8.0, None, None),
    ]
    rows = [dict(zip(keys, row, strict=True)) for row in table]
    found = {
        "verdict": "refused",
        "reasons": ["why"],
        "table": [{**shared, **row} for row in rows],
        "not_looked_at": ["box"],
    }
    write_json(path, found)
    verdict = read_verdict(path, model="large")
    assert (verdict.word, verdict.reasons, verdict.unseen) == ("refused", ("why",), ("box",))
    first, last = verdict.rows  # data sets are in the JSON only
    assert (first.kind, first.name, first.word) == ("1 point", "part", "fails")
    assert first.cells == ("52.1", "50.2", "-1.9", "-3.0 to -1.0", "0.013", "-1.0", "1,200", "40")
    assert last.cells[:4] == ("18.00", "9.00", "-9.00", "-10.00 to -8.00")
    assert last.word == ""
