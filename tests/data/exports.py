"""Exports as annotation tools write them, by json and Pillow alone: the masks they mean are BOX and TRIANGLE."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.written import BOX, HEIGHT, WIDTH, grey, photo

NAMES = ("b.v2", "a", "deep/c")
CORNERS = [[10, 4], [20, 4], [20, 9], [10, 9]]  # BOX, as pycocotools draws it
TOP, LEFT = 4, 10
CAT, DOG = (250, 50, 83), (51, 221, 255)  # of the masks that CVAT exports
BESIDE, DOG_AT = (slice(4, 9), slice(20, 26)), (slice(12, 16), slice(2, 6))  # BOX's neighbour, and elsewhere


def png64(mask: np.ndarray) -> str:
    """As labelme keeps a mask: 0 and 1 in a PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def shape(kind: str, points: Any, label: str = "thing", **more: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}} | more


def labelme(path: Path, image: str, *shapes: dict[str, Any], **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None}
    path.write_text(json.dumps(tree | {"imageHeight": HEIGHT, "imageWidth": WIDTH} | more))


def write_labelme(root: Path) -> None:
    for index, name in enumerate(NAMES):
        photo(root / "images" / f"{name}.jpg", index)
        up = "..\\" * (1 + name.count("/"))
        labelme(
            root / "annotations" / f"{name}.json",
            f"{up}images\\{name}.jpg".replace("/", "\\"),
            shape("polygon", CORNERS),
        )


def write_yolo(root: Path) -> None:
    shares = " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in CORNERS)
    for index, name in enumerate(NAMES):
        photo(root / "images" / f"{name}.jpg", index)
        path = root / "masks" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"1 {shares}\n")
    (root / "data.yaml").write_text("path: .\ntrain: images\nnc: 2\nnames: [nothing, thing]\n")


def encode_brush(mask: np.ndarray, *, literals: bool = False) -> list[int]:
    """An encoder of Label Studio's code after rle-pack's description, with text of 0 and 1 in place of a bit stream."""
    values = np.zeros((*mask.shape, 4), np.uint8)
    values[mask] = (255, 0, 124, 255)
    flat = values.ravel().tolist()
    sizes = (3, 4, 8, 16)
    blocks = [f"{len(flat):032b}{7:05b}", *(f"{size - 1:04b}" for size in sizes)]
    start = 0
    while start < len(flat):
        end = start
        while end < len(flat) and flat[end] == flat[start] and end - start < 65536:
            end += 1
        if literals and end - start < 5:
            end = min(start + 9, len(flat))
            body = "".join(f"{value:08b}" for value in flat[start:end])
        else:
            body = f"{flat[start]:08b}"
        which = next(index for index, size in enumerate(sizes) if end - start <= 2**size)
        run = len(body) == 8 and not (literals and end - start == 1)
        blocks.append(f"{int(run)}{which:02b}{end - start - 1:0{sizes[which]}b}{body}")
        start = end
    text = "".join(blocks)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def region(kind: str, value: dict[str, Any], label: str = "thing", **more: Any) -> dict[str, Any]:
    tree = {"id": "r1", "type": kind, "from_name": "tag", "to_name": "image", "image_rotation": 0}
    value = value | {kind: [label]}
    return tree | {"original_height": HEIGHT, "original_width": WIDTH, "value": value} | more


def task(number: int, image: str, *annotations: dict[str, Any]) -> dict[str, Any]:
    return {"id": number, "data": {"image": image, "note": "x"}, "annotations": list(annotations), "predictions": []}


def brush(mask: np.ndarray, label: str = "thing", **more: Any) -> dict[str, Any]:
    return region("brushlabels", {"format": "rle", "rle": encode_brush(mask)}, label, **more)


def write_label_studio(root: Path) -> None:
    paths = (
        "/data/upload/1/0a1b2c3d-b.v2.jpg",
        "/data/local-files/?d=export%2Fimages%2Fa.jpg",
        "s3://bucket/images/deep/c.jpg",
    )
    tasks = []
    for index, (name, path) in enumerate(zip(NAMES, paths, strict=True)):
        photo(root / "images" / f"{name}.jpg", index)
        tasks.append(task(index, path, {"id": 1, "was_cancelled": False, "result": [brush(BOX)]}))
    (root / "annotations.json").write_text(json.dumps(tasks))


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    flat = mask.T.ravel().tolist()
    counts, value = [0], False
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def write_cvat_coco(root: Path) -> None:
    """CVAT's COCO 1.0 of brush masks: uncompressed runs with iscrowd 1, one JSON below annotations/."""
    images, rows = [], []
    for index, name in enumerate(("a", "b", "c"), 1):
        photo(root / "images" / "default" / f"{name}.jpg", index)
        images.append({"id": index, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH, "license": 0})
        rows.append({"id": index, "image_id": index, "category_id": 1, "segmentation": uncompressed(BOX), "iscrowd": 1})
    tree = {"licenses": [], "info": {}, "categories": [{"id": 1, "name": "cat", "supercategory": ""}]}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_default.json").write_text(
        json.dumps(tree | {"images": images, "annotations": rows})
    )


def write_cvat_masks(root: Path) -> None:
    """CVAT's Segmentation mask 1.1: colours of classes and of objects: two cats that touch, and a dog."""
    for index, name in enumerate(("a", "b", "c")):
        photo(root / "JPEGImages" / f"{name}.jpg", index)
        kinds, objects = np.zeros((2, HEIGHT, WIDTH, 3))
        kinds[BOX], objects[BOX] = CAT, (128, 0, 0)
        kinds[BESIDE], objects[BESIDE] = CAT, (0, 128, 0)
        kinds[DOG_AT], objects[DOG_AT] = DOG, (128, 128, 0)
        grey(root / "SegmentationClass" / f"{name}.png", kinds)
        grey(root / "SegmentationObject" / f"{name}.png", objects)
    rows = (
        "# label:color_rgb:parts:actions",
        "background:0,0,0::",
        "cat:250,50,83::",
        "dog: a hound:51,221,255:ear,tail:run",
    )
    (root / "labelmap.txt").write_text("\n".join(rows) + "\n")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "default.txt").write_text("a\nb\nc\n")


def write_yolo_splits(root: Path) -> None:
    """Roboflow's and Ultralytics' folders: a split each, images and labels parallel."""
    shares = " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in CORNERS)
    for split, names in (("train", "ab"), ("val", "c")):
        for index, name in enumerate(names):
            photo(root / "images" / split / f"{name}.jpg", index + 10 * (split == "val"))
            path = root / "labels" / split / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"0 {shares}\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames:\n  0: cat\n")
