"""Annotation files of the VGG Image Annotator (VIA 1 and 2): polygons, boxes, circles and ellipses -> masks.

A region has attributes, such as species and id, and one of them is its category: the one that `categories` speaks of
(ATTRIBUTE=VALUE, or VALUE alone where only one attribute has it), else the one that most regions have.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sum.data.collect import BARE, Collector
from sum.data.documents import BadDocument, clean, read_json
from sum.data.outlines import ellipse, rectangle
from sum.data.places import Found, Place, absent, find_photos, name_faults, open_photo, places, require_known, tidy
from sum.data.rle import EMPTY, to_rle
from sum.data.sources import Item, Job, Note, Problem, Source, stem_of, told
from sum.errors import DataError

_MEND = "mend the annotation file, or delete the region"
_FLAT = ("polyline", "point", "line")
_REACH = 10  # sides of the photo, as in sum.data.rle


def flat(shape: str) -> str:
    """The reason that is counted for a region whose shape has no area."""
    return f"VIA region of shape '{shape}', which has no area, left out"


@dataclass(frozen=True, slots=True)
class _Entry:
    """One image of a VIA file."""

    file_name: str  # tidy
    regions: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Set:
    """One VIA file of a source, with where its photos are."""

    source: Source  # its categories are values of the attribute
    place: Place
    photos: dict[str, Found | str | None]
    attribute: str


def via_layout(source: Source) -> list[Job]:
    """Images named in VIA files and their masks, in the order of the files.

    Raises DataError when a file is not JSON or not VIA or a filter names what no region has, NotFound without a file
    or folder.
    """
    read = [(place, _entries(place.annotations, max_mb=source.max_json_mb)) for place in places(source)]
    regions = [region for _, entries in read for entry in entries for region in entry.regions]
    attribute, values = _category(source, regions)
    jobs, narrowed = list[Job](), replace(source, categories=values)
    for place, entries in read:
        names = [entry.file_name for entry in entries]
        photos, refused = find_photos(source, place, list(dict.fromkeys(names)))
        of = _Set(narrowed, place, photos, attribute)
        for entry, fault in zip(entries, name_faults(names), strict=True):
            if fault:
                jobs.append(told(Problem(place.annotations, fault, _MEND)))
            else:
                jobs.append(Job(place.named(stem_of(entry.file_name)), functools.partial(_image, of, entry)))
        jobs += map(told, refused)
    return jobs


def _entries(path: str, *, max_mb: int) -> list[_Entry]:
    """The images of a VIA file: a dict of entries, in a whole project of VIA 2 below '_via_img_metadata'."""
    tree = read_json(path, max_mb=max_mb)
    if isinstance(tree, dict) and isinstance(tree.get("metadata"), dict) and "view" in tree:
        raise BadDocument(path, "a project of VIA 3", remedy="export it as COCO, or annotate with VIA 2")
    rows = tree.get("_via_img_metadata", tree) if isinstance(tree, dict) else None
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise BadDocument(path, "not a VIA file: it is no object of entries with 'filename' and 'regions'")
    found = list[_Entry]()
    for key, row in rows.items():
        name, regions = row.get("filename"), row.get("regions")
        regions = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1
        good = isinstance(regions, list) and all(isinstance(region, dict) for region in regions)
        if not good or not isinstance(name, str) or not name:
            raise BadDocument(path, f"not a VIA file: entry {key[:80]!r} lacks 'filename' or 'regions'")
        found.append(_Entry(tidy(clean(name)), regions))
    if not found:
        raise BadDocument(path, "it names no image")
    return found


def _attributes(region: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and value of each attribute; ticked boxes are joined."""
    attributes = region.get("region_attributes")
    for name, value in attributes.items() if isinstance(attributes, dict) else ():
        ticked = ", ".join(key for key, on in value.items() if on) if isinstance(value, dict) else value
        yield clean(name), clean(ticked)


def _category(source: Source, regions: Sequence[dict[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """The attribute that is the category ('' for none), and the values of it that are wanted, none for all."""
    counts, values = defaultdict[str, int](int), defaultdict[str, set[str]](set)
    for region in regions:
        for name, value in _attributes(region):
            counts[name] += 1
            values[name].add(value)
    known = [f"{name}={value}" for name in values for value in sorted(values[name])]
    pairs = set[tuple[str, str]]()
    for text in source.categories:
        name, _, value = text.partition("=")
        having = [(key, text) for key in values if text in values[key]]
        chosen = [(name, value)] if value in values.get(name, ()) else having
        if not chosen:
            require_known(source, "categories", [text], known)
        if len(chosen) > 1:
            pairs_of = " or ".join(f"{key}={value}" for key, value in chosen)
            raise DataError(
                f"datasets.{source.name}.categories: '{text}' is a value of several attributes: write {pairs_of}."
            )
        pairs.update(chosen)
    names = {name for name, _ in pairs} or {max(counts, key=lambda name: counts[name], default="")}
    if len(names) > 1:
        several = ", ".join(sorted(names))
        raise DataError(f"datasets.{source.name}.categories: values of several attributes ({several}); wanted of one.")
    return names.pop(), tuple(sorted(value for _, value in pairs))


def _image(of: _Set, entry: _Entry) -> list[Item]:
    """Read one photo and turn its regions into masks."""
    if not entry.regions:
        return [Note(BARE, entry.file_name)]
    found = of.photos[entry.file_name]
    if not isinstance(found, Found):
        return [absent(of.source, of.place, entry.file_name, found=found)]
    image = open_photo(of.source, found, name=of.place.named(stem_of(entry.file_name)))
    if isinstance(image, Problem):
        return [image]
    collector = Collector(of.source, image)
    for number, region in enumerate(entry.regions):
        _add(collector, region, of=of, where=f"region {number} of {image.path}")
    return collector.items()


def _add(collector: Collector, region: dict[str, Any], *, of: _Set, where: str) -> None:
    """One region: its mask, if it has one, or what there is to tell about it."""
    shape, file = region.get("shape_attributes"), of.place.annotations
    name = shape.get("name") if isinstance(shape, dict) else None
    if not isinstance(shape, dict) or not isinstance(name, str) or name not in (*SHAPES, *_FLAT):
        known = ", ".join((*SHAPES, *_FLAT))
        return collector.problem(file, f"{where}: its shape is none of VIA's ({known}): {str(name)[:60]!r}", _MEND)
    if name in _FLAT:
        return collector.note(flat(name), where)
    try:
        drawn = SHAPES[name](shape, height=collector.image.height, width=collector.image.width)
    except ValueError as error:
        return collector.problem(file, f"{where}: {error}", _MEND)
    return collector.take(drawn, category=dict(_attributes(region)).get(of.attribute, ""), file=file, where=where)


def _polygon(shape: dict[str, Any], *, height: int, width: int) -> tuple[str, str]:
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
        raise ValueError("all_points_x and all_points_y are not two lists of the same length")
    return to_rle([[value for point in zip(xs, ys, strict=True) for value in point]], height=height, width=width)


def _rect(shape: dict[str, Any], *, height: int, width: int) -> tuple[str, str]:
    box = _values(shape, "x", "y", "width", "height", reach=_REACH * max(height, width))
    return rectangle(box, height=height, width=width)


def _circle(shape: dict[str, Any], *, height: int, width: int) -> tuple[str, str]:
    return _ellipse(shape | {"rx": shape.get("r"), "ry": shape.get("r"), "theta": 0}, height=height, width=width)


def _ellipse(shape: dict[str, Any], *, height: int, width: int) -> tuple[str, str]:
    """theta: radians, clockwise on the screen."""
    reach = _REACH * max(height, width)
    *outline, theta = _values({"theta": 0} | shape, "cx", "cy", "rx", "ry", "theta", reach=reach)
    if min(outline[2:]) <= 0:
        return "", EMPTY
    return ellipse(outline, turn=theta, height=height, width=width)


SHAPES = {"polygon": _polygon, "rect": _rect, "circle": _circle, "ellipse": _ellipse}


def _values(shape: dict[str, Any], *keys: str, reach: float) -> list[float]:
    """Numbers of a shape, each finite and no further out than `reach` pixels."""
    found = [shape.get(key) for key in keys]
    if not all(type(value) in (int, float) and abs(value) <= reach for value in found):  # type: ignore[arg-type]
        raise ValueError(
            f"{', '.join(keys)} of the shape '{shape.get('name')}' are not numbers near the photo: {found}"
        )
    return [float(value) for value in found]  # type: ignore[arg-type]
