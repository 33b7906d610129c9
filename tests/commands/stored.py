"""A small label store in a project: photos, drawn masks, smooth maps, written by the store's own writer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from sum.data.labels import PseudoMask, label_rows, map_rows
from sum.data.records import ImageRecord, encode_mask, write_manifest
from sum.data.shards import LABELS, UNCERTAINTY, shard_name, write_shard
from sum.storage import sha256_file

SIDE, LOW = 128, 64  # S and L of backbone tiny
HW = {"s/a#1/x": (60, 90), "s/b": (200, 120), "s/none": (32, 32), "s/z/../c": (48, 48)}  # the last but one: no mask


@dataclass
class Drawn:
    """The truth of one pseudo-label."""

    mask: np.ndarray  # [H, W] bool
    sam: np.ndarray  # [L, L] codes
    refined: np.ndarray  # [L, L] codes
    has_map: bool


def draw(image_id: str) -> list[Drawn]:
    """Three masks, the second with a hole and the third without a map; none for s/none."""
    height, width = HW[image_id]
    rng = np.random.default_rng(len(image_id))
    found = []
    for k in range(0 if image_id == "s/none" else 3):
        mask = np.zeros((height, width), dtype=np.uint8)
        centre = int(width * (0.25 + 0.2 * k)), int(height * (0.3 + 0.2 * k))
        cv2.circle(mask, centre, 8 + k, 1, -1)
        if k == 1:
            cv2.circle(mask, centre, 4, 0, -1)
        sam, refined = (cv2.resize(rng.integers(0, 256, (5, 5), dtype=np.uint8), (LOW, LOW)) for _ in range(2))
        found.append(Drawn(mask.astype(bool), sam, refined, k != 2))
    return found


def pseudo(image_id: str, index: int, mask: np.ndarray) -> PseudoMask:
    ys, xs = np.nonzero(mask)
    box = int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())
    scores = {"predicted_iou": 0.875 - index / 8, "stability": 0.5 + index / 8}  # exact in float32
    return PseudoMask(image_id, index, encode_mask(mask), int(mask.sum()), box, (xs[0] + 0.25, ys[0] + 0.5), **scores)


def make_store(folder: Path) -> None:
    """data/raw, data/manifest, data/pseudo_labels and data/uncertainty in a project."""
    records, shards = [], (list(HW)[::2], list(HW)[1::2])
    for number, (image_id, (height, width)) in enumerate(HW.items()):
        path = folder / f"data/raw/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(number).integers(0, 200, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(cv2.resize(coarse, (width, height))).save(path)
        about = {"task": "unspecified", "split": "unlabelled", "licence": "MIT"}
        name = f"data/raw/{number}.png"
        records.append(ImageRecord(image_id, "s", name, sha256_file(path), height, width, **about))
    write_manifest(folder / "data/manifest", records, [])
    for number, image_ids in enumerate(shards):
        path = folder / "data/pseudo_labels" / shard_name(number)
        with write_shard(path, kind=LABELS, side=LOW, shards=len(shards)) as shard:
            for image_id in image_ids:
                drawn = draw(image_id)
                masks = [pseudo(image_id, k, one.mask) for k, one in enumerate(drawn)]
                shard.add(image_id, label_rows(masks, np.array([one.sam for one in drawn])))
            labels = shard.info
        path = folder / "data/uncertainty" / shard_name(number)
        with write_shard(path, kind=UNCERTAINTY, side=LOW, shards=len(shards)) as shard:
            for image_id in image_ids:
                drawn = draw(image_id)
                has_map, refined = [one.has_map for one in drawn], np.array([one.refined for one in drawn])
                shard.add(image_id, map_rows(has_map, refined=refined, uncertainty=None))
            shard.about(labels)
