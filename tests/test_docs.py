"""docs/datasets.md says what the code and examples/paper.yaml say, docs/evaluation.md what evaluation does."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from sum.core.first_prompts import EDGE, FIRST_PROMPTS
from sum.core.gate import CHECK, EVERYTHING, GAIN, PROMPTS, YIELD, Change
from sum.data.score_tables import EVERYTHING_SCHEMA, FIDELITY_SCHEMA, MAP_SCHEMA, PREDICTION_SCHEMA, ROW_SCHEMA
from sum.data.scores import LEVELS
from sum.data_settings import KEYS, DatasetConfig
from sum.models.interact import OUTPUTS
from sum.settings import EvaluateConfig, RegisterConfig

PROJECT = Path(__file__).parents[1]
TEXT = (PROJECT / "docs" / "datasets.md").read_text()
EVALUATION = (PROJECT / "docs" / "evaluation.md").read_text()
ENTRIES = TypeAdapter(dict[str, DatasetConfig])


def rows(first: str, text: str = TEXT) -> list[list[str]]:
    """The cells of the table whose head begins with `first`."""
    lines = text[text.index(f"| {first} |") :].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_kind_is_explained_with_the_keys_it_reads() -> None:
    table = {kind.strip("`"): re.findall("`([a-z_]+)`", keys) for kind, _, keys in rows("kind")}
    assert table.keys() == KEYS.keys()
    for kind, keys in table.items():
        assert set(keys) == set(KEYS[kind]), kind


def test_the_examples_load_and_there_is_one_of_each_kind() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    entries = ENTRIES.validate_python(yaml.safe_load(block)["datasets"])
    assert {entry.kind for entry in entries.values()} == KEYS.keys()


def test_the_table_of_sets_agrees_with_the_entries() -> None:
    table = {name: row for row in rows("#") for name in re.findall("`([a-z0-9_]+)`", row[1])}
    assert {row[0] for row in table.values()} == {str(number) for number in range(1, 32)}
    entries = ENTRIES.validate_python(yaml.safe_load((PROJECT / "examples/paper.yaml").read_text())["datasets"])
    assert not entries.keys() - table.keys()
    for name, entry in entries.items():
        _, _, kind, task, images, masks, *_ = table[name]
        if name.startswith("internal_"):
            continue
        assert kind == entry.kind, name
        assert task == (entry.task if entry.split != "unlabelled" else "-"), name
        for stated, expected in ((images, entry.expect.images), (masks, entry.expect.masks)):
            number = re.match(r"[\d,]+", stated)
            found = int(number[0].replace(",", "")) if number else None  # `SAM: 293` is SAM's sample, not ours
            assert found == expected, name


def test_the_table_of_sets_names_the_licences_of_the_entries() -> None:
    """A remark may follow in brackets; `CC BY 4.0` is `CC-BY-4.0`."""
    table = {name: row[6] for row in rows("#") for name in re.findall("`([a-z0-9_]+)`", row[1])}
    entries = ENTRIES.validate_python(yaml.safe_load((PROJECT / "examples/paper.yaml").read_text())["datasets"])
    for name, entry in entries.items():
        stated = table[name].partition(" (")[0]
        wanted = "private" if name.startswith("internal_") else entry.licence
        assert stated.replace("-", " ") == wanted.replace("-", " "), name


def names_in(first: str) -> list[str]:
    """What stands in backquotes in the first column of a table of docs/evaluation.md."""
    return [name for row in rows(first, EVALUATION) for name in re.findall("`([^`]+)`", row[0])]


def test_evaluation_explains_every_prompt_output_and_column() -> None:
    assert names_in("first prompt") == list(FIRST_PROMPTS)
    assert f"within {EDGE} px" in EVALUATION
    assert names_in("output") == list(OUTPUTS)
    assert names_in("column of `rows.parquet`") == ROW_SCHEMA.names
    assert names_in("key of `register`") == [part.name for part in fields(RegisterConfig)]
    assert names_in("column of `table`") == [*(part.name for part in fields(Change)), "limit", "ok"]
    assert names_in("`family`") == [GAIN, *PROMPTS, EVERYTHING, CHECK, YIELD]
    for file, schema in (
        ("predictions", PREDICTION_SCHEMA),
        ("uncertainty", MAP_SCHEMA),
        ("fidelity", FIDELITY_SCHEMA),
        ("everything", EVERYTHING_SCHEMA),
    ):
        told = EVALUATION.partition(f"`{file}.parquet` has ")[2].partition(";")[0]
        assert set(schema.names) <= set(re.findall("`([a-z_]+)`", told))
    assert [row[0] for row in rows("figure", EVALUATION)[2:]] == [
        f"{name}@{', '.join(map(str, LEVELS))}" for name in ("NoC", "NoF")
    ]


def test_evaluation_has_every_key_with_its_default() -> None:
    table = {row[0].strip("`"): yaml.safe_load(row[1]) for row in rows("key", EVALUATION)}
    assert table == {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(EvaluateConfig)
    }


def test_evaluation_names_the_files_that_the_stage_writes() -> None:
    from sum.data.summaries import CURVES, PLAIN, SUMMARY
    from sum.stages.evaluate import OUT, TABLES, TIMES, TIMING

    written = {f"{OUT}/MODEL/{name}" for name in (*TABLES.keys() - {TIMES}, SUMMARY, PLAIN, CURVES, "protocol.json")}
    assert set(names_in("file")) == written | {f"{TIMING}/MODEL.json"}
