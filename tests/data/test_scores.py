"""Aggregation against tables worked out by hand, and the files that hold the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sum.core.metrics import bootstrap_interval, clicks_needed, paired_interval
from sum.data.grids import make_grid, to_csv, to_markdown
from sum.data.score_tables import ROW_SCHEMA, ROWS, join_tables, read_rows
from sum.data.scores import LEVELS, comparison_table, differences, effort_estimates, efforts, estimates, spread
from sum.errors import DataError, MissingInput

# (set, task): one list of IoUs an image
SETS = {("a", "part"): [[1.0, 1.0, 1.0], [0.0]], ("b", "part"): [[0.2]], ("c", "salient"): [[0.5], [0.7]]}


def made(
    values: dict[tuple[str, str], list[list[float]]] = SETS, *, model: str = "base", shift: float = 0.0
) -> list[dict[str, object]]:
    """Rows of rounds 1 and 3 (0.1 better), output oracle and a worse single; boundary IoU is half the IoU."""
    rows: list[dict[str, object]] = []
    for (dataset, task), images in values.items():
        for image, ious in enumerate(images):
            for mask, value in enumerate(ious):
                place = {
                    "dataset": dataset,
                    "task": task,
                    "image_id": f"{dataset}/{image}",
                    "mask_id": f"{dataset}/{image}#{mask}",
                }
                for number in (1, 3):
                    for output in ("oracle", "single"):
                        iou = value + shift + 0.05 * (number - 1) - 0.3 * (output == "single")
                        row = {
                            "round": number,
                            "output": output,
                            "iou": iou,
                            "boundary_iou": iou / 2,
                            "predicted_iou": 0.5,
                        }
                        rows.append({"model": model, **place, **row, "click_x": 1, "click_y": 2, "click_label": 1})
    return rows


def table(**options: object) -> pd.DataFrame:
    return pd.DataFrame(made(**options))  # type: ignore[arg-type]


def mean_of(found: pd.DataFrame, scope: str, name: str, number: int = 1, metric: str = "iou") -> float:
    row = found[
        (found["scope"] == scope) & (found["name"] == name) & (found["round"] == number) & (found["metric"] == metric)
    ]
    assert len(row) == 1
    return float(row["mean"].iloc[0])


@pytest.mark.parametrize(
    ("scope", "name", "want"),
    [
        ("dataset", "a", 3 / 4),  # over masks, not over images: (1 + 1 + 1 + 0) / 4
        ("dataset", "b", 0.2),
        ("dataset", "c", 0.6),
        ("task", "part", (0.75 + 0.2) / 2),  # a set of one mask counts as much as one of four
        ("task", "salient", 0.6),
        ("overall", "all", (0.75 + 0.2 + 0.6) / 3),  # over sets, not over tasks and not over masks
    ],
)
def test_means_over_masks_then_sets(scope: str, name: str, want: float) -> None:
    found = estimates(table(), rounds=[1, 3], resamples=20)
    assert mean_of(found, scope, name) == pytest.approx(want)
    assert mean_of(found, scope, name, 3) == pytest.approx(want + 0.1)
    assert mean_of(found, scope, name, metric="boundary_iou") == pytest.approx(want / 2)
    single = estimates(table(), rounds=[1], output="single", resamples=20)
    assert mean_of(single, scope, name) == pytest.approx(want - 0.3)


def test_masks_and_images_are_counted_once() -> None:
    found = estimates(table(), rounds=[1, 3], resamples=5).set_index(["scope", "name", "metric", "round"])
    assert found.loc[("overall", "all", "iou", 3), ["masks", "images"]].tolist() == [7, 5]
    assert found.loc[("task", "part", "iou", 1), ["masks", "images"]].tolist() == [5, 3]


def many(seed: int, images: int = 40) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return [list(np.clip(rng.normal(rng.uniform(0.3, 0.8), 0.1, rng.integers(1, 6)), 0, 1)) for _ in range(images)]


def test_intervals_agree_with_the_plain_bootstrap_over_images() -> None:
    images = many(0)
    found = estimates(table(values={("a", "part"): images}), rounds=[1], resamples=4000)
    flat = [value for ious in images for value in ious]
    clusters = [image for image, ious in enumerate(images) for _ in ious]
    want = bootstrap_interval(flat, clusters, resamples=4000)
    for scope in ("overall", "task", "dataset"):
        row = found[(found["scope"] == scope) & (found["metric"] == "iou")].iloc[0]
        assert (row["mean"], row["low"], row["high"]) == pytest.approx(want, abs=0.004)


def test_paired_interval_of_a_difference_is_narrow_where_the_values_are_not() -> None:
    values = {("a", "part"): many(1), ("b", "salient"): many(2)}
    rows, better = table(values=values), table(values=values, shift=0.02)
    found = differences(better, rows, rounds=[1], resamples=200)
    assert found["mean"].tolist() == pytest.approx([0.02, 0.01] * 5)
    assert (found["high"] - found["low"]).max() < 1e-9
    noisy = better.assign(iou=better["iou"] + np.random.default_rng(0).normal(0, 0.1, len(better)))
    first, second = (spread(part, rounds=[1]).xs("a")["iou", 1] for part in (noisy, rows))
    want = paired_interval(first, second, first.index.get_level_values("image_id"), resamples=4000)
    row = (
        differences(noisy, rows, rounds=[1], resamples=4000)
        .query("scope == 'dataset' and name == 'a' and metric == 'iou'")
        .iloc[0]
    )
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(want, abs=0.004)


def test_the_interval_of_a_set_does_not_depend_on_the_others_or_on_the_order() -> None:
    both = estimates(table(), rounds=[1], resamples=50)
    alone = estimates(table(values={("a", "part"): SETS["a", "part"]}), rounds=[1], resamples=50)
    turned = estimates(table().sample(frac=1, random_state=0), rounds=[1], resamples=50)
    pick = "scope == 'dataset' and name == 'a'"
    pd.testing.assert_frame_equal(both.query(pick).reset_index(drop=True), alone.query(pick).reset_index(drop=True))
    pd.testing.assert_frame_equal(both, turned)


def test_refusals_say_what_differs() -> None:
    with pytest.raises(DataError, match=r"7 masks lack a round of \[1, 2\] for output 'oracle', found rounds \[1\]"):
        spread(table(), rounds=[1, 2])
    with pytest.raises(DataError, match="all masks lack"):
        spread(table(), rounds=[1], output="confident")
    fewer = table(values={("a", "part"): SETS["a", "part"]})
    with pytest.raises(DataError, match="0 only in the first, 3 only in the second"):
        differences(fewer, table(), rounds=[1])


def courses(ious: dict[tuple[str, str], list[list[list[float]]]]) -> pd.DataFrame:
    """Rows of output oracle: (set, task) -> image -> mask -> IoU after round 1, 2, ..."""
    rows = []
    for (dataset, task), images in ious.items():
        for image, masks in enumerate(images):
            for mask, course in enumerate(masks):
                place = {"dataset": dataset, "task": task, "image_id": f"{dataset}/{image}"}
                place["mask_id"] = f"{dataset}/{image}#{mask}"
                for number, value in enumerate(course, start=1):
                    row = {"round": number, "output": "oracle", "iou": value, "boundary_iou": 0.5}
                    rows.append(place | row)
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("course", "needed", "failed"),
    [
        ([0.96, 0.1, 0.1], [1, 1, 1, 1], [0, 0, 0, 0]),  # what comes later does not count
        ([0.8, 0.85, 0.9], [1, 2, 3, 3], [0, 0, 0, 1]),  # reaching it exactly, and with the last click, is a success
        ([4 / 5, 17 / 20, 19 / 20], [1, 2, 3, 3], [0, 0, 0, 0]),  # quotients of pixels, as IoUs are
        ([0.5, np.nextafter(0.8, 0), 0.7], [3, 3, 3, 3], [1, 1, 1, 1]),  # a hair below is none; failures count as all
        ([0.1, 0.9, 0.99], [2, 2, 2, 3], [0, 0, 0, 0]),
    ],
)
def test_clicks_needed_and_failures_of_one_mask(course: list[float], needed: list[int], failed: list[int]) -> None:
    found = efforts(courses({("a", "part"): [[course]]}))
    assert found["noc"].to_numpy().tolist() == [needed]
    assert found["nof"].to_numpy().tolist() == [failed]
    assert tuple(found["noc"].columns) == LEVELS


def drawn_courses(seed: int, sets: tuple[str, ...] = ("a", "b")) -> dict[tuple[str, str], list[list[list[float]]]]:
    """Courses of hundredths, so that levels are met exactly, with 1 to 4 masks an image."""
    rng = np.random.default_rng(seed)
    return {
        (name, "part"): [
            (rng.integers(60, 101, (rng.integers(1, 5), 6)) / 100).tolist() for _ in range(rng.integers(15, 30))
        ]
        for name in sets
    }


def test_all_masks_at_once_are_counted_as_one_by_one() -> None:
    values = drawn_courses(0)
    found = efforts(courses(values).sample(frac=1, random_state=1))
    every = [course for images in values.values() for masks in images for course in masks]
    assert len(found) == len(every)
    for (dataset, _, image_id, mask_id), row in found.iterrows():
        course = values[dataset, "part"][int(image_id.split("/")[1])][int(mask_id.split("#")[1])]
        for level in LEVELS:
            needed = clicks_needed(course, level / 100)
            assert row["noc", level] == (6 if needed is None else needed)
            assert row["nof", level] == (needed is None)


def test_clicks_are_averaged_and_failures_added() -> None:
    good, late, never = [0.9, 0.9], [0.5, 0.9], [0.1, 0.2]
    rows = courses(
        {("a", "part"): [[good, late], [never]], ("b", "part"): [[never]], ("c", "salient"): [[good], [good]]}
    )
    found = effort_estimates(rows, resamples=50)
    at90 = {
        (row["scope"], row["name"], row["metric"]): row["mean"]
        for row in found[found["round"] == 90].to_dict("records")
    }
    a, b, c = (1 + 2 + 2) / 3, 2, 1
    assert at90["dataset", "a", "noc"] == pytest.approx(a)
    assert at90["task", "part", "noc"] == pytest.approx((a + b) / 2)
    assert at90["overall", "all", "noc"] == pytest.approx((a + b + c) / 3)
    failures = {name: value for (scope, name, metric), value in at90.items() if metric == "nof"}
    assert failures == pytest.approx({"a": 1, "b": 1, "c": 0, "part": 2, "salient": 0, "all": 2})
    row = found.query("scope == 'dataset' and name == 'c' and metric == 'nof' and round == 90").iloc[0]
    assert (row["low"], row["high"]) == (0, 0)


def test_intervals_of_clicks_and_failures_agree_with_the_plain_bootstrap() -> None:
    values = drawn_courses(5)
    rows = courses(values)
    found = effort_estimates(rows, resamples=4000).set_index(["scope", "name", "metric", "round"])
    masks = efforts(rows).xs("a", level="dataset")
    clusters = masks.index.get_level_values("image_id")
    for metric, size in (("noc", 1), ("nof", len(masks))):
        want = np.array(bootstrap_interval(masks[metric, 90], clusters, resamples=4000)) * size
        row = found.loc[("dataset", "a", metric, 90)]
        assert (row["mean"], row["low"], row["high"]) == pytest.approx(want, abs=0.04 * (want[2] - want[1]))
    alone = [found.loc[("dataset", name, "nof", 90)] for name in ("a", "b")]
    both = found.loc[("overall", "all", "nof", 90)]
    assert both["mean"] == pytest.approx(alone[0]["mean"] + alone[1]["mean"])
    width = np.hypot(*(row["high"] - row["low"] for row in alone))  # the sets' images are drawn independently
    assert both["high"] - both["low"] == pytest.approx(width, rel=0.08)


def test_clicks_of_an_output_without_later_rounds_are_refused() -> None:
    rows = courses({("a", "part"): [[[0.5, 0.9]]]})
    first = rows[rows["round"] == 1].assign(output="confident")
    with pytest.raises(DataError, match=r"1 masks lack a round of \[1, 2\] for output 'confident'"):
        efforts(pd.concat([rows, first]), output="confident")


def compared() -> pd.DataFrame:
    rows = {"base": table(), "small": table(model="small", shift=0.1), "large": table(model="large", shift=-0.1)}
    return comparison_table(rows, rounds=[1, 3], resamples=50)


def test_comparison_has_the_gain_on_the_base() -> None:
    found = compared().query("scope == 'task' and name == 'part' and metric == 'iou' and round == 1").set_index("model")
    assert found["mean"].to_dict() == pytest.approx({"base": 0.475, "small": 0.575, "large": 0.375})
    assert found["gain"].drop("base").to_dict() == pytest.approx({"small": 0.1, "large": -0.1})
    assert np.isnan(found["gain"]["base"])


def test_markdown_is_what_a_person_reads() -> None:
    text = to_markdown(make_grid(compared()))
    lines = text.splitlines()
    head = [part.strip() for part in lines[0].split("|")[1:-1]]
    assert head == [
        "points",
        "model",
        "salient mIoU",
        "salient mBIoU",
        "part mIoU",
        "part mBIoU",
        "all mIoU",
        "all mBIoU",
    ]
    first = [part.strip() for part in lines[2].split("|")[1:-1]]
    assert first[:2] == ["1", "base"]
    assert first[2].startswith("60.0 ±")
    assert [line.split("|")[2].strip() for line in lines[2:8]] == ["base", "small", "large"] * 2
    changes = [line for line in lines if line.startswith("| ") and "±0.0" in line]
    assert "+10.0 ±0.0 ▲" in changes[0]
    assert "-10.0 ±0.0 ▼" in changes[1]
    assert len({len(line) for line in lines[:8]}) == 1


def test_csv_has_a_row_a_model_in_per_cent(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(to_csv(make_grid(compared())))
    found = pd.read_csv(path, index_col="model")
    assert list(found.index) == ["base", "small", "large"]
    assert found.loc["small", "part mIoU@1"] == pytest.approx(57.5)
    assert found.loc["small", "part mIoU@1 gain"] == pytest.approx(10)
    assert np.isnan(found.loc["base", "part mIoU@1 gain"])
    assert len(found.columns) == 3 * 2 * 2 * 6


def test_rows_come_back_from_disk(tmp_path: Path) -> None:
    rows = made()
    rows[0] |= {"click_x": None, "click_y": None, "click_label": None}
    folder = tmp_path / "base"
    folder.mkdir()
    parts = (pa.Table.from_pylist(part, schema=ROW_SCHEMA) for part in (rows[:5], rows[5:]))
    join_tables(parts, folder / ROWS, ROW_SCHEMA)
    found = read_rows(folder, reader="report")
    assert list(found.columns) == ROW_SCHEMA.names
    assert found["click_x"].isna().tolist() == [True] + [False] * (len(rows) - 1)
    assert found["iou"].tolist() == [row["iou"] for row in rows]


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"stage 'evaluate@small' writes it"):
        read_rows(tmp_path / "small", reader="report")
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / ROWS).write_text("no table")
    with pytest.raises(DataError, match=r"rows.parquet: not a table that stage 'evaluate@small' writes"):
        read_rows(tmp_path / "small", reader="report")
