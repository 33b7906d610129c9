"""A COCO, LVIS or PACO file, looked through once: what of it is needed, by image, as small as it gets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sum.data.documents import BadDocument, clean, read_json
from sum.data.places import tidy
from sum.data.rle import pack

_TREE = {"images", "annotations", "categories"}
_IMAGE = {"id", "file_name", "coco_url", "height", "width"}
_ANNOTATION = {"id", "image_id", "category_id", "segmentation"}
_REST = {"name", "supercategory", "size", "counts"}
KEPT = _TREE | _IMAGE | _ANNOTATION | _REST


@dataclass(frozen=True, slots=True)
class Category:
    """One entry of 'categories'."""

    name: str
    group: str  # its supercategory, '' for none


@dataclass(frozen=True, slots=True)
class CocoFile:
    """What a file says."""

    path: str
    images: list[dict[str, Any]]  # each with an id and a tidy file_name
    annotations: dict[Any, list[dict[str, Any]]]  # by image id, in the order of the file
    categories: dict[Any, Category]
    twice: int  # annotations whose id an earlier one of the file has


def read_coco(path: str, *, max_mb: int, flags: Collection[str] = ()) -> CocoFile:
    """Read a file; flags: keys of annotations to keep besides those that make a mask.

    Raises BadDocument when it is not JSON or not COCO, NotFound without it.
    """
    kept = KEPT | set(flags)

    def shrink(tree: dict[str, Any]) -> dict[str, Any]:
        """What is used of one object of the file."""
        small = {key: value for key, value in tree.items() if key in kept}
        pack(small)
        return small

    tree = read_json(path, max_mb=max_mb, shrink=shrink)
    images, rows = (_objects(tree, key, path=path) for key in ("images", "annotations"))
    for entry in images:
        entry["file_name"] = _file_name(entry)
        if not entry["file_name"] or not isinstance(entry.get("id"), int | str):
            raise BadDocument(path, f"not a COCO file: the image {str(entry)[:200]} lacks 'id' or 'file_name'")
    if not images or len({entry["id"] for entry in images}) < len(images):
        raise BadDocument(path, "two images have the same id" if images else "it names no image")
    annotations = defaultdict[Any, list[dict[str, Any]]](list)
    for row in rows:
        if not isinstance(row.get("image_id"), int | str):
            raise BadDocument(path, f"not a COCO file: annotation {str(row.get('id'))[:60]} has no 'image_id'")
        annotations[row["image_id"]].append(row)
    ids = [row["id"] for row in rows if isinstance(row.get("id"), int | str)]
    categories = _categories(tree.get("categories"), path=path)
    return CocoFile(path, images, dict(annotations), categories, len(ids) - len(set(ids)))


def _objects(tree: Any, key: str, *, path: str) -> list[dict[str, Any]]:
    rows = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadDocument(path, f"not a COCO file: it has no list '{key}' of objects")
    return rows


def _file_name(entry: dict[str, Any]) -> str:
    """Where the photo is meant to be; LVIS says it in coco_url alone (.../train2017/1.jpg). '' for nowhere."""
    name, url = entry.get("file_name"), entry.pop("coco_url", None)
    if isinstance(name, str) and name:
        return tidy(clean(name))
    return tidy(clean(url.partition("://")[2].partition("/")[2])) if isinstance(url, str) and "://" in url else ""


def _categories(rows: object, *, path: str) -> dict[Any, Category]:
    """Category id -> name and supercategory; none when the file has no categories."""
    found = dict[Any, Category]()
    try:
        for row in rows or ():  # type: ignore[attr-defined]  # wrong types are caught below
            category = Category(clean(row["name"]), clean(row.get("supercategory") or ""))
            if found.setdefault(row["id"], category) != category:
                names = f"'{found[row['id']].name}' and '{category.name}'"
                raise BadDocument(path, f"two categories have the id {row['id']!r}: {names}")
    except (TypeError, KeyError, AttributeError) as error:
        reason = "not a COCO file: 'categories' is not a list of objects with 'id' and 'name'"
        raise BadDocument(path, reason) from error
    return found
