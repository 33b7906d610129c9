"""The manifest as tables to be checked: columns that a rule can look at one row at a time.

The manifest is read by columns, run lengths a row group at a time: a million masks take about 300 MB.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from sum.data.duplicates import Copy
from sum.data.records import IMAGES, MASKS, ImageRecord, MaskRecord, read_columns
from sum.data.runs import run_facts

READER = "validate"
FEW = ("image_id", "dataset", "task", "split", "category", "source")  # texts of masks that come again and again
SIZES = ("path", "height", "width")
RUN_FACTS = {"pixels": "int64", "run_area": "int64", "alternate": "bool"}  # columns: see sum.data.runs.run_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFacts:
    """What params.yaml says of a data set, and how much of it stage ingest left out."""

    split: str
    images: int | None = None  # expected
    masks: int | None = None
    skipped: int = 0  # files and annotations that could not be used


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetFacts:
    """Names of the data sets of a budget, and the images a batch takes at most from either side."""

    human: Collection[str]
    unlabelled: Collection[str]
    human_wanted: int = 0
    unlabelled_wanted: int = 0


def skipped_counts(folder: Path) -> dict[str, int]:
    """Data set -> files and annotations that stage ingest could not use; folder: the manifest."""
    path = folder / "summary.json"
    found = json.loads(path.read_text(encoding="utf-8"))["datasets"] if path.is_file() else {}
    return {name: int(entry["skipped"]) for name, entry in found.items()}


def image_table(folder: Path) -> pd.DataFrame:
    """A row an image, sorted by id. `same_as` and `elsewhere` name another file of the same content, or are null.

    same_as: an earlier image of the same data set; elsewhere: of another data set, neither being a test set.
    """
    parts = read_columns(folder / IMAGES, [field.name for field in fields(ImageRecord)], reader=READER)
    table = _frame(parts, ImageRecord).sort_values("image_id", kind="stable", ignore_index=True)
    name = table["image_id"] + " (" + table["path"] + ")"
    rest = table["split"] != "test"
    first = name.groupby([table["dataset"], table["sha256"]], observed=True).transform("first")
    table["same_as"] = first.where(first != name, None)
    groups = table["sha256"][rest]
    first_set = table["dataset"][rest].astype("str").groupby(groups).transform("first")
    other = name[rest].groupby(groups).transform("first").where(first_set != table["dataset"][rest].astype("str"), None)
    table["elsewhere"] = other.reindex(table.index)
    return table


def mark_copies(images: pd.DataFrame, copies: Sequence[Copy]) -> pd.DataFrame:
    """`images` with `in_test` and `like_test`: the test photo that a train or unlabelled photo copies, or null."""
    for column, same in (("in_test", True), ("like_test", False)):
        found = {}
        for copy in copies:
            if copy.same_bytes == same and not copy.allowed:
                how = "" if same else f": {copy.bits} of 64 bits differ, likeness {copy.likeness:.3f}"
                found[copy.image_id] = f"{copy.other_id} ({copy.other_path}){how}"
        images[column] = images["image_id"].map(found).astype("str") if found else pd.Series(None, images.index, "str")
    return images


def mask_table(folder: Path, images: pd.DataFrame) -> pd.DataFrame:
    """A row a mask, without its pixels; with its image's `height`, `width`, `path` (null without one), `area_share`.

    pixels, run_area: of its run lengths, BAD where they are none; image_pixels: what they must cover; alternate: they
    are lengths of runs off and on in turn, so that the mask is binary and written in the one way there is.
    """
    names = [field.name for field in fields(MaskRecord)]
    table = _frame(_with_totals(read_columns(folder / MASKS, names, reader=READER)), MaskRecord)
    table = table.sort_values("mask_id", kind="stable", ignore_index=True)
    return with_image(table, images)


def with_image(table: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Rows of masks with the size and path of their image, by `image_id`."""
    known = images[["image_id", *SIZES]].drop_duplicates("image_id").set_index("image_id")
    place = known.index.get_indexer(pd.Index(table["image_id"].astype("str")))
    for name in SIZES:
        table[name] = (
            known[name].take(np.maximum(place, 0)).set_axis(table.index).where(place >= 0) if len(known) else None
        )
    table["image_pixels"] = table["height"] * table["width"]
    table["area_share"] = table["area"] / table["image_pixels"]
    return table


def dataset_table(images: pd.DataFrame, masks: pd.DataFrame, sets: Mapping[str, SetFacts]) -> pd.DataFrame:
    """A row a data set of `sets`: `images`, `masks`, `skipped`, and what was expected.

    human_masks is null for an unlabelled set, expected_images and expected_masks where nothing is expected.
    """
    table = pd.DataFrame({"dataset": list(sets), "split": [facts.split for facts in sets.values()]}, dtype="str")
    for column, rows in (("images", images), ("masks", masks)):
        counts = rows["dataset"].astype("str").value_counts()
        table[column] = table["dataset"].map(counts).fillna(0).astype(int)
        expected = [getattr(facts, column) for facts in sets.values()]
        table[f"expected_{column}"] = pd.Series(expected, dtype="float64")
    table["human_masks"] = table["masks"].astype(float).where(table["split"] != "unlabelled", np.nan)
    table["skipped"] = pd.Series([facts.skipped for facts in sets.values()], dtype="int64")
    return table


def budget_table(datasets: pd.DataFrame, budgets: Mapping[str, BudgetFacts]) -> pd.DataFrame:
    """A row a budget: the data set with the fewest `images`, the images of either side and how many a batch wants.

    Not a row a data set: the report is an input of stages that a change of a budget does not concern.
    """
    images = {str(name): int(count) for name, count in zip(datasets["dataset"], datasets["images"], strict=True)}
    rows = []
    for budget, facts in budgets.items():
        fewest, name = min((images.get(name, 0), name) for name in (*facts.human, *facts.unlabelled))
        human, unlabelled = (sum(images.get(name, 0) for name in side) for side in (facts.human, facts.unlabelled))
        rows.append((budget, name, fewest, human, facts.human_wanted, unlabelled, facts.unlabelled_wanted))
    sides = ["human_images", "human_wanted", "unlabelled_images", "unlabelled_wanted"]
    return pd.DataFrame(rows, columns=["budget", "dataset", "images", *sides])


def _with_totals(parts: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The run lengths replaced by what they sum to."""
    for part in parts:
        for name in FEW:
            place = part.schema.get_field_index(name)
            part = part.set_column(place, name, part.column(name).dictionary_encode())
        facts = run_facts([code or "" for code in part.column("rle").to_pylist()])
        part = part.select([name for name in part.schema.names if name != "rle"])
        for name, column in zip(RUN_FACTS, facts, strict=True):
            part = part.append_column(name, pa.array(column))
        yield part


def _frame(parts: Iterator[pa.RecordBatch], kind: type) -> pd.DataFrame:
    """All columns with the right types, even without a row."""
    batches = list(parts)
    if not batches:
        text = {field.name: "int64" if field.type == "int" else "str" for field in fields(kind) if field.name != "rle"}
        extra: dict[str, Any] = RUN_FACTS if kind is MaskRecord else {}
        return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in (text | extra).items()})
    table = pa.Table.from_batches(batches).unify_dictionaries()
    frame: pd.DataFrame = table.to_pandas(self_destruct=True, split_blocks=True)
    return frame
