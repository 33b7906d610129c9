"""The manifest as tables to be checked: columns that a rule can look at one row at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields

import numpy as np
import pandas as pd

from sum.data.records import ImageRecord, Manifest, MaskRecord


def image_table(manifest: Manifest) -> pd.DataFrame:
    """A row an image; `same_as` and `in_test` name another file of the same content, or are null.

    same_as: an earlier image of the same data set. in_test: for a train or unlabelled image, an image of a test set.
    """
    table = _frame(manifest.images, ImageRecord)
    name = table["image_id"] + " (" + table["path"] + ")"
    first = name.groupby([table["dataset"], table["sha256"]]).transform("first")
    table["same_as"] = first.where(first != name, None)
    is_test = table["split"] == "test"
    tests = name[is_test].groupby(table["sha256"][is_test]).first()
    table["in_test"] = table["sha256"].map(tests).where(~is_test, None)
    return table


def mask_table(manifest: Manifest) -> pd.DataFrame:
    """A row a mask, without its pixels; with its image's `height`, `width`, `path` (null without one), `area_share`."""
    table = _frame(manifest.masks, MaskRecord)
    images = _frame(manifest.images, ImageRecord).drop_duplicates("image_id").set_index("image_id")
    table = table.join(images[["path", "height", "width"]], on="image_id")
    table["area_share"] = table["area"] / (table["height"] * table["width"])
    return table


def dataset_table(manifest: Manifest, splits: Mapping[str, str]) -> pd.DataFrame:
    """A row a data set of `splits` (name -> split): `images`, `masks`; `human_masks` is null for an unlabelled set."""
    images, masks = (
        _frame(rows, kind)["dataset"].value_counts()
        for rows, kind in ((manifest.images, ImageRecord), (manifest.masks, MaskRecord))
    )
    table = pd.DataFrame({"dataset": list(splits), "split": list(splits.values())}, dtype="str")
    for column, counts in (("images", images), ("masks", masks)):
        table[column] = table["dataset"].map(counts).fillna(0).astype(int)
    table["human_masks"] = table["masks"].astype(float).where(table["split"] != "unlabelled", np.nan)
    return table


def budget_table(datasets: pd.DataFrame, budgets: Mapping[str, Collection[str]]) -> pd.DataFrame:
    """A row a budget: the data set with the fewest `images` in the manifest.

    Not a row a data set: the report is an input of stages that a change of a budget does not concern.
    """
    images = dict(zip(datasets["dataset"], datasets["images"], strict=True))
    fewest = {budget: min((int(images.get(name, 0)), name) for name in names) for budget, names in budgets.items()}
    rows = [(budget, name, count) for budget, (count, name) in fewest.items()]
    return pd.DataFrame(rows, columns=["budget", "dataset", "images"])


def _frame(rows: Collection[ImageRecord] | Collection[MaskRecord], kind: type) -> pd.DataFrame:
    """All fields but the pixels, with the right column types even without a row."""
    columns = {}
    for field in fields(kind):
        if field.name != "rle":
            values = [getattr(row, field.name) for row in rows]
            columns[field.name] = pd.Series(values, dtype="int64" if field.type == "int" else "str")
    return pd.DataFrame(columns)
