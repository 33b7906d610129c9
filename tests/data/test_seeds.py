"""Means and intervals of a model trained with several seeds, against closed forms and plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from sum.data.scores import METRICS, averages, comparison_table
from sum.errors import DataError

SETS = {"a": ("salient", 4), "b": ("part", 6), "c": ("part", 3)}  # data set -> task, masks; two masks an image
ROUNDS = (1, 2)
COLUMNS = pd.MultiIndex.from_tuples([("iou", 1)], names=["metric", "round"])
Values = NDArray[np.float64]


def rows(*, seed: int) -> pd.DataFrame:
    """Evaluation rows of one model with scores by chance."""
    dice = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "dataset": name,
            "task": task,
            "image_id": f"{name}/{n // 2}",
            "mask_id": f"{name}/{n // 2}#{n}",
            "round": number,
            "output": "oracle",
            **{metric: dice.random() for metric in METRICS},
        }
        for name, (task, size) in SETS.items()
        for n in range(size)
        for number in ROUNDS
    )


def test_means_are_over_masks_then_sets_then_tasks_and_seeds() -> None:
    base, seeds = rows(seed=9), [rows(seed=seed) for seed in range(3)]
    table = comparison_table({"base": base, "sum": seeds}, rounds=ROUNDS, resamples=20)
    found = {
        (row["name"], row["metric"], row["round"]): row for row in table[table["model"] == "sum"].to_dict("records")
    }
    for metric, number in itertools.product(METRICS, ROUNDS):
        before, *means = (part[part["round"] == number].groupby("dataset")[metric].mean() for part in (base, *seeds))
        mean = sum(means) / 3
        for name, members in {"salient": ["a"], "part": ["b", "c"], "all": ["a", "b", "c"], "b": ["b"]}.items():
            row = found[name, metric, number]
            assert row["mean"] == pytest.approx(mean[members].mean())
            assert row["gain"] == pytest.approx((mean - before)[members].mean())
            assert row["low"] < row["mean"] < row["high"]
            assert row["masks"] == sum(SETS[member][1] for member in members)


def tables(values: Values, *, images: list[str], sets: int = 1) -> list[pd.DataFrame]:
    """As `spread` gives them, a table a column of `[masks, seeds]`, the same in every set."""
    names = [f"set{number}" for number in range(sets)]
    index = pd.MultiIndex.from_tuples(
        [(name, "part", image, f"{image}#{n}") for name in names for n, image in enumerate(images)],
        names=["dataset", "task", "image_id", "mask_id"],
    )
    return [pd.DataFrame(np.tile(column, sets)[:, None], index=index, columns=COLUMNS) for column in values.T]


def interval(found: list[pd.DataFrame]) -> tuple[float, float, float]:
    table = averages(found, resamples=2000, seed=0)
    (row,) = table[table["scope"] == "overall"].to_dict("records")
    return row["mean"], row["low"], row["high"]


def test_the_interval_is_that_of_seeds_and_of_images() -> None:
    images = [f"{n // 2}" for n in range(200)]
    dice = np.random.default_rng(5)
    of_seeds = np.tile(dice.normal(size=(1, 20)), (200, 1))  # every mask alike: only seeds vary
    of_images = np.tile(dice.normal(size=(100, 1)).repeat(2, axis=0), (1, 4))  # every seed alike
    t_of_20, error = 2.093, of_seeds[0].std(ddof=1) / 20**0.5
    for values, half in ((of_seeds, t_of_20 * error), (of_images, 1.96 * of_images[::2, 0].std() / 10)):
        mean, low, high = interval(tables(values, images=images))
        assert mean == pytest.approx(values.mean())
        assert high - low == pytest.approx(2 * half, rel=0.1)
    both = interval(tables(of_seeds, images=images, sets=2))
    assert both == pytest.approx(interval(tables(of_seeds, images=images)))  # the same seeds are drawn for all sets
    two = interval(tables(of_images, images=images, sets=2))  # sets are drawn apart
    assert two[2] - two[1] == pytest.approx(2 * 1.96 * of_images[::2, 0].std() / 10 / 2**0.5, rel=0.1)


def test_one_seed_is_the_model_itself() -> None:
    own, base = rows(seed=1), rows(seed=2)
    options = {"rounds": ROUNDS, "resamples": 50}
    alone, listed = (comparison_table({"base": base, "sum": part}, **options) for part in (own, [own]))
    pd.testing.assert_frame_equal(alone, listed)


def test_equal_models_gain_nothing_for_certain() -> None:
    base = rows(seed=1)
    table = comparison_table({"base": base, "same": [base, base]}, rounds=ROUNDS, resamples=50)
    assert (table.loc[table["model"] == "same", ["gain", "gain_low", "gain_high"]] == 0).all(axis=None)


@pytest.mark.slow
@pytest.mark.parametrize("of_seed", [0.0, 0.05])
def test_intervals_of_three_seeds_keep_their_promise(of_seed: float) -> None:
    """Of 95 % intervals about 5 % miss, whether chance is in the images alone or mostly in the seeds."""
    dice, images, misses, trials = np.random.default_rng(8), [str(n) for n in range(60)], 0, 120
    for _ in range(trials):
        chance = dice.normal(scale=0.1, size=(60, 1)) + dice.normal(scale=0.02, size=(60, 3))
        values = chance + dice.normal(scale=of_seed, size=(1, 3))
        table = averages(tables(values, images=images), resamples=200, seed=0)
        row = table[table["scope"] == "overall"].iloc[0]
        misses += not row["low"] <= 0 <= row["high"]
    assert misses / trials < 0.11  # 3 sd above 5 %; the plain bootstrap of seeds misses in a quarter of the second case


def test_seeds_of_other_masks_are_no_seeds() -> None:
    found = tables(np.zeros((6, 2)), images=list("aabbcc"))
    with pytest.raises(DataError, match="several seeds differ in their masks"):
        averages([found[0], found[1].iloc[1:]], resamples=5, seed=0)
