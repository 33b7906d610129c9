"""A COCO, LVIS or PACO file, looked through once: images in memory, annotations in a spool until theirs is read."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sum.data.documents import BadDocument, Shrink, clean, walk_json
from sum.data.places import tidy
from sum.data.rle import pack
from sum.data.spools import Repeats, Spool

_TREE = {"images", "annotations", "categories"}
_IMAGE = {"id", "file_name", "coco_url", "height", "width"}
_ANNOTATION = {"id", "image_id", "category_id", "segmentation"}
_HEADS = _TREE | _IMAGE | {"image_id", "name", "supercategory"}
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
    categories: dict[Any, Category]
    twice: int  # annotations whose id an earlier one of the file has
    _spool: Spool  # the text of each annotation, by image id
    _shrink: Shrink

    def annotations(self, image_id: Any) -> list[dict[str, Any]]:
        """The annotations of an image, in the order of the file."""
        decoder = json.JSONDecoder(object_pairs_hook=lambda pairs: self._shrink(dict(pairs)))
        return [decoder.decode(text) for text in self._spool.texts(image_id)]

    def counts(self) -> Iterator[tuple[Any, int]]:
        """Each image id that annotations have, and how many have it."""
        return self._spool.groups()


def read_coco(path: str, *, max_mb: int, flags: Collection[str] = ()) -> CocoFile:
    """Read a file, its annotations into a spool; flags: keys of annotations to keep besides those that make a mask.

    Raises BadDocument when it is not JSON or not COCO, NotFound without it.
    """
    kept = KEPT | set(flags)
    heads = {key: key for key in _HEADS}

    def head(tree: dict[str, Any]) -> dict[str, Any]:
        """What is looked at before an image is read; a key is one text, however many objects have it."""
        return {heads[key]: value for key, value in tree.items() if key in heads}

    def shrink(tree: dict[str, Any]) -> dict[str, Any]:
        """What is used of one object of an annotation."""
        small = {key: value for key, value in tree.items() if key in kept}
        pack(small)
        return small

    rows = _Rows()

    def member(key: str, elements: Iterator[tuple[Any, str]]) -> Any:
        """What is kept of a list at the top of the file."""
        if key == "annotations":
            rows.fill(elements)
            return rows
        return [element for element, _ in elements] if key in ("images", "categories") else None

    tree = walk_json(path, member, max_mb=max_mb, shrink=head)
    images = _images(tree, path=path)
    if not (isinstance(tree.get("annotations"), _Rows) and rows.are_objects):
        raise _no_objects(path, "annotations")
    for entry in images:
        entry["file_name"] = _file_name(entry)
        if not entry["file_name"] or not isinstance(entry.get("id"), int | str):
            raise BadDocument(path, f"not a COCO file: the image {str(entry)[:200]} lacks 'id' or 'file_name'")
    if not images or len({entry["id"] for entry in images}) < len(images):
        raise BadDocument(path, "two images have the same id" if images else "it names no image")
    if rows.homeless:
        raise BadDocument(path, f"not a COCO file: annotation {rows.homeless[0]} has no 'image_id'")
    categories = _categories(tree.get("categories"), path=path)
    return CocoFile(path, images, categories, rows.ids.count(), rows.spool, shrink)


class _Rows:
    """The annotations of a file."""

    def __init__(self) -> None:
        self.spool, self.ids = Spool(), Repeats()
        self.are_objects, self.homeless = True, list[str]()

    def fill(self, rows: Iterator[tuple[Any, str]]) -> None:
        """Put them aside."""
        for row, text in rows:
            if not isinstance(row, dict):
                self.are_objects = False
                continue
            if isinstance(row.get("image_id"), int | str):
                self.spool.add(row["image_id"], text)
            elif not self.homeless:
                self.homeless.append(str(row.get("id"))[:60])
            if isinstance(row.get("id"), int | str):
                self.ids.add(row["id"])
        self.spool.close()


def _images(tree: Any, *, path: str) -> list[dict[str, Any]]:
    rows = tree.get("images") if isinstance(tree, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _no_objects(path, "images")
    return rows


def _no_objects(path: str, key: str) -> BadDocument:
    return BadDocument(path, f"not a COCO file: it has no list '{key}' of objects")


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
