"""COCO annotation files: polygons and run lengths -> masks at the photo's size, by pycocotools' own rule."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as coco

from sum.data.records import ImageRecord, MaskRecord
from sum.data.sources import Item, Job, Note, Problem, Sample, Source, make_mask, read_photo, stem_of, told
from sum.errors import DataError
from sum.storage import join, read_bytes

CROWD = "crowd region (iscrowd 1) left out"
EMPTY = "mask without a pixel left out"
FEW_POINTS = "polygon of fewer than 3 points left out"
BARE = "image without a mask left out"
_MEND = "mend the annotation file, or delete the entry"


@dataclass(frozen=True, slots=True)
class _File:
    """A COCO file, looked through once."""

    path: str
    images: list[dict[str, Any]]
    annotations: dict[Any, list[dict[str, Any]]]  # by image id, in the order of the file
    categories: dict[Any, str]


def coco_layout(source: Source) -> list[Job]:
    """Images named in a COCO file and their masks; images without any usable mask are left out and counted.

    Raises DataError when the file is not JSON or not COCO, NotFound without it.
    """
    file = _read(join(source.root, source.annotations))
    jobs, seen = list[Job](), dict[str, str]()
    for entry in sorted(file.images, key=lambda entry: str(entry["file_name"])):
        name, reason = entry["file_name"], ""
        if ".." in PurePosixPath(name).parts:
            reason = f"file_name '{name}' leaves the image folder"
        elif stem_of(name) in seen:
            reason = f"file_name '{name}' and '{seen[stem_of(name)]}' would have the same id"
        seen.setdefault(stem_of(name), name)
        jobs.append(told(Problem(file.path, reason, _MEND)) if reason else _job(source, file, entry))
    known = {entry["id"] for entry in file.images}
    for key, rows in file.annotations.items():
        if key not in known:
            reason = f"{len(rows)} annotation(s) are of image id {key!r}, which 'images' lacks"
            jobs.append(told(Problem(file.path, reason, _MEND)))
    return jobs


def _job(source: Source, file: _File, entry: dict[str, Any]) -> Job:
    return lambda: _image(source, file, entry)


def _image(source: Source, file: _File, entry: dict[str, Any]) -> list[Item]:
    """Read one photo and turn its annotations into masks."""
    rows = file.annotations.get(entry["id"], [])
    if not rows:
        return [Note(BARE, entry["file_name"])]
    image = read_photo(source, entry["file_name"])
    if isinstance(image, Problem):
        return [image]
    stated = (entry.get("height") or image.height, entry.get("width") or image.width)
    if stated != (image.height, image.width):
        reason = f"{file.path} says height, width {stated}, the upright photo has {(image.height, image.width)}"
        return [Problem(image.path, reason, "make both the same: masks of another frame cannot be used")]
    masks, others = list[MaskRecord](), list[Item]()
    for number, row in enumerate(rows):
        mask, items = _mask(image, row, number=number, file=file)
        masks += [mask] if mask else []
        others += items
    return [Sample(image, tuple(masks)), *others] if masks else [*others, Note(BARE, image.path)]


def _mask(
    image: ImageRecord, row: dict[str, Any], *, number: int, file: _File
) -> tuple[MaskRecord | None, list[Problem | Note]]:
    """One annotation: its mask, if it has one, and what there is to tell about it."""
    where = f"annotation {row.get('id')} of {image.path}"
    if row.get("iscrowd"):
        return None, [Note(CROWD, where)]
    category = row.get("category_id")
    if file.categories and not (isinstance(category, int | str) and category in file.categories):
        return None, [Problem(file.path, f"{where}: category_id {category!r} is not in 'categories'", _MEND)]
    try:
        rle, remark = to_rle(row.get("segmentation"), height=image.height, width=image.width)
    except ValueError as error:
        return None, [Problem(file.path, f"{where}: {error}", _MEND)]
    notes: list[Problem | Note] = [Note(remark, where)] if remark else []
    if not rle:
        return None, notes
    name = file.categories.get(category, "")
    return make_mask(image, rle, number=number, category=name, file=file.path), notes


def to_rle(segmentation: object, *, height: int, width: int) -> tuple[str, str]:
    """A COCO `segmentation` -> compressed RLE counts of a `[height, width]` mask ('' for none), and a remark or ''.

    Raises ValueError on anything that is not a segmentation of that size.
    """
    if not segmentation:
        return "", EMPTY
    remark = ""
    if isinstance(segmentation, dict):
        code = _runs(segmentation, height=height, width=width)
    else:
        found = _polygons(segmentation, reach=10 * max(height, width))
        polygons = [polygon for polygon in found if len(polygon) >= 6]
        remark = FEW_POINTS if len(polygons) < len(found) else ""
        if not polygons:
            return "", remark
        code = coco.merge(coco.frPyObjects(polygons, height, width))
    return (str(code["counts"], "ascii"), remark) if coco.area(code) else ("", EMPTY)


def _polygons(segmentation: object, *, reach: int) -> list[list[float]]:
    """The polygons of a segmentation, each a flat list x, y, x, y, ... with no point beyond `reach` pixels."""
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise ValueError("segmentation is neither a list of polygons nor an RLE")
    for polygon in segmentation:
        if len(polygon) % 2 or not all(type(value) in (int, float) and np.isfinite(value) for value in polygon):
            raise ValueError("a polygon is not a flat list of numbers x, y, x, y, ...")
        if any(abs(value) > reach for value in polygon):  # pycocotools would walk all the way there
            raise ValueError("a polygon has a point far outside the photo")
    return segmentation


def _runs(segmentation: dict[str, Any], *, height: int, width: int) -> dict[str, Any]:
    """An RLE, compressed; its runs are checked before pycocotools, which would read beyond bad ones, sees it."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    pixels = height * width
    if size != [height, width]:
        raise ValueError(f"RLE of size {size}, the photo is {[height, width]} (height, width) upright")
    if isinstance(counts, str):
        runs, code = parse_counts(counts), {"size": size, "counts": counts.encode("ascii")}
    elif isinstance(counts, list) and all(type(value) is int and 0 <= value <= pixels for value in counts):
        runs, code = np.asarray(counts, dtype=np.int64), coco.frPyObjects(segmentation, height, width)
    else:
        raise ValueError("RLE counts are neither a string nor a list of run lengths")
    if (runs < 0).any() or int(runs.sum()) != pixels:
        raise ValueError(f"RLE runs do not add up to {height} x {width} pixels")
    return code


def parse_counts(code: str) -> np.ndarray:
    """Run lengths of a COCO compressed RLE string: signed base 32, from the fourth on relative to the last but one."""
    raw = np.frombuffer(code.encode(), np.uint8).astype(np.int64) - 48
    if not len(raw) or raw.min() < 0 or raw.max() > 63 or raw[-1] & 32:
        raise ValueError("RLE counts are not a COCO compressed string")
    ends = np.flatnonzero((raw & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    digit = np.arange(len(raw)) - np.repeat(starts, ends - starts + 1)
    if digit.max() > 7:
        raise ValueError("RLE counts hold a run of more than 32 bits")
    values = np.add.reduceat((raw & 31) << (5 * digit), starts)
    values -= np.where(raw[ends] & 16, 1 << (5 * (digit[ends] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _read(path: str) -> _File:
    try:
        tree = json.loads(read_bytes(path))
    except ValueError as error:  # JSON or its encoding
        raise DataError(f"{path}: not JSON ({error})") from error
    lists = {key: tree.get(key) if isinstance(tree, dict) else None for key in ("images", "annotations")}
    for key, rows in lists.items():
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: not a COCO file: it has no list '{key}' of objects")
    images, annotations = lists["images"] or [], defaultdict[Any, list[dict[str, Any]]](list)
    for row in images:
        if not isinstance(row.get("file_name"), str) or not isinstance(row.get("id"), int | str):
            raise DataError(f"{path}: not a COCO file: the image {json.dumps(row)[:200]} lacks 'id' or 'file_name'")
    if not images or len({row["id"] for row in images}) < len(images):
        raise DataError(f"{path}: {'two images have the same id' if images else 'it names no image'}")
    for row in lists["annotations"] or []:
        if not isinstance(row.get("image_id"), int | str):
            raise DataError(f"{path}: not a COCO file: annotation {row.get('id')} has no 'image_id'")
        annotations[row["image_id"]].append(row)
    return _File(path, images, annotations, _categories(tree.get("categories"), path=path))


def _categories(rows: object, *, path: str) -> dict[Any, str]:
    """Category id -> name; none when the file has no categories."""
    try:
        return {row["id"]: str(row["name"]) for row in rows or ()}  # type: ignore[attr-defined]  # wrong types are caught below
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{path}: not a COCO file: 'categories' is not a list of objects with 'id' and 'name'"
        ) from error
