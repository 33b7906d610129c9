"""docs/datasets.md says what the code and examples/paper.yaml say."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from sum.data_settings import KEYS, DatasetConfig

PROJECT = Path(__file__).parents[1]
TEXT = (PROJECT / "docs" / "datasets.md").read_text()
ENTRIES = TypeAdapter(dict[str, DatasetConfig])


def rows(first: str) -> list[list[str]]:
    """The cells of the table whose head begins with `first`."""
    lines = TEXT[TEXT.index(f"| {first} |") :].partition("\n\n")[0].splitlines()[2:]
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
