"""Lost rows of the tables beside the scores are found, mask by mask and model by model."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sum.data.evaluation_beside import ASKED_OF_ALL, beside_table
from sum.data.score_tables import EVERYTHING_SCHEMA, FIDELITY, FIDELITY_SCHEMA, GENERATED, write_table

MODELS = ("base", "small")
PLACE = {"dataset": "t", "task": "part"}
MASKS = pd.DataFrame(
    {"mask_id": ["a#0", "a#1", "b#0", "c#0"], "image_id": list("aabc"), "split": ["test", "test", "test", "train"]}
).set_index("mask_id")


def write(folder: Path, model: str, *, lost: set[tuple[str, str]] = frozenset(), uncounted: str = "") -> None:  # type: ignore[assignment]
    """What evaluate leaves about three test masks, without some of it."""
    (folder / model).mkdir(parents=True, exist_ok=True)
    checks = [
        {"model": model, **PLACE, "image_id": mask_id[0], "mask_id": mask_id, "check": check, "passed": False}
        for mask_id in ("a#0", "a#1", "b#0")
        for check in (*ASKED_OF_ALL, "negative")
        if (mask_id, check) not in lost
    ]
    counts = [{"model": model, **PLACE, "image_id": name, "generated": 0} for name in "ab" if name != uncounted]
    write_table(folder / model / FIDELITY, checks, FIDELITY_SCHEMA)
    write_table(folder / model / GENERATED, counts, EVERYTHING_SCHEMA)


def found(folder: Path) -> dict[str, dict[str, str]]:
    """Column -> mask -> what is said of it."""
    table = beside_table(folder, MASKS, models=MODELS).set_index("mask_id")
    assert list(table.index) == ["a#0", "a#1", "b#0"]
    return {column: table[column].dropna().to_dict() for column in table}


def test_nothing_is_said_of_whole_tables_and_of_none(tmp_path: Path) -> None:
    assert not any(found(tmp_path).values())
    for model in MODELS:
        write(tmp_path, model)
    assert not any(found(tmp_path).values())


@pytest.mark.parametrize("check", [*ASKED_OF_ALL, "negative"])
def test_a_check_that_one_model_lacks(tmp_path: Path, check: str) -> None:
    write(tmp_path, "base")
    write(tmp_path, "small", lost={("a#1", check)})
    said = found(tmp_path)
    wanted = {check: {"a#1": "small"}} if check != "negative" else {}  # that one hangs on the answers
    assert {column: rows for column, rows in said.items() if rows} == wanted


def test_an_image_that_is_not_counted_even_if_no_model_counts_it(tmp_path: Path) -> None:
    write(tmp_path, "base", uncounted="a")
    write(tmp_path, "small")
    assert found(tmp_path)["counted"] == {"a#0": "base", "a#1": "base"}
    write(tmp_path, "small", uncounted="a")
    assert found(tmp_path)["counted"] == {"a#0": "base, small", "a#1": "base, small"}
