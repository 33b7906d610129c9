"""Masks drawn as image files beside the photos: one file an image or several, one mask a file or several."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from sum.data.collect import Collector
from sum.data.folders import absent, list_folder, listed_names
from sum.data.label_map import read_label_map
from sum.data.mask_files import MODES, Drawn
from sum.data.records import ImageRecord
from sum.data.rle import resize_rle
from sum.data.sources import Item, Job, Problem, Source, read_photo, told
from sum.errors import DataError
from sum.storage import NotFound, join, read_bytes

MISFIT = "mask of another size than its photo left out"
RESIZED = "mask of another size than its photo resized to it"
UNTURNED = "photo whose orientation tag is ignored: only so its mask fits"
_EXPORT = "export the mask again, or set `mode` and `threshold` of the data set to what its pixels mean"


@dataclass(frozen=True, slots=True)
class _Pair:
    """A photo and its mask files; paths below `source.images` and `source.masks`, which hold no `*` any more."""

    name: str
    photo: str
    masks: tuple[str, ...]


def raster_layout(source: Source) -> list[Job]:
    """A folder of photos and a folder of mask files (or one of both), paired by name without suffix."""
    several = any(wild in source.mask_suffix for wild in "?*")
    photos = list_folder(source, source.folder, suffix=source.image_suffix, also=(source.masks, source.mask_suffix))
    masks = list_folder(
        source, source.masks, suffix=source.mask_suffix, several=several, also=(source.folder, source.image_suffix)
    )
    within = replace(source, images=photos.place, masks=masks.place, colours=read_label_map(source))
    jobs = [told(item) for item in dict.fromkeys((*photos.findings, *masks.findings))]
    for name in listed_names(source, known=photos.files) or sorted(photos.files.keys() | masks.files.keys()):
        if name in photos.files and name in masks.files:
            pair = _Pair(name, photos.files[name][0], tuple(masks.files[name]))
            jobs.append(Job(name, functools.partial(_read_pair, within, pair)))
        else:
            jobs.append(absent(source, name, folder=source.masks if name in photos.files else source.folder))
    return jobs


def _read_pair(source: Source, pair: _Pair) -> list[Item]:
    """One photo and its mask files."""
    drawn, items = list[Drawn](), list[Item]()
    for relative in pair.masks:
        found = _read_mask(source, join(source.root, source.masks, relative))
        if isinstance(found, Drawn):
            drawn.append(found)
        else:
            items.append(found)
    image = read_photo(source, pair.photo, name=pair.name, frames=[mask.hw for mask in drawn])
    if isinstance(image, Problem):
        return [image, *items]
    collector = Collector(source, image)
    faults = [fault for mask in drawn for fault in _collect(collector, mask, source=source)]
    if image.exif != source.exif:
        collector.note(UNTURNED, image.path)
    found_all = collector.items()
    only_bad = len(faults) == len(drawn)  # then that is all there is to tell: no 'image without a mask' beside it
    return [*([] if only_bad else found_all), *faults, *items]


def _read_mask(source: Source, file: str) -> Drawn | Problem:
    """The masks of one file, in its own frame."""
    try:
        return MODES[source.mode](read_bytes(file), file, source)
    except NotFound:
        return Problem(file, "the mask is missing", "add the file, or take its photo out")
    except DataError as error:
        return Problem(file, str(error).removeprefix(f"{file}: "), _EXPORT)


def _collect(collector: Collector, drawn: Drawn, *, source: Source) -> list[Problem]:
    """Hand the masks of one file to the collector; returns the problem if they do not fit the photo."""
    image, file = collector.image, drawn.file
    frame = (image.height, image.width)
    fit = drawn.hw == frame
    turned = not fit and drawn.hw == frame[::-1]
    if not fit and source.on_size_mismatch == "skip":
        collector.note(MISFIT, file)
        return []
    if not fit and (turned or source.on_size_mismatch == "error"):
        return [_misfit(image, drawn, turned=turned)]
    if not fit:
        collector.note(RESIZED, file)
    for reason in drawn.remarks:
        collector.note(reason, file)
    for category, rle in drawn.masks:
        code = resize_rle(rle, drawn.hw, to=frame)
        collector.add(code, category=category or source.task, file=file, where=f"{category} of {file}".strip())
    return []


def _misfit(image: ImageRecord, drawn: Drawn, *, turned: bool) -> Problem:
    reason = f"the mask has height, width {drawn.hw}, its upright photo {(image.height, image.width)}"
    if image.exif == "ignore":
        reason = reason.replace("upright photo", "photo as stored")
    remedy = "turn the mask as the photo's EXIF tag says" if turned else "export the mask at the photo's size"
    return Problem(drawn.file, reason, remedy)
