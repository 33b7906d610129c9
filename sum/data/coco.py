"""COCO annotation files: polygons and run lengths -> masks at the photo's size, by pycocotools' own rule."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sum.data.collect import BARE, Collector
from sum.data.documents import read_json
from sum.data.rle import to_rle
from sum.data.sources import Item, Job, Note, Problem, Source, read_photo, stem_of, told
from sum.errors import DataError
from sum.storage import join

CROWD = "crowd region (iscrowd 1) left out"
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
    file = _read(join(source.root, source.annotations), max_mb=source.max_json_mb)
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
    return Job(stem_of(entry["file_name"]), lambda: _image(source, file, entry))


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
    collector = Collector(source, image)
    for row in rows:
        _add(collector, row, file=file)
    return collector.items()


def _add(collector: Collector, row: dict[str, Any], *, file: _File) -> None:
    """One annotation: its mask, if it has one, or what there is to tell about it."""
    image = collector.image
    where = f"annotation {row.get('id')} of {image.path}"
    if row.get("iscrowd"):
        return collector.note(CROWD, where)
    category = row.get("category_id")
    if file.categories and not (isinstance(category, int | str) and category in file.categories):
        return collector.problem(file.path, f"{where}: category_id {category!r} is not in 'categories'", _MEND)
    try:
        rle, remark = to_rle(row.get("segmentation"), height=image.height, width=image.width)
    except ValueError as error:
        return collector.problem(file.path, f"{where}: {error}", _MEND)
    if remark:
        collector.note(remark, where)
    if rle:
        collector.add(rle, category=file.categories.get(category, ""), file=file.path, where=where)
    return None


def _read(path: str, *, max_mb: int) -> _File:
    tree = read_json(path, max_mb=max_mb)
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
