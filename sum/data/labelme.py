"""labelme: a JSON a photo, with polygons, rectangles, circles and masks; a group is one object."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco

from sum.data.collect import BARE, Collector
from sum.data.documents import read_json
from sum.data.images import open_picture
from sum.data.outlines import ellipse, finite, flat_points, rectangle
from sum.data.photo_index import PhotoIndex
from sum.data.rle import mask_to_rle, to_rle
from sum.data.sources import Item, Job, Note, Problem, Source, is_image_name, read_photo, stem_of, told
from sum.errors import DataError
from sum.limits import PILLOW_LIMIT
from sum.storage import NotFound, join, list_files

NO_AREA = "labelme point or line left out: it has no area"
FOREIGN = "JSON file that is not labelme's passed over"
RENAMED = "labelme imagePath names no file: the photo of the JSON's own name was taken"
_THIN = {"line", "linestrip", "point", "points"}
_MEND = "open the file in labelme and save it again, or delete the shape"
_EMBEDDED = "the image is only inside the JSON: export the image files into the images folder too"


def labelme_layout(source: Source) -> list[Job]:
    """The JSON files below `annotations` and the photos below `images`; photos without a JSON are counted.

    Raises DataError when no JSON is labelme's, NotFound without one of the folders.
    """
    folder = join(source.root, source.annotations)
    documents = [name for name in list_files(folder) if name.lower().endswith(".json")]
    if not documents:
        raise DataError(f"data set '{source.name}': {folder} holds no JSON file; labelme writes one a photo")
    photos = [name for name in list_files(join(source.root, source.folder)) if is_image_name(name)]
    index, stems = PhotoIndex(photos), _stems(photos)
    jobs, taken = list[Job](), dict[str, str]()
    for document in documents:
        found = stems.get(stem_of(document), [])
        photo = found[0] if len(found) == 1 else _named(source, join(folder, document), index)
        if not isinstance(photo, str):
            jobs.append(told(photo))
        elif photo in taken:
            reason = f"is of the same photo as {taken[photo]}: {photo}"
            jobs.append(told(Problem(join(folder, document), reason, "delete one of the two, or join them in labelme")))
        else:
            taken[photo] = document
            jobs.append(_job(source, photo, join(folder, document), index))
    if all(not job.name and _foreign(job) for job in jobs):
        raise DataError(f"data set '{source.name}': no JSON file of {folder} is labelme's ('shapes' and 'imagePath')")
    return [*jobs, *(told(Note(BARE, photo)) for photo in photos if photo not in taken)]


def _foreign(job: Job) -> bool:
    return any(isinstance(item, Note) and item.reason == FOREIGN for item in job.read())


def _stems(photos: list[str]) -> dict[str, list[str]]:
    found = dict[str, list[str]]()
    for photo in photos:
        found.setdefault(stem_of(photo), []).append(photo)
    return found


def _named(source: Source, file: str, index: PhotoIndex) -> str | Problem | Note:
    """The photo that `imagePath` of a JSON means, or what to tell of it."""
    tree = _read(source, file)
    if not isinstance(tree, dict):
        return tree
    try:
        return index.find(str(tree["imagePath"]))
    except ValueError as error:
        remedy = _EMBEDDED if tree.get("imageData") else "put the photo into the images folder, or delete the JSON"
        return Problem(file, f"imagePath '{tree['imagePath']}': {error}", remedy)


def _read(source: Source, file: str) -> dict[str, Any] | Problem | Note:
    try:
        tree = read_json(file, max_mb=source.max_json_mb)
    except NotFound:
        return Problem(file, "the annotation file is missing", "add the file, or take the image out")
    except DataError as error:
        return Problem(file, str(error).removeprefix(f"{file}: ").rstrip("."), "export it again, or delete it")
    if isinstance(tree, dict) and isinstance(tree.get("shapes"), list) and isinstance(tree.get("imagePath"), str):
        return tree
    return Note(FOREIGN, file)


def _job(source: Source, photo: str, file: str, index: PhotoIndex) -> Job:
    return Job(stem_of(photo), lambda: _image(source, photo, file, index))


def _image(source: Source, photo: str, file: str, index: PhotoIndex) -> list[Item]:
    """One photo and the shapes of its JSON."""
    tree = _read(source, file)
    if not isinstance(tree, dict):
        return [tree]
    image = read_photo(source, photo)
    if isinstance(image, Problem):
        return [image]
    stated = (tree.get("imageHeight") or image.height, tree.get("imageWidth") or image.width)
    if stated != (image.height, image.width):
        reason = f"says height, width {stated}, the upright photo has {(image.height, image.width)}"
        return [Problem(file, reason, "make both the same: masks of another frame cannot be used")]
    collector = Collector(source, image)
    try:
        other = index.find(tree["imagePath"])
    except ValueError:
        collector.note(RENAMED, file)
    else:
        if other != photo:
            reason = f"imagePath means {other}, the JSON's own name {photo}"
            return [Problem(file, reason, "make both the same, or delete the JSON")]
    for label, where, codes in _objects(tree["shapes"], collector, file=file):
        size = [image.height, image.width]
        joined = coco.merge([{"size": size, "counts": code.encode("ascii")} for code in codes])
        collector.add(str(joined["counts"], "ascii"), category=label, file=file, where=where)
    return collector.items()


def _objects(shapes: list[Any], collector: Collector, *, file: str) -> list[tuple[str, str, list[str]]]:
    """(label, where, RLEs) an object, in the order of their first shapes; what is no mask is told at once."""
    objects = dict[tuple[Any, ...], tuple[str, str, list[str]]]()
    for number, shape in enumerate(shapes):
        where = f"shape {number} of {file}"
        try:
            rle, remark = _shape(shape, height=collector.image.height, width=collector.image.width)
        except (ValueError, TypeError) as error:
            collector.problem(file, f"shape {number}: {error}", _MEND)
            continue
        if remark:
            collector.note(remark, where)
        if rle:
            label, group = str(shape.get("label") or ""), shape.get("group_id")
            key = (number,) if group is None else (label, str(group))
            objects.setdefault(key, (label, where, []))[2].append(rle)
    return list(objects.values())


def _shape(shape: Any, *, height: int, width: int) -> tuple[str, str]:
    """RLE counts of a shape ('' for none) and a remark or ''. Raises ValueError on one that cannot be drawn."""
    if not isinstance(shape, dict):
        raise ValueError("it is no object")
    kind = shape.get("shape_type") or "polygon"  # labelme of before 2019 had no other
    if kind in _THIN:
        return "", NO_AREA
    if kind not in _DRAW:
        raise ValueError(f"unknown shape_type '{kind}'")
    return _DRAW[kind](shape, height, width)


def _polygon(shape: dict[str, Any], height: int, width: int) -> tuple[str, str]:
    return to_rle([flat_points(shape.get("points"))], height=height, width=width)


def _rectangle(shape: dict[str, Any], height: int, width: int) -> tuple[str, str]:
    """From two opposite corners, in any order."""
    x0, y0, x1, y1 = finite(flat_points(shape.get("points")), 4)
    box = [min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)]
    return rectangle(box, height=height, width=width)


def _circle(shape: dict[str, Any], height: int, width: int) -> tuple[str, str]:
    """From the centre and a point of the edge."""
    x, y, px, py = finite(flat_points(shape.get("points")), 4)
    radius = math.hypot(px - x, py - y)
    return ellipse([x, y, radius, radius], height=height, width=width)


def _mask(shape: dict[str, Any], height: int, width: int) -> tuple[str, str]:
    """A PNG in base64 whose pixels that are not 0 are the mask; `points`: its first and last pixel in the photo."""
    x0, y0, x1, y1 = (int(value) for value in finite(flat_points(shape.get("points")), 4))
    if not (0 <= x0 <= x1 < width and 0 <= y0 <= y1 < height):
        raise ValueError(f"'mask' of {x0}, {y0} .. {x1}, {y1} leaves the photo of {width} x {height}")
    wanted = (y1 - y0 + 1, x1 - x0 + 1)
    try:
        data = base64.b64decode(str(shape.get("mask")), validate=True)
        with open_picture(data, name="its value", what="mask", max_pixels=max(PILLOW_LIMIT, height * width)) as image:
            found = (image.height, image.width)
            part = np.asarray(image) if found == wanted else np.empty(0)  # what is no part of the photo is not decoded
    except (DataError, ValueError) as error:
        raise ValueError(f"'mask' is no PNG in base64 ({error})") from error
    if found != wanted:
        raise ValueError(f"'mask' has height, width {found}, its points say {wanted}")
    part = part[..., 0] if part.ndim == 3 else part
    full = np.zeros((height, width), bool)
    full[y0 : y1 + 1, x0 : x1 + 1] = part != 0
    return mask_to_rle(full)


_DRAW: dict[str, Callable[[dict[str, Any], int, int], tuple[str, str]]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "circle": _circle,
    "mask": _mask,
}
