"""The report's pictures from what evaluations keep: which masks, every model's answer, the clicks up to then."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from sum.data.pictures import Click
from sum.data.records import Manifest
from sum.data.score_tables import MAP_SCHEMA, MAPS, PREDICTION_SCHEMA, PREDICTIONS, read_table
from sum.data.showcase import Answers, Example, choose_masks, draw

OUTPUT = "oracle"


def examples(
    folders: Mapping[str, Path],
    rows: Mapping[str, pd.DataFrame],
    iou: pd.DataFrame,
    *,
    manifest: Manifest,
    shown: int,
    count: int,
    side: int,
) -> list[Example]:
    """About `count` masks a task that changed most or were drawn by lot, after round `shown`.

    folders: model -> its evaluation, the base first; rows: of the main game; iou: as `iou_by_model`; side: px of the
    models' frame. Raises MissingInput and DataError.
    """
    chosen = choose_masks(iou, count=count)
    wanted = {mask_id for _, _, mask_id in chosen}
    answers = Answers(
        iou,
        rle={model: _predictions(folder, wanted, number=shown) for model, folder in folders.items()},
        clicks={model: _clicks(table, wanted, number=shown) for model, table in rows.items()},
        boxed=next(iter(rows.values()))["prompt"].iloc[0] == "box",
        doubt=_doubts(next(iter(folders.values()))),
        side=side,
    )
    return draw(
        chosen,
        answers,
        images={image.image_id: image for image in manifest.images},
        masks={mask.mask_id: mask for mask in manifest.masks if mask.mask_id in wanted},
    )


def _predictions(folder: Path, wanted: Collection[str], *, number: int) -> dict[str, str]:
    found = read_table(folder / PREDICTIONS, PREDICTION_SCHEMA, reader="report", maker=f"evaluate@{folder.name}")
    found = found[(found["round"] == number) & (found["output"] == OUTPUT) & found["mask_id"].isin(list(wanted))]
    return dict(zip(found["mask_id"], found["rle"], strict=True))


def _clicks(rows: pd.DataFrame, wanted: Collection[str], *, number: int) -> dict[str, list[Click]]:
    """The clicks of rounds 1 .. number by mask; none for a box, or where nothing was wrong any more."""
    chosen = rows[(rows["output"] == OUTPUT) & (rows["round"] <= number) & rows["mask_id"].isin(list(wanted))]
    found: dict[str, list[Click]] = {mask_id: [] for mask_id in wanted}
    for row in chosen.sort_values("round").to_dict("records"):
        if not pd.isna(row["click_x"]):
            found[row["mask_id"]].append((int(row["click_x"]), int(row["click_y"]), int(row["click_label"])))
    return found


def _doubts(folder: Path) -> dict[str, bytes]:
    path = folder / MAPS
    if not path.is_file():
        return {}
    found = read_table(path, MAP_SCHEMA, reader="report", maker=f"evaluate@{folder.name}")
    return dict(zip(found["mask_id"], found["png"], strict=True))
