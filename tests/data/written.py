"""Data sets written to disk by Pillow, pycocotools and json alone, and what a layout reads from them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from sum.data.layouts import LAYOUTS
from sum.data.records import MaskRecord, decode_mask
from sum.data.sources import Item, Problem, Sample, Source

HEIGHT, WIDTH = 24, 32
IDS = itertools.count(1_000)
BOX = np.zeros((HEIGHT, WIDTH), bool)
BOX[4:9, 10:20] = True
NOISE = np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.4


def photo(path: Path, seed: int = 0, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def grey(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def source(root: Path, **options: Any) -> Source:
    return Source(name="set", root=str(root), **{"split": "train", "task": "entity", "licence": "CC0-1.0"} | options)


def read(kind: str, of: Source) -> list[Item]:
    return [item for job in LAYOUTS[kind](of) for item in job.read()]


def samples(items: list[Item]) -> list[Sample]:
    return [item for item in items if isinstance(item, Sample)]


def problem(items: list[Item]) -> Problem:
    found = [item for item in items if isinstance(item, Problem)]
    assert len(found) == 1, items
    return found[0]


def pixels(mask: MaskRecord) -> np.ndarray:
    return decode_mask(mask.rle, height=HEIGHT, width=WIDTH)


def entry(index: int, name: str, **more: Any) -> dict[str, Any]:
    return {"id": index, "file_name": name, "height": HEIGHT, "width": WIDTH} | more


def annotation(image: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    if isinstance(segmentation, np.ndarray):
        code = rle.encode(np.asfortranarray(segmentation, dtype=np.uint8))
        segmentation = {"size": code["size"], "counts": code["counts"].decode()}
    return {"id": next(IDS), "image_id": image, "category_id": 3, "iscrowd": 0, "segmentation": segmentation} | more


def write_json(root: Path, **tree: Any) -> None:
    root.mkdir(parents=True, exist_ok=True)
    tree = {"categories": [{"id": 3, "name": "thing"}]} | tree
    (root / "annotations.json").write_text(json.dumps(tree))


def write_raster(root: Path) -> None:
    for index, name in enumerate(("b.v2", "a", "deep/c")):
        photo(root / "images" / f"{name}.jpg", index)
        grey(root / "masks" / f"{name}.png", BOX * 255)


def write_images(root: Path) -> None:
    for index, name in enumerate(("b.v2", "a", "deep/c")):
        photo(root / "images" / f"{name}.jpg", index)


def write_coco(root: Path) -> None:
    write_images(root)
    rows = [annotation(index, BOX) for index in range(3)]
    names = ("b.v2.jpg", "a.jpg", "deep/c.jpg")
    write_json(root, images=[entry(index, name) for index, name in enumerate(names)], annotations=rows)


def write_via(root: Path) -> None:
    """BOX as a polygon: its edges are whole numbers, so the polygon covers exactly its pixels."""
    write_images(root)
    polygon = {"name": "polygon", "all_points_x": [10, 20, 20, 10], "all_points_y": [4, 4, 9, 9]}
    region = {"shape_attributes": polygon, "region_attributes": {"type": "thing"}}
    names = ("b.v2.jpg", "a.jpg", "deep/c.jpg")
    tree = {f"{name}123": {"filename": name, "size": 123, "regions": [region]} for name in names}
    (root / "annotations.json").write_text(json.dumps(tree))


def write_sa1b(root: Path) -> None:
    write_images(root)
    for index, name in enumerate(("b.v2", "a", "deep/c")):
        row = annotation(index, BOX, area=50, predicted_iou=0.9, stability_score=0.97, bbox=[10, 4, 10, 5])
        about = {"image_id": index, "height": HEIGHT, "width": WIDTH, "file_name": f"{name}.jpg"}
        (root / "images" / f"{name}.json").write_text(json.dumps({"image": about, "annotations": [row]}))
