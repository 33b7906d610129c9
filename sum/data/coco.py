"""COCO annotation files: polygons and run lengths -> masks at the photo's size, by pycocotools' own rule."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sum.data.coco_files import CocoFile, read_coco
from sum.data.collect import BARE, OTHER, Collector
from sum.data.places import (
    UNTURNED,
    Found,
    Place,
    absent,
    find_photos,
    fit_photo,
    name_faults,
    open_photo,
    places,
    require_known,
)
from sum.data.records import ImageRecord
from sum.data.rle import resize_rle, to_rle
from sum.data.sources import Item, Job, Note, Problem, Source, stem_of, told

ELSEWHERE = "image that no folder holds left out: it is of another set (`only_found`)"
TWICE = "annotation with the id of an earlier one of its file read as well"
RESIZED = "image whose annotations are of another size: its masks resized to the photo"
MISFIT = "image left out whose annotations are of another size"
_MEND = "mend the annotation file, or delete the entry"
_UNSET = (None, 0, False, "", "0", "false", "False")


def flagged(flag: str) -> str:
    """The reason that is counted for annotations left out by a key of `drop_flags`."""
    return f"annotation with '{flag}' set left out"


@dataclass(frozen=True, slots=True)
class _Set:
    """One annotation file of a source, with where its photos are."""

    source: Source
    place: Place
    file: CocoFile
    photos: dict[str, Found | str | None]
    refused: list[Problem]  # archives and members of them


def coco_layout(source: Source) -> list[Job]:
    """Images named in COCO files and their masks, in the order of the files; images without any usable mask are left
    out and counted.

    Raises DataError when a file is not JSON or not COCO or a filter names a category that no file has, NotFound
    without a file or folder.
    """
    sets = list[_Set]()
    for place in places(source):
        file = read_coco(place.annotations, max_mb=source.max_json_mb, flags=source.drop_flags)
        names = list(dict.fromkeys(entry["file_name"] for entry in file.images))
        sets.append(_Set(source, place, file, *find_photos(source, place, names)))
    known = [category for of in sets for category in of.file.categories.values()]
    require_known(source, "categories", source.categories, (category.name for category in known))
    require_known(source, "supercategories", source.supercategories, (category.group for category in known))
    return [job for of in sets for job in (*_jobs(of), *_findings(of.file), *map(told, of.refused))]


def _jobs(of: _Set) -> Iterator[Job]:
    """A job an image."""
    for entry, fault in zip(of.file.images, name_faults([entry["file_name"] for entry in of.file.images]), strict=True):
        if fault:
            yield told(Problem(of.file.path, fault, _MEND))
        else:
            yield Job(of.place.named(stem_of(entry["file_name"])), functools.partial(_image, of, entry))


def _findings(file: CocoFile) -> Iterator[Job]:
    """What is to be told about the file as a whole."""
    known = {entry["id"] for entry in file.images}
    for key, count in file.counts():
        if key not in known:
            reason = f"{count} annotation(s) are of image id {key!r}, which 'images' lacks"
            yield told(Problem(file.path, reason, _MEND))
    for _ in range(file.twice):
        yield told(Note(TWICE, file.path))


def _image(of: _Set, entry: dict[str, Any]) -> list[Item]:
    """Read one photo and turn its annotations into masks."""
    source, name = of.source, entry["file_name"]
    found = of.photos[name]
    if found is None and source.only_found:
        return [Note(ELSEWHERE, name)]
    rows = of.file.annotations(entry["id"])
    if not rows:
        return [Note(BARE, name)]
    if not isinstance(found, Found):
        return [absent(source, of.place, name, found=found)]
    image = open_photo(source, found, name=of.place.named(stem_of(name)))
    if isinstance(image, Problem):
        return [image]
    collector, frame = Collector(source, image), (image.height, image.width)
    fitting = fit_photo(image, height=entry.get("height"), width=entry.get("width"))
    if fitting is None:
        frame = (entry.get("height") or image.height, entry.get("width") or image.width)
        if source.on_size_mismatch != "resize_mask" or not _sound(frame, limit=source.max_pixels):
            return [_misfit(of, entry, image)]
        collector.note(RESIZED, image.path)
    elif fitting.exif != image.exif:
        collector, frame = Collector(source, fitting), (fitting.height, fitting.width)
        collector.note(UNTURNED, image.path)
    for row in rows:
        _add(collector, row, of=of, frame=frame)
    return collector.items()


def _sound(frame: tuple[Any, Any], *, limit: int) -> bool:
    """Whether (height, width) can be the size of a mask."""
    return all(type(side) is int and side > 0 for side in frame) and frame[0] * frame[1] <= limit


def _misfit(of: _Set, entry: dict[str, Any], image: ImageRecord) -> Item:
    """A file that speaks of another frame than the photo has."""
    stated = str((entry.get("height"), entry.get("width")))[:80]
    reason = f"{of.file.path} says height, width {stated}, the upright photo has {(image.height, image.width)}"
    if of.source.on_size_mismatch == "skip":
        return Note(MISFIT, image.path)
    return Problem(image.path, reason, "make both the same: masks of another frame cannot be used")


def _add(collector: Collector, row: dict[str, Any], *, of: _Set, frame: tuple[int, int]) -> None:
    """One annotation: its mask, if it has one, or what there is to tell; frame: height and width it is drawn in."""
    image, file, key = collector.image, of.file, row.get("category_id")
    where = f"annotation {row.get('id')} of {image.path}"
    for flag in of.source.drop_flags:
        if row.get(flag) not in _UNSET:
            return collector.note(flagged(flag), where)
    category = file.categories.get(key) if isinstance(key, int | str) else None
    if file.categories and category is None:
        return collector.problem(file.path, f"{where}: category_id {key!r} is not in 'categories'", _MEND)
    name, group = (category.name, category.group) if category else ("", "")
    if not (_wanted(name, of.source.categories) and _wanted(group, of.source.supercategories)):
        return collector.note(OTHER, where)  # before its polygons are drawn
    try:
        rle, remark = to_rle(row.get("segmentation"), height=frame[0], width=frame[1])
    except ValueError as error:
        return collector.problem(file.path, f"{where}: {error}", _MEND)
    if rle:
        rle = resize_rle(rle, frame, to=(image.height, image.width))
    collector.take((rle, remark), category=name, file=file.path, where=where)
    return None


def _wanted(name: str, names: tuple[str, ...]) -> bool:
    return not names or name in names
