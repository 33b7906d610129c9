"""Evaluation rows, and every reported number as a group-by over them.

Rows are those of sum.data.score_tables, always of one game. Means are over the masks of a data set, then over the
sets of a task, and over all sets (paper appendix B.3): a set counts as much as another, whatever its size. Values are
0..1; only printed tables are in per cent.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from sum.errors import DataError

METRICS: dict[str, str] = {"iou": "mIoU", "boundary_iou": "mBIoU"}
LEVELS = (80, 85, 90, 95)  # per cent of IoU that clicks are counted to
TASK_ORDER = ("salient", "entity", "part")
AVERAGES: dict[str, str] = {
    "averages": "over the masks of a data set, then over the data sets of a task, and over all data sets",
    "intervals": "95 %, bootstrap over the images of each data set; differences between models are paired mask by mask",
    "NoC@k": "rounds until the IoU first reaches k %, the last one included; a mask that never does counts as all "
    "rounds. A box is the first round. Averaged as above",
    "NoF@k": "how many masks never reach k %, added over data sets; in the bootstrap a set's share times its masks",
}
KEY = ["dataset", "task", "image_id", "mask_id"]
Column = tuple[str, int | str]
Seeds = pd.DataFrame | Sequence[pd.DataFrame]  # the rows of a model, or of one trained with several seeds


def spread(rows: pd.DataFrame, *, rounds: Sequence[int], output: str = "oracle") -> pd.DataFrame:
    """One row a mask (index dataset, task, image_id, mask_id), one column a (metric, round).

    Raises DataError when a mask lacks one of the rounds.
    """
    chosen = rows[(rows["output"] == output) & rows["round"].isin(list(rounds))]
    wide = chosen.pivot(index=KEY, columns="round", values=list(METRICS)).sort_index()
    wanted = pd.MultiIndex.from_product([list(METRICS), list(rounds)], names=["metric", "round"])
    wide = wide.reindex(columns=wanted)
    lacking = int(wide.isna().any(axis=1).sum())
    if lacking or wide.empty:
        have = sorted({int(number) for number in chosen["round"]})
        raise DataError(
            f"evaluation rows: {lacking or 'all'} masks lack a round of {list(rounds)} for output '{output}', "
            f"found rounds {have}. Run `dvc repro evaluate`."
        )
    return wide


def estimates(
    rows: Seeds, *, rounds: Sequence[int], output: str = "oracle", resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Mean and 95 % interval of every metric and round: overall, by task and by data set.

    Columns scope (overall, task or dataset), name, metric, round, masks, images, mean, low, high.
    """
    wide = [spread(part, rounds=rounds, output=output) for part in seeds_of(rows)]
    return averages(wide, resamples=resamples, seed=seed)


def efforts(rows: pd.DataFrame, *, output: str = "oracle") -> pd.DataFrame:
    """Each mask's rounds until its IoU first reaches each of LEVELS, and whether it fails: then all rounds count.

    Index as `spread`, columns (noc or nof, level in per cent), nof is 0 or 1. This is `sum.core.metrics.clicks_needed`
    of all masks at once. Raises DataError when a mask lacks a round.
    """
    rounds = range(1, int(rows["round"].max()) + 1)
    ious = spread(rows, rounds=rounds, output=output)["iou"]
    reached = ious.to_numpy()[:, :, None] >= np.array(LEVELS) / 100
    failed = ~reached.any(axis=1)
    needed = np.where(failed, len(rounds), reached.argmax(axis=1) + 1)
    columns = pd.MultiIndex.from_product([("noc", "nof"), LEVELS], names=["metric", "round"])
    return pd.DataFrame(np.hstack((needed, failed)).astype(np.float64), index=ious.index, columns=columns)


def effort_estimates(
    rows: pd.DataFrame, *, output: str = "oracle", resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Clicks needed and failures, with 95 % intervals: columns as `estimates`, where `round` is the level in per cent.

    Metric noc: the mean number of rounds; nof: `mean` is how many masks fail, added over the sets.
    """
    return averages(efforts(rows, output=output), resamples=resamples, seed=seed, counted=("nof",))


def fidelity_estimates(checks: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The share of masks that pass one check, columns as `estimates` with metric `passed` and round 1.

    checks: rows of FIDELITY_SCHEMA, all of one check.
    """
    return averages(one_column(checks, "passed"), resamples=resamples, seed=seed)


def one_column(
    table: pd.DataFrame, name: str, *, key: Sequence[str] = KEY, column: Column | None = None
) -> pd.DataFrame:
    """One figure a row as `spread` gives metrics: index `key`, one column, (name, 1) unless it is called otherwise."""
    wide = table.set_index(list(key))[[name]].astype(np.float64).sort_index()
    return wide.set_axis(pd.MultiIndex.from_tuples([column or (name, 1)], names=["metric", "round"]), axis=1)


def differences(
    first: Seeds,
    second: pd.DataFrame,
    *,
    rounds: Sequence[int],
    output: str = "oracle",
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """`estimates` of first - second, mask by mask: the interval is that of the difference.

    Raises DataError as `spread`, or when the two were not evaluated on the same masks.
    """
    other = spread(second, rounds=rounds, output=output)
    wide = [spread(part, rounds=rounds, output=output) for part in seeds_of(first)]
    for one in wide:
        if not one.index.equals(other.index):
            alone, lost = len(one.index.difference(other.index)), len(other.index.difference(one.index))
            raise DataError(
                f"two evaluations differ in their masks: {alone} only in the first, {lost} only in the second. "
                "Run `dvc repro evaluate`."
            )
    return averages([one - other for one in wide], resamples=resamples, seed=seed)


def seeds_of(rows: Seeds) -> Sequence[pd.DataFrame]:
    """One table a seed."""
    return [rows] if isinstance(rows, pd.DataFrame) else rows


def averages(
    wide: pd.DataFrame | Sequence[pd.DataFrame], *, resamples: int, seed: int, counted: Collection[str] = ()
) -> pd.DataFrame:
    """Means over masks within a set, over the sets of a task, over all sets, with intervals; columns as `estimates`.

    wide: as `spread` returns; several of the same masks are seeds of one model: means are over them, too, and for the
    interval they are drawn again as images are, the same seeds for all sets. Images are drawn again within their set,
    the same draws for all columns. counted: metrics of 0 or 1 a mask that are added up instead, over masks and sets: a
    drawn share stands for all masks of its set.
    """
    tables = list(seeds_of(wide))
    if not all(table.index.equals(tables[0].index) for table in tables):
        raise DataError("evaluations of several seeds differ in their masks. Run `dvc repro evaluate`.")
    wide, runs = tables[0], _runs(len(tables), resamples=resamples, seed=seed)
    draws = dict[str, NDArray[np.float64]]()
    for name in wide.index.unique("dataset"):
        rows = wide.index.get_level_values("dataset") == name
        of_runs = [_draws(table[rows], name=str(name), seed=seed, resamples=resamples) for table in tables]
        draws[str(name)] = np.mean(
            [means * times[:, None] for means, times in zip(of_runs, runs.T, strict=True)], axis=0
        )
    tasks = wide.index.to_frame(index=False).drop_duplicates("dataset").set_index("dataset")["task"]
    groups = [("overall", "all", list(draws))]
    groups += [("task", task, [name for name in draws if tasks[name] == task]) for task in task_names(tasks)]
    groups += [("dataset", name, [name]) for name in draws]
    of_set = wide.index.get_level_values("dataset")
    names = [wide.columns.get_level_values(level) for level in ("metric", "round")]
    adds, masks_of = names[0].isin(list(counted)), wide.groupby(level="dataset").size()
    found = []
    for scope, name, members in groups:
        means = np.mean([draws[member] for member in members], axis=0)
        if adds.any():
            means[:, adds] = np.add.reduce([masks_of[member] * draws[member][:, adds] for member in members])
        low, high = np.quantile(means[1:], (0.025, 0.975), axis=0)
        ids = wide.index[of_set.isin(members)]
        size = {"masks": len(ids), "images": ids.get_level_values("image_id").nunique()}
        found += [
            {
                "scope": scope,
                "name": name,
                "metric": metric,
                "round": number,
                **size,
                "mean": mean,
                "low": least,
                "high": most,
            }
            for metric, number, mean, least, most in zip(*names, means[0], low, high, strict=True)
        ]
    return pd.DataFrame(found)


def comparison_table(
    rows_by_model: Mapping[str, Seeds],
    *,
    rounds: Sequence[int],
    base: str = "base",
    output: str = "oracle",
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """`estimates` of every model beside what it gained on `base`, paired.

    Adds the columns model, gain, gain_low, gain_high (NaN for the base itself, which has one seed). Errors as
    `differences`.
    """
    (before,) = seeds_of(rows_by_model[base])
    found = []
    for model, rows in rows_by_model.items():
        frame = estimates(rows, rounds=rounds, output=output, resamples=resamples, seed=seed)
        gain = pd.DataFrame(np.nan, index=frame.index, columns=["mean", "low", "high"])
        if model != base:
            gain = differences(rows, before, rounds=rounds, output=output, resamples=resamples, seed=seed)
        found.append(frame.assign(model=model, gain=gain["mean"], gain_low=gain["low"], gain_high=gain["high"]))
    return pd.concat(found, ignore_index=True)


def task_names(tasks: Iterable[object]) -> list[str]:
    """The distinct tasks in the order of the paper's tables."""
    known = {str(task) for task in tasks}
    return [task for task in TASK_ORDER if task in known] + sorted(known - set(TASK_ORDER))


def _runs(count: int, *, resamples: int, seed: int) -> NDArray[np.float64]:
    """`[1 + resamples, count]`: how much each seed counts; 1 in the real mean, then by how often it was drawn.

    The bootstrap of few seeds varies too little: by (n - 1) / n of the variance, and it knows no Student's t. Both are
    made up for: with three seeds how often a seed is drawn differs from 1 by 2.7 times as much.
    """
    if count == 1:
        return np.ones((1 + resamples, 1))
    rng = np.random.default_rng((seed, zlib.crc32(b"seeds")))
    times = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    wider = np.sqrt(count / (count - 1)) * stdtrit(count - 1, 0.975) / ndtri(0.975)
    return np.concatenate((np.ones((1, count)), 1 + wider * (times - 1)))


def _draws(part: pd.DataFrame, *, name: str, seed: int, resamples: int) -> NDArray[np.float64]:
    """`[1 + resamples, columns]` means of one data set: the real one, then those of images drawn with replacement."""
    by_image = part.groupby(level="image_id")
    sums, counts = by_image.sum().to_numpy(dtype=np.float64), by_image.size().to_numpy()
    images = len(counts)
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))  # a set's interval does not hang on the other sets
    times = rng.multinomial(images, np.full(images, 1 / images), size=resamples)
    times = np.concatenate((np.ones((1, images), dtype=times.dtype), times))
    means: NDArray[np.float64] = times @ sums / (times @ counts)[:, None]
    return means
