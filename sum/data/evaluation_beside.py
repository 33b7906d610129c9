"""What fidelity.parquet and everything.parquet must fulfil: all models were asked the same about the same masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sum.data.rules import Rule, null
from sum.data.score_tables import EVERYTHING_SCHEMA, FIDELITY, FIDELITY_SCHEMA, GENERATED, read_table

ASKED_OF_ALL = ("background", "swap")  # checks that hang on the masks alone; `negative` hangs on the answer, too
READER = "check_evaluation"


def beside_table(folder: Path, masks: pd.DataFrame, *, models: Sequence[str]) -> pd.DataFrame:
    """A row a test mask: which models lack a check, or the count of its image, that another model has, else null.

    masks: all of the manifest by id, with `split` and `image_id`; a count is also lacking when every model that has
    the file lacks it. Errors as `read_table`.
    """
    tests = masks[masks["split"] == "test"]
    found = {"mask_id": list(tests.index)}
    checked = {model: _checked(folder / model) for model in models}
    for check in ASKED_OF_ALL:
        asked = {model: table.get(check, set()) for model, table in checked.items()}
        every = set[str]().union(*asked.values())
        found[check] = [
            ", ".join(model for model in models if mask_id in every and mask_id not in asked[model]) or None
            for mask_id in tests.index
        ]
    counted = {model: images for model in models if (images := _counted(folder / model)) is not None}
    found["counted"] = [
        ", ".join(model for model, images in counted.items() if image_id not in images) or None
        for image_id in tests["image_id"]
    ]
    return pd.DataFrame(found, dtype="object")


def beside_rules() -> list[Rule]:
    """Of that table."""
    return [
        *(null(f"check {check} was asked of the same masks in every model", check) for check in ASKED_OF_ALL),
        null("generated masks are counted in every test image", "counted"),
    ]


def _checked(folder: Path) -> dict[str, set[str]]:
    """Check -> the masks that it was asked of; {} without the file."""
    if not (folder / FIDELITY).is_file():
        return {}
    table = read_table(folder / FIDELITY, FIDELITY_SCHEMA, reader=READER, maker=f"evaluate@{folder.name}")
    return {str(check): set(part["mask_id"]) for check, part in table.groupby("check")}


def _counted(folder: Path) -> set[str] | None:
    """The images whose generated masks were counted; None without the file."""
    if not (folder / GENERATED).is_file():
        return None
    table = read_table(folder / GENERATED, EVERYTHING_SCHEMA, reader=READER, maker=f"evaluate@{folder.name}")
    return set(table["image_id"])
