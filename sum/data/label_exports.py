"""The label store in formats of others: pseudo-labels as COCO JSON, uncertainty maps as PNGs of the photos' sizes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from sum.core.geometry import logits_to_image, resized_hw
from sum.data.labels import Codes, LabelStore, PseudoMask
from sum.data.pictures import to_png
from sum.data.records import IMAGES, ImageRecord, read_columns
from sum.data.rle import parse_counts
from sum.errors import DataError
from sum.progress import track

JSON = "labels.json"
MAPS = "uncertainty"
CATEGORY = {"id": 1, "name": "pseudo-label"}


@dataclass(slots=True)
class Exported:
    """How much was written."""

    images: int
    masks: int = 0
    maps: int = 0


def records_of(manifest: Path, image_ids: Collection[str], *, reader: str) -> list[ImageRecord]:
    """The manifest's rows of these images, in the order given; no other row is held.

    Raises MissingInput before stage ingest, DataError when an image is not in the manifest.
    """
    wanted, found = frozenset(image_ids), dict[str, ImageRecord]()
    for part in read_columns(manifest / IMAGES, [field.name for field in fields(ImageRecord)], reader=reader):
        ids = part.column(0).to_pylist()
        chosen = part.take([row for row, image_id in enumerate(ids) if image_id in wanted])
        rows = zip(*(column.to_pylist() for column in chosen.columns), strict=True)
        found |= {row[0]: ImageRecord(*row) for row in rows}
    for image_id in image_ids:
        if image_id not in found:
            raise DataError(
                f"{manifest}: labelled image '{image_id}' is not in the manifest. Run `dvc repro pseudo_label`."
            )
    return [found[image_id] for image_id in image_ids]


def enlarged(codes: Codes, *, hw: tuple[int, int], side: int) -> NDArray[np.float32]:
    """A stored map `[L, L]` of the model frame -> `[H, W]` at the original size hw, still 0..255; side: S."""
    values = torch.from_numpy(codes.astype(np.float32))[None, None]
    found = logits_to_image(values, resized=resized_hw(*hw, side), hw=hw, side=side)[0, 0]
    return np.asarray(found.numpy(), dtype=np.float32)


def export_labels(
    store: LabelStore, images: Sequence[ImageRecord], folder: Path, *, side: int, with_maps: bool
) -> Exported:
    """Write `folder`/labels.json and, with maps, `folder`/uncertainty/IMAGE_NUMBER/INDEX.png; one image in memory.

    side: S of the model that made the labels. An image's number is its place in `images`, from 1. Sizes are those of
    the upright photo. Raises DataError when a mask is not of its photo's size, or a score is not finite.
    """
    done = Exported(len(images))
    heads = (
        {"id": n, "file_name": image.path, "width": image.width, "height": image.height, "image_id": image.image_id}
        for n, image in enumerate(images, 1)
    )
    with (folder / JSON).open("w", encoding="utf-8") as file:
        file.write(f'{{"info": {{"description": "Pseudo-labels of SUM"}},\n"categories": {json.dumps([CATEGORY])},\n')
        _write_list(file, "images", heads)
        file.write(",\n")
        rows = _annotations(store, images, folder, side=side, with_maps=with_maps, done=done)
        _write_list(file, "annotations", rows)
        file.write("}\n")
    return done


def _write_list(file: TextIO, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """A key of the document and its list, an item a line, while the items are being made."""
    file.write(f'"{name}": [')
    for number, row in enumerate(rows):
        file.write(",\n" if number else "\n")
        file.write(json.dumps(row, allow_nan=False))
    file.write("]")


def _annotations(
    store: LabelStore, images: Sequence[ImageRecord], folder: Path, *, side: int, with_maps: bool, done: Exported
) -> Iterator[dict[str, Any]]:
    """The annotations of all images; writes a mask's map before it yields the mask, and counts in `done`."""
    for number, image in enumerate(track(images, title="export-labels", unit="image"), 1):
        hw = (image.height, image.width)
        masks = store.masks(image.image_id)
        has_map = store.has_map(image.image_id).tolist() if with_maps else [False] * len(masks)
        maps = store.uncertainty(image.image_id) if any(has_map) else None
        for mask, has in zip(masks, has_map, strict=True):
            done.masks += 1
            row = _annotation(mask, number=done.masks, image=number, hw=hw)
            if has and maps is not None:
                done.maps += 1
                row["uncertainty"] = f"{MAPS}/{number:06d}/{mask.index}.png"
                path = folder / row["uncertainty"]
                path.parent.mkdir(parents=True, exist_ok=True)
                plane = enlarged(maps[mask.index], hw=hw, side=side)
                path.write_bytes(to_png(np.asarray(plane.round().clip(0, 255), dtype=np.uint8)))
            yield row


def _annotation(mask: PseudoMask, *, number: int, image: int, hw: tuple[int, int]) -> dict[str, Any]:
    where = f"pseudo-label {mask.index} of image '{mask.image_id}'"
    pixels = int(parse_counts(mask.rle).sum())
    if pixels != hw[0] * hw[1]:
        raise DataError(
            f"{where} covers {pixels} pixels, the manifest's photo has {hw[0]} x {hw[1]}. Run `dvc repro pseudo_label`."
        )
    if not np.isfinite((mask.predicted_iou, mask.stability, *mask.point)).all():
        raise DataError(f"{where} has a score or point that is not finite. Run `dvc repro pseudo_label`.")
    x0, y0, x1, y1 = mask.box
    return {
        "id": number,
        "image_id": image,
        "category_id": CATEGORY["id"],
        "segmentation": {"size": list(hw), "counts": mask.rle},
        "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1],
        "area": mask.area,
        "iscrowd": 0,
        "score": mask.predicted_iou,
        "stability": mask.stability,
        "point": list(mask.point),
    }
