"""SA-1B as it is downloaded: sa_N.jpg beside sa_N.json, in a folder or in tar shards, which stay packed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sum.data.archives import REMEDY, list_photos
from sum.data.collect import Collector
from sum.data.documents import of_one_image, read_lines
from sum.data.places import Found, open_photo
from sum.data.rle import EMPTY, to_rle
from sum.data.sources import Item, Job, Note, Problem, Sample, Source, is_image_name, told
from sum.errors import DataError
from sum.storage import join, member_name

STRAY = "file that is neither photo nor JSON passed over"
_MEND = "download the file again, or delete it"


@dataclass(slots=True)
class _Pair:
    """Where the photo and the JSON of an image are, below the folder of photos; '' for nowhere."""

    photo: str = ""
    label: str = ""


def sa1b_layout(source: Source) -> list[Job]:
    """Photos and JSON files below a folder of the root and in its tars, matched by their last name without suffix.

    With split unlabelled the photos alone, whatever JSON lies beside them; else each needs its masks. Raises DataError
    when there is no photo at all, NotFound without the folder.
    """
    folder = join(source.root, source.folder)
    files, refused = list_photos(folder)
    pairs, jobs = dict[str, _Pair](), [told(Problem(path, reason, REMEDY)) for path, reason in refused]
    for address in files:
        jobs += _sort_in(source, address, pairs=pairs)
    if not any(pair.photo for pair in pairs.values()):
        raise DataError(f"data set '{source.name}': {folder} holds no photo")
    for stem in _listed(source) or [stem for stem, pair in pairs.items() if pair.photo or source.split != "unlabelled"]:
        jobs.append(_job(source, stem, pairs.get(stem, _Pair())))
    return jobs


def _sort_in(source: Source, address: str, *, pairs: dict[str, _Pair]) -> list[Job]:
    """Put a file with its partner, or tell why not; address: below the folder of photos."""
    path, name = join(source.root, source.folder, address), PurePosixPath(member_name(address))
    which = "photo" if is_image_name(address) else "label"
    if which == "label" and name.suffix.lower() != ".json":
        return [told(Note(STRAY, path))]
    pair = pairs.setdefault(name.stem, _Pair())
    if getattr(pair, which):
        return [told(Problem(path, f"has the same name as {getattr(pair, which)}", "delete one of the two"))]
    setattr(pair, which, address)
    return []


def _listed(source: Source) -> list[str]:
    """The names of the source's list, each once, as SA-1B's files have them: sa_N; none when it has no list."""
    if source.names is None:
        return []
    lines = read_lines(join(source.root, source.names), lines=source.lines, max_mb=source.max_json_mb)
    paths = [PurePosixPath(line) for line in lines]
    return list(dict.fromkeys(path.stem if is_image_name(path.name) else path.name for path in paths))


def _job(source: Source, stem: str, pair: _Pair) -> Job:
    """A job for one image, or one that tells what of it is not there."""
    bare = source.split == "unlabelled"
    if pair.photo and (pair.label or bare):
        return Job(stem, functools.partial(_read, source, stem, pair))
    path, there = join(source.root, source.folder, pair.photo or pair.label or stem), pair.photo or pair.label
    if not there:
        return told(Problem(path, f"no photo of this name; it is listed in {source.names}", "add it, or unlist it"))
    reason = "no JSON of this name, and its masks are wanted" if pair.photo else "no photo of this name"
    return told(Problem(path, reason, "add the file, or take this one away"))


def _read(source: Source, stem: str, pair: _Pair) -> list[Item]:
    """Read one photo and, unless it is to be unlabelled, the masks of its JSON."""
    image = open_photo(source, Found(source.folder, pair.photo), name=stem)
    if isinstance(image, Problem):
        return [image]
    if source.split == "unlabelled":
        return [Sample(image, ())]
    file = join(source.root, source.folder, pair.label)
    tree = of_one_image(file, max_mb=source.max_json_mb)
    if isinstance(tree, Problem):
        return [tree]
    rows = tree.get("annotations") if isinstance(tree, dict) else None
    about = tree.get("image") if isinstance(tree, dict) else None
    if not isinstance(about, dict) or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return [Problem(file, "not a JSON of SA-1B: it lacks 'image' or a list 'annotations' of objects", _MEND)]
    stated, found = (about.get("height"), about.get("width")), (image.height, image.width)
    if stated != found:
        reason = f"it says height, width {stated}, the upright photo has {found}"
        return [Problem(file, reason, "download photo and JSON again")]
    collector = Collector(source, image)
    for row in rows:
        _add(collector, row, file=file)
    return collector.items()


def _add(collector: Collector, row: dict[str, Any], *, file: str) -> None:
    """One mask of a JSON file, or what there is to tell about it."""
    where, area = f"annotation {row.get('id')} of {file}", row.get("area", 1)
    if isinstance(area, int | float) and area <= 0:
        return collector.note(EMPTY, where)
    try:
        rle, remark = to_rle(row.get("segmentation"), height=collector.image.height, width=collector.image.width)
    except ValueError as error:
        return collector.problem(file, f"{where}: {error}", _MEND)
    if remark:
        collector.note(remark, where)
    if rle:
        collector.add(rle, category="", file=file, where=where)
    return None
