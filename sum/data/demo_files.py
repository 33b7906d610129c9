"""Write the built-in world to disk in the formats of real data sets: image and mask folders, COCO JSON.

ROOT/salient_{train,val,test}/images/NAME.jpg, masks/NAME.png (0 or 255)
ROOT/{entity,part}_{train,val,test}/images/NAME.jpg, annotations.json (COCO, compressed RLE)
ROOT/unlabelled/images/NAME.jpg
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as rle

from sum.data.demo import Scene, make_scene, scene_seed
from sum.errors import ConfigError, choose
from sum.progress import track
from sum.storage import replace_folder

JPEG = (  # 4:4:4: halved colour resolution would smear legs two pixels wide
    *(cv2.IMWRITE_JPEG_QUALITY, 95),
    *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
)
LICENCE = {"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
Numbered = Iterator[tuple[str, Scene]]  # file stem and scene


def write_demo(root: Path, *, seeds: Mapping[str, int], scenes: Mapping[str, int], side: int) -> None:
    """Write every set named in `scenes` under `root`, whole or not at all; an older `root` is replaced.

    seeds: base seed of each split (train, val, test); scenes: number of scenes of each set. Sets never share a scene,
    whatever their seeds. side: width and height of the pictures, pixels.
    """
    for name in scenes:
        split, _ = choose(SETS, name, key="demo.scenes")
        if split not in seeds:
            raise ConfigError(
                f"params.yaml: demo.seeds: no seed '{split}', which the set '{name}' of demo.scenes needs"
            )
    with replace_folder(root) as partial:
        for name, count in scenes.items():
            _, write = SETS[name]
            folder = partial / name
            (folder / "images").mkdir(parents=True)
            write(folder, _scenes(name, count, seeds=seeds, side=side))


def set_scene(name: str, index: int, *, seeds: Mapping[str, int], side: int) -> Scene:
    """Scene `index` of the set `name`, seeds as in `write_demo`: the one that it writes."""
    number, (split, _) = list(SETS).index(name), SETS[name]
    return make_scene(scene_seed(seeds[split], number, index=index), side=side)


def _scenes(name: str, count: int, *, seeds: Mapping[str, int], side: int) -> Numbered:
    for index in track(range(count), title=f"draw {name}", unit="scene"):
        yield f"{name}_{index:05d}", set_scene(name, index, seeds=seeds, side=side)


def _write_plain(folder: Path, scenes: Numbered) -> None:
    for stem, scene in scenes:
        _write_image(folder / "images" / f"{stem}.jpg", scene)


def _write_salient(folder: Path, scenes: Numbered) -> None:
    (folder / "masks").mkdir()
    for stem, scene in scenes:
        _write_image(folder / "images" / f"{stem}.jpg", scene)
        _write_bytes(folder / "masks" / f"{stem}.png", scene.salient.astype(np.uint8) * 255)


def _write_entities(folder: Path, scenes: Numbered) -> None:
    _write_coco(folder, scenes, category="entity", masks_of=lambda scene: scene.entities)


def _write_parts(folder: Path, scenes: Numbered) -> None:
    _write_coco(folder, scenes, category="part", masks_of=lambda scene: scene.parts)


def _write_coco(
    folder: Path, scenes: Numbered, *, category: str, masks_of: Callable[[Scene], list[np.ndarray]]
) -> None:
    """Images and one COCO file with every mask of every image; ids count from 1."""
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for image_id, (stem, scene) in enumerate(scenes, start=1):
        _write_image(folder / "images" / f"{stem}.jpg", scene)
        height, width = scene.salient.shape
        images.append({"id": image_id, "file_name": f"{stem}.jpg", "width": width, "height": height, "license": 1})
        for mask in masks_of(scene):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_annotation(mask)})
    content = {
        "info": {"description": f"SUM demo world, {category} masks, made by sum/data/demo.py", "version": "1.0"},
        "licenses": [LICENCE],
        "categories": [{"id": 1, "name": category, "supercategory": category}],
        "images": images,
        "annotations": annotations,
    }
    (folder / "annotations.json").write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def _annotation(mask: np.ndarray) -> dict[str, object]:
    """COCO fields of one mask `[H, W]` bool: RLE, box xywh, area, crowd flag, category."""
    code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "category_id": 1,
        "iscrowd": 0,
        "area": int(rle.area(code)),
        "bbox": [float(edge) for edge in rle.toBbox(code)],
        "segmentation": {"size": [int(edge) for edge in code["size"]], "counts": code["counts"].decode("ascii")},
    }


def _write_image(path: Path, scene: Scene) -> None:
    _write_bytes(path, scene.image[..., ::-1], options=JPEG)  # cv2 wants blue first


def _write_bytes(path: Path, pixels: np.ndarray, *, options: tuple[int, ...] = ()) -> None:
    _, data = cv2.imencode(path.suffix, np.ascontiguousarray(pixels), options)
    path.write_bytes(data.tobytes())


Writer = Callable[[Path, Numbered], None]
SETS: dict[str, tuple[str, Writer]] = {  # split and writer; the order numbers the sets' seed ranges: append only
    "salient_train": ("train", _write_salient),
    "salient_test": ("test", _write_salient),
    "entity_train": ("train", _write_entities),
    "entity_test": ("test", _write_entities),
    "part_train": ("train", _write_parts),
    "part_test": ("test", _write_parts),
    "unlabelled": ("train", _write_plain),
    "salient_val": ("val", _write_salient),
    "entity_val": ("val", _write_entities),
    "part_val": ("val", _write_parts),
}
