"""The experiment's means and intervals, against closed forms and plain loops; and where its runs find photos."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import experiment
from benchmarks.experiment import Run, interval, make, rows_of
from sum.data.scores import METRICS

SETS = {"a": ("salient", 4), "b": ("part", 6), "c": ("part", 3)}  # data set -> task, masks; two masks an image


def table(seeds: int, *, seed: int = 0) -> pd.DataFrame:
    """As `experiment.values`: a row a mask, a column a (seed, metric, round)."""
    rows = [
        (name, task, f"{name}/{n // 2}", f"{name}/{n // 2}#{n}")
        for name, (task, size) in SETS.items()
        for n in range(size)
    ]
    columns = pd.MultiIndex.from_product([range(seeds), METRICS, experiment.ROUNDS], names=["seed", "metric", "round"])
    values = np.random.default_rng(seed).random((len(rows), len(columns)))
    index = pd.MultiIndex.from_tuples(rows, names=["dataset", "task", "image_id", "mask_id"])
    return pd.DataFrame(values, index=index, columns=columns)


def test_means_are_over_masks_then_sets_then_tasks_and_seeds() -> None:
    base, own = table(1), table(3, seed=1)
    found = {(row["name"], row["metric"], row["round"]): row for row in rows_of(Run("small", "sum", 0), own, base)}
    assert {name for name, _, _ in found} == {"salient", "part", "all"}
    for metric, number in itertools.product(METRICS, experiment.ROUNDS):
        mean = {name: np.mean([own.loc[name][(seed, metric, number)].mean() for seed in range(3)]) for name in SETS}
        before = {name: base.loc[name][(0, metric, number)].mean() for name in SETS}
        for task, names in {"salient": "a", "part": "bc", "all": "abc"}.items():
            row = found[task, metric, number]
            assert row["mean"] == pytest.approx(np.mean([mean[name] for name in names]))
            assert row["gain"] == pytest.approx(np.mean([mean[name] - before[name] for name in names]))
            assert row["masks"] == sum(SETS[name][1] for name in names)


def test_the_interval_is_that_of_seeds_and_of_images() -> None:
    images = [f"{n // 2}" for n in range(200)]
    dice = np.random.default_rng(5)
    of_seeds = np.tile(dice.normal(size=(1, 40)), (200, 1))  # every mask alike: only seeds vary
    of_images = np.tile(dice.normal(size=(100, 1)).repeat(2, axis=0), (1, 4))  # every seed alike
    for values, spread in ((of_seeds, of_seeds[0].std() / 40**0.5), (of_images, of_images[::2, 0].std() / 100**0.5)):
        mean, low, high = interval([(values, images)])
        assert mean == pytest.approx(values.mean())
        assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    both = interval([(of_seeds, images), (of_seeds, images)])
    assert both == pytest.approx(interval([(of_seeds, images)]))  # the same seeds are drawn for all sets
    halved = interval([(of_images, images), (np.zeros_like(of_images), images)])
    assert halved[2] - halved[1] == pytest.approx((of_images[::2, 0].std() / 10) * 1.96, rel=0.1)


def test_equal_models_gain_nothing_for_certain() -> None:
    base = table(1)
    rows = list(rows_of(Run("", "", 0), base, base))
    assert all(row["gain"] == row["gain_low"] == row["gain_high"] == 0 for row in rows)


def test_a_run_sees_photos_beside_the_project_and_links_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, out = tmp_path / "project", tmp_path / "out"
    (project / "data").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.png").write_bytes(b"1")
    monkeypatch.setattr(experiment, "photo_folders", lambda _: ["../photos"])
    monkeypatch.setattr(Run, "commands", lambda self: iter(()))
    for seed in (0, 1):
        make(Run("small", "sum", seed), project, out, [])
        assert (out / f"runs/small-sum-{seed}" / "../photos/one.png").read_bytes() == b"1"
    monkeypatch.setattr(experiment, "photo_folders", lambda _: ["../../../photos"])
    with pytest.raises(SystemExit, match="outside"):
        make(Run("small", "sum", 2), project, out, [])
