"""Which masks the report shows, and their pictures: photo, truth, every model's answer, uncertainty."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sum.core.geometry import logits_to_image, resized_hw
from sum.data.frames import load_photo
from sum.data.pictures import Click, Image, Window, changed, clicked, compared, heat, prompted
from sum.data.records import ImageRecord, MaskRecord, decode_mask
from sum.data.scores import spread, task_names

KINDS: dict[str, str] = {
    "better": "Where it got better",
    "worse": "Where it got worse",
    "random": "Picked at random",
}


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture and what stands below it."""

    title: str
    detail: str
    picture: Image


@dataclass(frozen=True, slots=True)
class Example:
    """One mask: why it is shown, and its pictures from left to right."""

    task: str
    kind: str  # a name of KINDS
    mask_id: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """What is known of the masks after the round that is shown."""

    iou: pd.DataFrame  # index mask_id; a column a model, the base first; and `task`
    rle: Mapping[str, Mapping[str, str]]  # model -> mask_id -> prediction
    clicks: Mapping[str, Mapping[str, Sequence[Click]]]  # model -> mask_id -> all that it was given up to then
    boxed: bool  # whether the box was the first prompt
    doubt: Mapping[str, bytes]  # mask_id -> PNG [L, L] of the base's uncertainty, model frame
    side: int  # px of the model frame


def iou_by_model(rows_by_model: Mapping[str, pd.DataFrame], *, number: int) -> pd.DataFrame:
    """IoU of the oracle output after round `number`: index mask_id, a column a model, and `task`."""
    wide = {model: spread(rows, rounds=[number])["iou", number] for model, rows in rows_by_model.items()}
    return pd.DataFrame(wide).reset_index(["dataset", "task", "image_id"])[["task", *rows_by_model]]


def choose_masks(iou: pd.DataFrame, *, count: int) -> list[tuple[str, str, str]]:
    """About `count` masks a task: a third gained most, a third lost most, a third by lot, as (task, kind, mask_id).

    A mask's gain is its best among the tuned models, its loss the worst; nothing is shown twice, and no loss under the
    heading of gains. The lot is a hash of the mask's name: the same whatever the models do.
    """
    base, *tuned = [column for column in iou.columns if column != "task"]
    change = iou[tuned].sub(iou[base], axis=0)
    each = max(1, count // len(KINDS))
    found: list[tuple[str, str, str]] = []
    for task in task_names(iou["task"]):
        part = change[iou["task"] == task].sort_index()
        best, worst = part.max(axis=1), part.min(axis=1)
        lot = sorted(part.index, key=lambda name: hashlib.sha256(str(name).encode()).digest())
        wanted = {
            "better": list(best[best > 0].nlargest(each).index),
            "worse": list(worst[worst < 0].nsmallest(each).index),
        }
        shown = {name for names in wanted.values() for name in names}
        wanted["random"] = [name for name in lot if name not in shown][:each]
        wanted["worse"] = [name for name in wanted["worse"] if name not in wanted["better"]]
        found += [(task, kind, str(name)) for kind in KINDS for name in wanted[kind]]
    return found


def draw(
    chosen: Sequence[tuple[str, str, str]],
    answers: Answers,
    *,
    images: Mapping[str, ImageRecord],
    masks: Mapping[str, MaskRecord],
) -> list[Example]:
    """The pictures of the chosen masks; images by image_id, masks by mask_id."""
    return [
        Example(task, kind, mask_id, _tiles(kind, masks[mask_id], images[masks[mask_id].image_id], answers))
        for task, kind, mask_id in chosen
    ]


def _tiles(kind: str, mask: MaskRecord, record: ImageRecord, answers: Answers) -> tuple[Tile, ...]:
    hw = (record.height, record.width)
    image = load_photo(record)
    truth = decode_mask(mask.rle, height=record.height, width=record.width)
    box = (mask.x0, mask.y0, mask.x1, mask.y1)
    window = Window.around(box, hw=hw)
    models = [str(name) for name in answers.iou.columns if name != "task"]
    reached = {model: float(answers.iou[model][mask.mask_id]) for model in models}
    base = models[0]
    first = next(iter(answers.clicks[base][mask.mask_id]), None)
    click = None if answers.boxed or first is None else first[:2]
    tiles = [
        Tile("photo", "with the click" if click else "with the box", prompted(window, image, click=click, box=box)),
        Tile("truth", mask.category or mask.task, compared(window, image, prediction=truth, truth=truth)),
    ]
    masks = {}
    for model, value in reached.items():
        rle = answers.rle[model].get(mask.mask_id)
        if rle is not None:
            masks[model] = decode_mask(rle, height=record.height, width=record.width)
            change = f" ({100 * (value - reached[base]):+.1f})" if model != base else ""
            picture = compared(window, image, prediction=masks[model], truth=truth)
            clicks = answers.clicks[model].get(mask.mask_id, ())
            tiles.append(Tile(model, f"IoU {100 * value:.1f}{change}", clicked(window, picture, clicks)))
    other = _most_changed(kind, reached)
    if other != base and base in masks and other in masks:
        picture = changed(window, image, before=masks[base], after=masks[other], truth=truth)
        tiles.append(Tile("difference", f"{base} to {other}", picture))
    code = answers.doubt.get(mask.mask_id)
    if code is not None:
        values = _to_image(code, hw=hw, side=answers.side)
        tiles.append(Tile("uncertainty", "of the base's answer", heat(window, image, values=values)))
    return tuple(tiles)


def _most_changed(kind: str, reached: Mapping[str, float]) -> str:
    """The model for which a mask is shown: that gained or lost most; of a mask drawn by lot that changed most."""
    base, *tuned = reached
    sign = {"better": 1, "worse": -1}.get(kind)
    change = {model: reached[model] - reached[base] for model in tuned}
    return max(tuned, key=lambda model: sign * change[model] if sign else abs(change[model]), default=base)


def _to_image(png: bytes, *, hw: tuple[int, int], side: int) -> NDArray[np.float32]:
    """Stored codes `[L, L]` to values 0..1 at the original size."""
    codes = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    values = torch.from_numpy(np.asarray(codes, dtype=np.float32) / 255)[None, None]
    found: NDArray[np.float32] = logits_to_image(values, resized=resized_hw(*hw, side), hw=hw, side=side)[0, 0].numpy()
    return found
