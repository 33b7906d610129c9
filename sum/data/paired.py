"""Two models on the same masks: every kind of prompt and check, base beside tuned, with interval and p-value.

A row of the table is a kind at a scope: overall, a task or a data set. `gain` is tuned - base of the same masks. Its
interval is the bootstrap over images of `sum.data.scores`. `p` is two-sided, of a sign-flip test: were the models
equal, an image's differences could as well have had the other sign, so images (all masks of one together) get random
signs, and p is the share of them, the real one counted in, that gives a gain at least as large either way. With as few
images as a small test set has, that keeps its promise, and a p from bootstrap percentiles does not: it is too small.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sum.core.first_prompts import prompt_words
from sum.core.gate import CHECK, GAIN, YIELD
from sum.data.score_tables import (
    EVERYTHING,
    EVERYTHING_SCHEMA,
    FIDELITY,
    FIDELITY_SCHEMA,
    GENERATED,
    of_game,
    read_rows,
    read_table,
)
from sum.data.scores import KEY, averages, one_column
from sum.errors import DataError

COLUMNS = ("family", "kind", "scope", "name", "base", "tuned", "gain", "low", "high", "p", "masks", "images")
OUTPUT = "oracle"
NOISE = 1e-12  # sums of the same numbers in another order differ by less


@dataclass(frozen=True, slots=True)
class Tables:
    """What evaluate wrote about one model, without what it was not asked for."""

    rows: pd.DataFrame  # ROW_SCHEMA
    fidelity: pd.DataFrame | None = None  # FIDELITY_SCHEMA
    generated: pd.DataFrame | None = None  # EVERYTHING_SCHEMA


def read_tables(folder: Path, protocol: Mapping[str, Any], *, reader: str) -> Tables:
    """The tables in data/evaluation/MODEL that its protocol speaks of. Errors as `read_table`."""
    maker = f"evaluate@{folder.name}"
    checks = generated = None
    if protocol.get("fidelity"):
        checks = read_table(folder / FIDELITY, FIDELITY_SCHEMA, reader=reader, maker=maker)
    if protocol.get("everything"):
        generated = read_table(folder / GENERATED, EVERYTHING_SCHEMA, reader=reader, maker=maker)
    return Tables(read_rows(folder, reader=reader), checks, generated)


def paired(
    base: Tables,
    tuned: Tables,
    *,
    prompts: Sequence[str],
    rounds: Sequence[int],
    metric: str = "iou",
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """The table: a row a kind, scope and name, with COLUMNS.

    prompts: the first prompts played, the main one first. rounds: `gain` is their mean in the main game; every game has
    its first round and the mean of the later ones of `rounds`. metric: of all these. Values are 0..1, those of
    automatic generation's yield are masks an image. Raises DataError when masks or images differ, or a round is absent.
    """
    pairs = [tuple(_answers(tables.rows, prompts=prompts, rounds=rounds, metric=metric) for tables in (base, tuned))]
    if base.fidelity is not None and tuned.fidelity is not None:
        one, other = _checks(base.fidelity), _checks(tuned.fidelity)
        for check in (check for check in one if check in other):
            first, second = one[check], other[check]
            if check == "negative":  # it wants a wrong pixel in the answer, and so hangs on the model
                asked = first.index.intersection(second.index)
                first, second = first.loc[asked], second.loc[asked]
            pairs.append((first, second))
    if base.generated is not None and tuned.generated is not None:
        pairs.append((_yields(base.generated), _yields(tuned.generated)))
    found = pd.concat([compare(*pair, resamples=resamples, seed=seed) for pair in pairs if len(pair[0])])
    return pd.concat([part for _, part in found.groupby(["family", "kind"], sort=False)], ignore_index=True)


def compare(base: pd.DataFrame, tuned: pd.DataFrame, *, resamples: int, seed: int) -> pd.DataFrame:
    """Rows of COLUMNS for two tables of a row a mask (index as `spread`) and a column a (family, kind).

    Averages are over the masks of a set, over the sets of a task and over all sets. Raises DataError when the two are
    not of the same masks, or were not asked the same.
    """
    odd = base.columns.symmetric_difference(tuned.columns)
    if len(odd):
        kinds = ", ".join(odd.get_level_values(1))
        raise DataError(f"two evaluations differ in what was asked ({kinds}). Run `dvc repro evaluate`.")
    if not base.index.equals(tuned.index):
        alone, lost = len(base.index.difference(tuned.index)), len(tuned.index.difference(base.index))
        raise DataError(
            f"two evaluations hold different masks: {alone} only in the first, {lost} only in the second. "
            "Run `dvc repro evaluate`."
        )
    gains = averages(tuned - base, resamples=resamples, seed=seed)
    means = [averages(wide, resamples=1, seed=seed)["mean"] for wide in (base, tuned)]
    chance = sign_flips(tuned - base, flips=resamples, seed=seed)
    found = gains.rename(columns={"metric": "family", "round": "kind", "mean": "gain"})
    found = found.assign(base=means[0], tuned=means[1], p=[chance[key] for key in _places(found)])
    return found[list(COLUMNS)]


def sign_flips(change: pd.DataFrame, *, flips: int, seed: int) -> dict[tuple[str, str, str, str], float]:
    """p of a mean change of zero: (scope, name, family, kind) -> share of sign flips at least as far from zero.

    change: index as `spread`, columns (family, kind). All differences of an image get the same sign, in all columns.
    Never 0: the real signs are one of the flips + 1.
    """
    drawn = {
        str(name): _flipped(part, name=str(name), flips=flips, seed=seed)
        for name, part in change.groupby(level="dataset")
    }
    tasks = change.index.to_frame(index=False).drop_duplicates("dataset").set_index("dataset")["task"]
    groups = {("overall", "all"): list(drawn)}
    groups |= {("task", str(task)): [name for name in drawn if tasks[name] == task] for task in set(tasks)}
    groups |= {("dataset", name): [name] for name in drawn}
    found: dict[tuple[str, str, str, str], float] = {}
    for place, members in groups.items():
        means = np.abs(np.mean([drawn[member] for member in members], axis=0))
        shares = (means >= means[0] - NOISE).mean(axis=0)
        found |= {(*place, *column): float(p) for column, p in zip(change.columns, shares, strict=True)}
    return found


def _flipped(part: pd.DataFrame, *, name: str, flips: int, seed: int) -> NDArray[np.float64]:
    """`[1 + flips, columns]` means of one data set: the real ones, then those with the images' signs drawn by lot."""
    sums = part.groupby(level="image_id").sum().to_numpy(dtype=np.float64)
    rng = np.random.default_rng((seed, zlib.crc32(name.encode()), 1))  # 0 or none: the bootstrap's
    signs = np.ones((1 + flips, len(sums)), dtype=np.int8)
    signs[1:] -= 2 * rng.integers(0, 2, size=(flips, len(sums)), dtype=np.int8)
    means: NDArray[np.float64] = signs.astype(np.float64) @ sums / len(part)
    return means


def _places(table: pd.DataFrame) -> Iterator[tuple[str, str, str, str]]:
    yield from table[["scope", "name", "family", "kind"]].itertuples(index=False, name=None)


def _answers(rows: pd.DataFrame, *, prompts: Sequence[str], rounds: Sequence[int], metric: str) -> pd.DataFrame:
    """One row a mask, one column a (family, kind) of answers to prompts."""
    found: dict[tuple[str, str], pd.Series] = {}
    wanted = sorted(set(rounds))
    for number, prompt in enumerate(prompts):
        game, later = of_game(rows, prompt=prompt), [turn for turn in wanted if turn > 1]
        if number == 0:
            found[GAIN, prompt_words(prompt, wanted)] = _mean(game, metric, wanted)
        found[prompt, prompt_words(prompt, [1])] = _mean(game, metric, [1])
        if later:
            found[prompt, prompt_words(prompt, later)] = _mean(game, metric, later)
    if (rows["prompt"] == EVERYTHING).any():
        found[EVERYTHING, EVERYTHING] = _mean(of_game(rows, prompt=EVERYTHING), metric, [1])
    wide = pd.DataFrame(found).rename_axis(columns=["metric", "round"])
    if wide.isna().any(axis=None):
        raise DataError("evaluation rows: a mask is not in every game. Run `dvc repro evaluate`.")
    return wide.sort_index()


def _mean(game: pd.DataFrame, metric: str, rounds: Sequence[int]) -> pd.Series:
    """A mask's mean over `rounds`. Raises DataError when one lacks a round."""
    wide = game[game["output"] == OUTPUT].pivot(index=KEY, columns="round", values=metric)
    absent = [number for number in rounds if number not in wide or wide[number].isna().any()]
    if absent:
        prompt = game["prompt"].iloc[0]
        raise DataError(
            f"evaluation rows: no rounds {absent} of every mask in the game '{prompt}'; params.yaml: register.rounds "
            "exceed evaluate.rounds, or `dvc repro evaluate` is due"
        )
    return wide[list(rounds)].mean(axis=1)


def _checks(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Check -> one row a mask that it was asked of, its one column 0 or 1."""
    parts = table.groupby("check", sort=True)
    return {str(check): one_column(part, "passed", column=(CHECK, str(check))) for check, part in parts}


def _yields(table: pd.DataFrame) -> pd.DataFrame:
    """One row an image (its mask_id is empty): how many masks automatic generation kept."""
    return one_column(table.assign(mask_id=""), "generated", column=(YIELD, "generated masks an image"))
