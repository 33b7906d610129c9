"""What evaluation tables must fulfil before a model is judged by them: two suites over the tables of several models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sum.data.checks import Suite, run_suites
from sum.data.evaluation_beside import beside_rules, beside_table
from sum.data.records import MASKS, read_columns
from sum.data.reports import Report
from sum.data.rules import Rule, between, equal, given, null, one_of
from sum.data.score_tables import EVERYTHING, UNSPECIFIED, Game, read_rows
from sum.data.scores import METRICS, TASK_ORDER
from sum.errors import DataError, MissingInput

READER = "check_evaluation"
ABOUT = ("image_id", "dataset", "task", "area")  # what a row repeats of its mask
IDS = ["model", "mask_id", "prompt", "task_prompt", "round", "output"]
OUTPUTS = {"oracle": True, "single": True, "confident": False}  # output -> played in every round, or in the first only
FINITE = (*METRICS, "predicted_iou")


def check_evaluation(
    manifest: Path, folder: Path, *, models: Sequence[str], rounds: int, games: Sequence[Game], docs: Path
) -> Report:
    """Check the tables folder/MODEL/rows.parquet against the manifest and each other; HTML pages go to `docs`.

    rounds: N, of the benchmark; games: what is played there. Raises MissingInput before the stages that
    make them, DataError of the manifest's files; a table that cannot be read is a failure of the checks.
    """
    masks = known_masks(manifest)
    reason, tables = "", dict[str, pd.DataFrame]()
    try:
        tables = {model: read_rows(folder / model, reader=READER) for model in models}
    except MissingInput:
        raise
    except DataError as error:
        reason = str(error)
    rows = row_table(tables, masks)
    suites = {
        "evaluation_rows": (rows, IDS, row_rules(rounds, prompts=[prompt for prompt, _ in games])),
        "evaluation_masks": (
            coverage_table(rows, masks, models=models, rounds=rounds, games=games),
            ["mask_id"],
            coverage_rules(),
        ),
        "evaluation_beside": (beside_table(folder, masks, models=models), ["mask_id"], beside_rules()),
    }
    return run_suites(
        (
            (name, Suite(table, keys, rules, {rule.text: reason for rule in rules} if reason else {}))
            for name, (table, keys, rules) in suites.items()
        ),
        docs=docs,
    )


def known_masks(manifest: Path) -> pd.DataFrame:
    """All masks of the manifest by id (the index): `split` and what a row of the evaluation repeats."""
    names = ["mask_id", "split", *ABOUT]
    parts = [part.to_pandas() for part in read_columns(manifest / MASKS, names, reader=READER)]
    table = pd.concat(parts) if parts else pd.DataFrame(columns=names)
    return table.drop_duplicates("mask_id").set_index("mask_id").astype("object")


def row_table(tables: dict[str, pd.DataFrame], masks: pd.DataFrame) -> pd.DataFrame:
    """All rows of all models, `model` being the folder's; `split` and `true_*` of the mask, null for an unknown one.

    said_model: what a row calls its model, where that is another, else null; lacking: names of figures that are no
    finite number, else null.
    """
    parts = [
        rows.assign(said_model=rows["model"].where(rows["model"] != name), model=name) for name, rows in tables.items()
    ]
    if not parts:
        columns = [*IDS, *ABOUT, *FINITE, "said_model"]
        parts = [pd.DataFrame(columns=columns)]
    table = pd.concat(parts, ignore_index=True)
    table["split"] = table["mask_id"].map(masks["split"])
    for name in ABOUT:
        table[f"true_{name}"] = table["mask_id"].map(masks[name])
    odd = (table["task_prompt"] != UNSPECIFIED) & (table["task_prompt"] != table["true_task"])
    table["odd_task_prompt"] = table["task_prompt"].where(odd)
    blank = ~np.isfinite(table[list(FINITE)].to_numpy(dtype=np.float64))
    table["lacking"] = [", ".join(np.array(FINITE)[row]) or None for row in blank]
    return table


def coverage_table(
    rows: pd.DataFrame, masks: pd.DataFrame, *, models: Sequence[str], rounds: int, games: Sequence[Game]
) -> pd.DataFrame:
    """A row a test mask or one that has been evaluated: what is wrong with its rounds, by output, or null.

    absent_in: models whose table lacks it while another has it.
    """
    tests = masks.index[masks["split"] == "test"]
    table = pd.DataFrame({"mask_id": sorted({*tests, *rows["mask_id"].dropna()})}, dtype="object")
    played = dict[tuple[str, str, str, bool, str], list[int]]()
    plain = (rows["task_prompt"] == UNSPECIFIED) & (rows["prompt"] != EVERYTHING)
    for *place, number in zip(
        *(rows[name] for name in ("mask_id", "model", "prompt")), plain, rows["output"], rows["round"], strict=True
    ):
        played.setdefault(tuple(place), []).append(number)
    for output in OUTPUTS:
        table[output] = [
            "; ".join(
                f"{model} has rounds {sorted(found)} of {prompt}, task prompt {UNSPECIFIED if unspecified else 'own'}"
                for model in models
                for prompt, unspecified in games
                if sorted(found := played.get((mask_id, model, prompt, unspecified, output), []))
                != _wanted(prompt, output, rounds=rounds)
            )
            or None
            for mask_id in table["mask_id"]
        ]
    have = rows.groupby("mask_id")["model"].unique().map(set).to_dict() if len(rows) else {}
    table["absent_in"] = [
        ", ".join(model for model in models if have.get(mask_id) and model not in have[mask_id]) or None
        for mask_id in table["mask_id"]
    ]
    return table.astype("object")


def _wanted(prompt: str, output: str, *, rounds: int) -> list[int]:
    """The rounds that a mask has of a game and output."""
    if prompt == EVERYTHING:
        return [1] if output == "oracle" else []
    return list(range(1, rounds + 1 if OUTPUTS[output] else 2))


def row_rules(rounds: int, *, prompts: Sequence[str]) -> list[Rule]:
    """Of the table with a row a model, mask, game, round and output."""
    ids = {"column_list": IDS, "ignore_row_if": "never"}
    return [
        Rule("ExpectCompoundColumnsToBeUnique", "no row twice", ids),
        null("rows are of their model", "said_model"),
        given("mask is in the manifest", "split"),
        one_of("mask is of split test", "split", ("test",)),
        *(equal(f"{name} is that of the manifest", name, f"true_{name}") for name in ABOUT),
        one_of("task is salient, entity or part", "task", TASK_ORDER),
        one_of("prompt was to be played", "prompt", tuple(dict.fromkeys(prompts))),
        null("task prompt is the mask's task or unspecified", "odd_task_prompt"),
        one_of("output is known", "output", tuple(OUTPUTS)),
        between(f"round is 1..{rounds}", "round", 1, rounds),
        null("figures are finite numbers", "lacking"),
        *(between(f"{metric} is 0..1", metric, 0, 1) for metric in METRICS),
    ]


def coverage_rules() -> list[Rule]:
    """Of the table with a row a mask."""
    rounds = {True: "every round exactly once", False: "the first round exactly once"}
    return [
        *(null(f"every test mask has {rounds[every]}, output {output}", output) for output, every in OUTPUTS.items()),
        null("every model has the same masks", "absent_in"),
    ]
