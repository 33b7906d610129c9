"""Photos, masks and annotation rows of miniatures, by Pillow, pycocotools and json alone."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle

H, W = 24, 32
ORIENTATION = 0x0112


def photo(path: Path, *, turned: bool = False) -> None:
    """A photo of H x W upright; turned: stored on its side, with the EXIF tag that says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(zlib.crc32(path.name.encode()))
    pixels = generator.integers(0, 256, (W, H, 3) if turned else (H, W, 3), dtype=np.uint8)
    exif = Image.Exif()
    if turned:
        exif[ORIENTATION] = 6
    Image.fromarray(pixels).save(path, exif=exif)


def box(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def blobs(seed: int) -> np.ndarray:
    """A mask of many pieces."""
    return np.random.default_rng(seed).random((H, W)) < 0.3


def corners(x: int, y: int, w: int, h: int) -> list[int]:
    """The polygon that covers exactly the pixels of `box`."""
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def drawn(*polygons: list[float]) -> np.ndarray:
    """What pycocotools draws."""
    mask: np.ndarray = rle.decode(rle.merge(rle.frPyObjects(list(polygons), H, W))).astype(bool)
    return mask


def packed(mask: np.ndarray) -> dict[str, Any]:
    """A compressed RLE as it stands in JSON."""
    code = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode()}


def loose(mask: np.ndarray) -> dict[str, Any]:
    """An uncompressed RLE, counted pixel by pixel."""
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def about(index: int, name: str, **more: Any) -> dict[str, Any]:
    """One entry of 'images'."""
    return {"id": index, "file_name": name, "height": H, "width": W} | more


def mark(index: int, image: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    """One entry of 'annotations', with the keys that no reader needs."""
    plain = {"iscrowd": 0, "category_id": 1, "area": 1.0, "bbox": [0, 0, 1, 1]}
    return {"id": index, "image_id": image, "segmentation": segmentation} | plain | more


def write(path: Path, tree: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tree))
