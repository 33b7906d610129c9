"""YOLO-seg: a text file a photo, a line an object: class number, then a polygon as shares of width and height."""

from __future__ import annotations

import math
from pathlib import PurePosixPath

import yaml

from sum.data.collect import BARE, Collector
from sum.data.documents import BadDocument, read_document
from sum.data.rle import to_rle
from sum.data.sources import Item, Job, Note, Problem, Source, is_image_name, read_photo, stem_of, told
from sum.errors import DataError
from sum.storage import NotFound, join, list_files

BOXES = "line(s) of 5 numbers: these are boxes, not masks"
_EXPORT = "export the set for segmentation (polygons), not for detection"
_MEND = "export the file again, or delete the line"
_PLAIN = "write the names out, with `names` a list or numbers and names"
_SLACK = 0.01  # of the side: how far outside the photo a rounded polygon may reach


def yolo_layout(source: Source) -> list[Job]:
    """The photos below `images` and the label files below `masks`; photos without one are counted as background.

    Class names come from `annotations`: data.yaml (`names` a list or a dict) or a text file with one a line; '' for
    none. Raises DataError when it has no names, NotFound without one of the places.
    """
    names = class_names(source)
    photos, jobs = dict[str, str](), list[Job]()
    folder, labels = join(source.root, source.folder), join(source.root, source.masks)
    for name in filter(is_image_name, list_files(folder)):
        if stem_of(name) in photos:
            reason = f"has the same name as {photos[stem_of(name)]} but for the suffix"
            jobs.append(told(Problem(join(folder, name), reason, "rename or delete one of the two")))
        photos.setdefault(stem_of(name), name)
    if not photos:
        raise DataError(f"data set '{source.name}': {folder} holds no image file")
    files = {stem_of(name): name for name in list_files(labels) if name.lower().endswith(".txt")}
    for stem, file in files.items():
        if stem in photos:
            jobs.append(_job(source, photos[stem], join(labels, file), names))
        elif join(labels, file) != join(source.root, source.annotations):
            reason = f"no image file of this name in {folder}"
            jobs.append(told(Problem(join(labels, file), reason, "add the photo, or delete the label file")))
    return [*jobs, *(told(Note(BARE, join(folder, photos[stem]))) for stem in photos if stem not in files)]


def class_names(source: Source) -> dict[int, str] | None:
    """Class number -> name; None without a file of names. Raises DataError."""
    if not source.annotations:
        return None
    path = join(source.root, source.annotations)
    text = read_document(path, max_mb=source.max_json_mb).decode("utf-8", "replace")
    if PurePosixPath(path).suffix.lower() not in (".yaml", ".yml"):
        return dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
    try:
        tree = yaml.load(text, Loader=_NoMerge)  # noqa: S506  # a SafeLoader
        found = tree["names"]
        pairs = found.items() if isinstance(found, dict) else enumerate(found)
        return {int(key): _class_name(name) for key, name in pairs}
    except _Merged as error:
        raise DataError(
            f"{path}: line {error.args[0]}: a merge key (<<) can make gigabytes of a few lines; {_PLAIN}"
        ) from None
    except (yaml.YAMLError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a data.yaml of YOLO: 'names' is neither a list nor numbers and names") from error


class _Merged(Exception):
    """At this line there is a merge key."""


class _NoMerge(yaml.SafeLoader):
    """Refuses `<<`, whose pairs are copied before anyone can count them; plain aliases share what they name."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise _Merged(key.start_mark.line + 1)


def _class_name(name: object) -> str:
    """Raises TypeError on a list or dict: written out, aliases of YAML are megabytes from a few bytes."""
    if not isinstance(name, str | int):
        raise TypeError("a class name is neither text nor a number")
    return str(name)


def _job(source: Source, photo: str, file: str, names: dict[int, str] | None) -> Job:
    return Job(stem_of(photo), lambda: _image(source, photo, file, names))


def _image(source: Source, photo: str, file: str, names: dict[int, str] | None) -> list[Item]:
    """One photo and the polygons of its label file."""
    try:
        text = read_document(file, max_mb=source.max_json_mb).decode("ascii")
        lines = [line.split() for line in text.splitlines()]
    except BadDocument as error:
        return [error.problem]
    except NotFound:
        return [Problem(file, "the label file is missing", "add the file, or take the image out")]
    except UnicodeDecodeError:
        return [Problem(file, "not a text of numbers", "export the file again")]
    image = read_photo(source, photo)
    if isinstance(image, Problem):
        return [image]
    collector, boxes = Collector(source, image), 0
    for number, words in enumerate(lines, 1):
        if len(words) == 5:
            boxes += 1
        elif words:
            _add(collector, words, names, where=(file, number))
    if boxes:
        collector.problem(file, f"{boxes} {BOXES}", _EXPORT)
    return collector.items()


def _add(collector: Collector, words: list[str], names: dict[int, str] | None, *, where: tuple[str, int]) -> None:
    """One line: its mask, or what there is to tell about it. where: file and line."""
    (file, number), image = where, collector.image
    try:
        category, shares = parse_line(words)
        if names is not None and category not in names:
            raise ValueError(f"class {category} is not in the list of names")
        flat = [share * (image.height if odd % 2 else image.width) for odd, share in enumerate(shares)]
        drawn = to_rle([flat], height=image.height, width=image.width)
    except ValueError as error:
        return collector.problem(file, f"line {number}: {error}", _MEND)
    name = names[category] if names is not None else str(category)
    collector.take(drawn, category=name, file=file, where=f"line {number} of {file}")
    return None


def parse_line(words: list[str]) -> tuple[int, list[float]]:
    """Class number and x, y, x, y, ... in 0..1. Raises ValueError on any other line."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"wanted numbers, found '{' '.join(words)[:60]}'") from None
    category, shares = values[0], values[1:]
    if not math.isfinite(category) or category < 0 or category != int(category):
        raise ValueError(f"the class '{words[0]}' is no whole number")
    if len(shares) % 2:
        raise ValueError(f"{len(shares)} numbers behind the class are no pairs (a score at the end marks a prediction)")
    if len(shares) < 6:
        raise ValueError(f"{len(shares)} numbers behind the class are no polygon of at least 3 points")
    if not all(-_SLACK <= share <= 1 + _SLACK for share in shares):  # NaN as well
        raise ValueError("a coordinate is not in 0..1: YOLO's are shares of width and height")
    return int(category), [min(max(share, 0.0), 1.0) for share in shares]
