"""Label Studio's JSON export: brush masks in its own run-length code, polygons, rectangles and ellipses in per cent."""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from sum.data.collect import BARE, Collector
from sum.data.documents import read_json
from sum.data.outlines import ellipse, finite, flat_points, rectangle
from sum.data.photo_index import PhotoIndex
from sum.data.rle import mask_to_rle, to_rle
from sum.data.sources import Item, Job, Note, Problem, Source, is_image_name, read_photo, stem_of, told
from sum.errors import DataError
from sum.storage import join, list_files

SEVERAL = "Label Studio annotation left out: the ground truth, or else the latest of the task, is used"
CANCELLED = "Label Studio annotation that was cancelled or skipped left out"
NO_REGION = "Label Studio result that is no region (text, choice, key point, relation) left out"
_GEOMETRY = {"brush", "polygon", "rectangle", "ellipse", "labels"}
_MEND = "mend the task in Label Studio and export again"
_HALF = 127  # of the brush's alpha: its soft edge is cut in the middle


def label_studio_layout(source: Source) -> list[Job]:
    """The tasks of the export `annotations` and the photos below `images`.

    Raises DataError when the file is not the JSON export (JSON-MIN and others are named), NotFound without it.
    """
    path = join(source.root, source.annotations)
    tasks = _tasks(read_json(path, max_mb=source.max_json_mb), path=path)
    index = PhotoIndex(filter(is_image_name, list_files(join(source.root, source.folder))))
    jobs, taken = list[Job](), dict[str, Any]()
    for number, task in enumerate(tasks):
        name = task.get("id", f"number {number}")
        try:
            photo = index.find(photo_path(task["data"]))
        except ValueError as error:
            remedy = "put the photo into the images folder (the JSON export holds none), or delete the task"
            jobs.append(told(Problem(path, f"task {name}: {error}", remedy)))
            continue
        if stem_of(photo) in taken:
            reason = f"tasks {taken[stem_of(photo)]} and {name} are of the same photo {photo}"
            jobs.append(told(Problem(path, reason, "delete one of the two tasks")))
        else:
            taken[stem_of(photo)] = name
            jobs.append(_job(source, photo, task, path))
    return jobs


def photo_path(data: dict[str, Any]) -> str:
    """The path of a task's photo: of `/data/upload/1/ab-name.jpg`, `/data/local-files/?d=a/name.jpg`, `s3://...`.

    Raises ValueError when the task has none.
    """
    texts = [value for value in data.values() if isinstance(value, str)]
    for text in texts:
        parts = urlsplit(text) if "://" in text or text.startswith("/data/") else None
        local = parse_qs(parts.query).get("d", [""])[0] if parts else ""
        path = local or (unquote(parts.path) if parts else text)
        if is_image_name(path):
            return path
    raise ValueError(f"its data name no photo: {json.dumps(data)[:80]}")


def _tasks(tree: object, *, path: str) -> list[dict[str, Any]]:
    """The tasks of an export, each with `data` and a list of annotations."""
    if not isinstance(tree, list) or not tree or not all(isinstance(task, dict) for task in tree):
        raise DataError(f"{path}: not a Label Studio export: wanted a list of tasks. Export as JSON.")
    for task in tree:
        rows = task.setdefault("annotations", task.get("completions"))  # completions: before version 1.0
        if not isinstance(task.get("data"), dict) or not isinstance(rows, list):
            raise DataError(
                f"{path}: not Label Studio's JSON export: a task lacks 'data' or 'annotations' "
                "(JSON-MIN leaves them out). Export as JSON."
            )
    return tree


def _job(source: Source, photo: str, task: dict[str, Any], path: str) -> Job:
    return Job(stem_of(photo), lambda: _image(source, photo, task, path))


def _image(source: Source, photo: str, task: dict[str, Any], path: str) -> list[Item]:
    """One photo and the regions of the annotation that counts."""
    where = f"task {task.get('id')} of {path}"
    chosen, notes = _choose(task["annotations"], where=where)
    if chosen is None:
        return [*notes, Note(BARE, photo)]
    image = read_photo(source, photo)
    if isinstance(image, Problem):
        return [image]
    collector = Collector(source, image)
    for number, (region, label) in enumerate(_regions(chosen.get("result"), collector, where=where)):
        place = f"region {region.get('id', number)} of {where}"
        try:
            drawn = _draw(region, height=image.height, width=image.width)
        except (ValueError, TypeError, KeyError) as error:
            collector.problem(path, f"{place.removesuffix(f' of {path}')}: {error}", _MEND)
            continue
        collector.take(drawn, category=label, file=path, where=place)
    return [*collector.items(), *notes]


def _choose(rows: list[Any], *, where: str) -> tuple[dict[str, Any] | None, list[Item]]:
    """The annotation that counts, if there is one, and a note for every other."""
    good = [row for row in rows if isinstance(row, dict) and not row.get("was_cancelled")]
    notes: list[Item] = [Note(CANCELLED, where) for _ in range(len(rows) - len(good))]
    if not good:
        return None, notes
    times = [(bool(row.get("ground_truth")), str(row.get("updated_at") or row.get("created_at") or "")) for row in good]
    best = max(range(len(good)), key=lambda number: (*times[number], number))
    return good[best], [*notes, *(Note(SEVERAL, where) for _ in range(len(good) - 1))]


def _regions(result: object, collector: Collector, *, where: str) -> list[tuple[dict[str, Any], str]]:
    """(region, label): results of one id tell about one region, the first with a shape draws it."""
    if not isinstance(result, list) or not all(isinstance(row, dict) for row in result):
        collector.problem(where, "'result' is no list of objects", _MEND)
        return []
    shapes, labels = dict[Any, dict[str, Any]](), dict[Any, str]()
    for number, row in enumerate(result):
        value = row.get("value")
        kind = str(row.get("type"))
        if not isinstance(value, dict) or kind.removesuffix("labels") not in _GEOMETRY | {""}:
            if str(row.get("id")) not in shapes:
                collector.note(NO_REGION, where)
            continue
        key = str(row.get("id", number))
        shapes.setdefault(key, row)
        names = [
            names for name, names in value.items() if name.endswith("labels") and isinstance(names, list) and names
        ]
        labels.setdefault(key, str(names[0][0])) if names else None
    return [(row, labels.get(key, "")) for key, row in shapes.items()]


def _draw(region: dict[str, Any], *, height: int, width: int) -> tuple[str, str]:
    """RLE counts of a region ('' for none) and a remark. Raises ValueError on one that cannot be drawn."""
    value, stated = region["value"], (region.get("original_height"), region.get("original_width"))
    if stated != (height, width):
        raise ValueError(f"drawn on height, width {stated}, the upright photo has {(height, width)}")
    if region.get("image_rotation"):
        raise ValueError(f"drawn on a photo turned by {region['image_rotation']} degrees in the editor")
    if "rle" in value:
        mask = decode_brush(value["rle"], height=height, width=width)
        return mask_to_rle(mask)
    size = {"height": height, "width": width}
    x_unit, y_unit = width / 100, height / 100
    if "points" in value:
        flat = flat_points(value["points"])
        return to_rle([[share * (y_unit if odd % 2 else x_unit) for odd, share in enumerate(flat)]], **size)
    draw, keys = (
        (ellipse, ("x", "y", "radiusX", "radiusY"))
        if "radiusX" in value
        else (rectangle, ("x", "y", "width", "height"))
    )
    x, y, wide, high, degrees = finite([*(value.get(key) for key in keys), value.get("rotation") or 0], 5)
    return draw([x * x_unit, y * y_unit, wide * x_unit, high * y_unit], turn=math.radians(degrees), **size)


def decode_brush(code: object, *, height: int, width: int) -> np.ndarray:
    """Label Studio's run-length code of RGBA pixels -> `[height, width]` bool: alpha above half.

    A stream of bits: 32 the count of values, 5 their bits - 1, four times 4 the bits - 1 of the run sizes; then blocks
    of 1 bit (run or literals), 2 bits (which run size), the length - 1, and the value or values. Raises ValueError.
    """
    if not isinstance(code, list) or not all(type(value) is int and 0 <= value <= 255 for value in code):
        raise ValueError("'rle' is no list of bytes")
    bits, at, wanted = np.unpackbits(np.asarray(code, dtype=np.uint8)), 53, height * width * 4
    if len(bits) < at or (count := _number(bits, 0, 32)) != wanted:
        raise ValueError(f"'rle' is not of {height} x {width} RGBA pixels")
    word, sizes = _number(bits, 32, 5) + 1, [_number(bits, 37 + 4 * index, 4) + 1 for index in range(4)]
    if word != 8:
        raise ValueError(f"'rle' holds values of {word} bits, wanted 8")
    values, done = np.zeros(count, dtype=np.uint8), 0
    while done < count:
        if at + 3 > len(bits):
            raise ValueError("'rle' ends too early")
        size = sizes[_number(bits, at + 1, 2)]
        length = _number(bits, at + 3, size) + 1
        run, at = bool(bits[at]), at + 3 + size
        read = word if run else word * length
        if at + read > len(bits) or done + length > count:
            raise ValueError("'rle' ends too early, or runs beyond the photo")
        values[done : done + length] = np.packbits(bits[at : at + read])
        done, at = done + length, at + read
    alpha: np.ndarray = values.reshape(height, width, 4)[..., 3] > _HALF
    return alpha


def _number(bits: np.ndarray, start: int, size: int) -> int:
    """The number in `size` bits, the highest first."""
    return int("".join(map(str, bits[start : start + size].tolist())) or "0", 2)
