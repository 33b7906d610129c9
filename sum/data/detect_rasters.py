"""Folders of photos and of masks: paired by name, told apart, and their values explained, by their pixels."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np

from sum.data.images import open_picture
from sum.data.listing import Candidate, Listing, part_of
from sum.data.sources import stem_of
from sum.errors import DataError
from sum.limits import PILLOW_LIMIT
from sum.storage import read_bytes

SAMPLE = 5  # masks of a folder whose pixels are looked at
FEW = 64  # colours or values: a photo has more
SHARE = 0.5  # of the files of the smaller folder that must have a partner
FOLDERS = 60  # that are compared with each other, the fullest first
_CLEAN = 0.5  # of the pixels above 0 that are 255 in a binary mask with soft edges
_OBJECTS = re.compile(r"object|instance", re.IGNORECASE)


def rasters(listing: Listing) -> Iterator[Candidate | tuple[str, str]]:
    """Every pair of folders, or of suffixes in one folder, that may be photos and their masks."""
    if listing.only or len(listing.images) < 1:
        return
    pairs = sorted(_pairs(listing), key=lambda pair: -pair[0])
    if not pairs:
        yield "raster", "no two folders (or suffixes of one) hold image files of the same names"
    taken = set[tuple[str, str]]()
    for _, photos, masks, tail in pairs:
        if any(_within(photos, one) and _within(masks, two) for one, two in taken):
            continue  # a part of a pair that is there already
        sample = _sample(listing, masks, tail)
        mode, keys, look = mode_of([listing.path(name) for name in sample])
        if not mode:
            yield "raster", f"{masks} beside {photos}: {look}"
            continue
        taken.add((photos, masks))
        yield from _candidates(listing, photos, masks, tail, mode, keys, look)


def _candidates(
    listing: Listing, photos: str, masks: str, tail: str, mode: str, keys: dict[str, object], look: str
) -> Iterator[Candidate]:
    """The pair as one entry, or one a list of names or part folder."""
    base: dict[str, object] = {"images": photos, "masks": masks, **keys}
    if mode != "binary":
        base["mode"] = mode
    if tail or photos == masks:
        base["mask_suffix"] = tail
    if photos == masks:
        base["image_suffix"] = _other_suffix(listing, photos, tail)
    named = _class_names(listing, masks) if mode == "color" else {}
    base |= named
    why = f"{masks} holds masks for the photos of {photos}: {look}"
    why += f", named by {named['labelmap']}" if named else ""
    rank = 7 + bool(_OBJECTS.search(masks))
    known = {stem_of(photo) for photo in listing.folders[photos]}
    lists = [name for name in listing.named(".txt") if _is_list(listing, name, known)]
    parts = [name for name in lists if part_of(name)[0]]
    if parts:
        for name in parts:
            part, split = part_of(PurePosixPath(name).name)
            yield Candidate(
                "raster", listing.root, f"{why}; {name} lists some", base | {"names": name}, part, split, rank
            )
        return
    folders = sorted({name.split("/")[0] for name in listing.folders[photos] if "/" in name})
    if folders and all(part_of(folder)[0] for folder in folders) and photos != masks:
        for folder in folders:
            part, split = part_of(folder)
            below = {"images": _full(photos, folder), "masks": _full(masks, folder)}
            yield Candidate("raster", listing.root, why, base | below, part, split, rank)
        return
    part, split = part_of(photos)
    yield Candidate("raster", listing.root, why, base, part, split, rank)


def _class_names(listing: Listing, masks: str) -> dict[str, object]:
    """Of an export of CVAT: its label map and, beside a folder of objects, the folder of their classes."""
    maps = [name for name in listing.named("labelmap.txt") if _within(masks, PurePosixPath(name).parent.as_posix())]
    if not maps:
        return {}
    if not _OBJECTS.search(PurePosixPath(masks).name):
        return {"labelmap": maps[0]}
    classes = re.sub(r"Object(?!.*Object)", "Class", masks)
    return {"labelmap": maps[0], "classes": classes} if classes != masks and classes in listing.folders else {}


def _pairs(listing: Listing) -> Iterator[tuple[int, str, str, str]]:
    """(files with a partner, folder of photos, folder of masks, ending of the masks' names)."""
    folders = sorted(listing.folders, key=lambda folder: (-len(listing.folders[folder]), folder))[:FOLDERS]
    names = {folder: _Names(listing.folders[folder]) for folder in folders}  # once a folder, not once a pair
    colours = functools.cache(lambda folder: _colours(listing.path(_full(folder, listing.folders[folder][0]))))
    for photos in folders:
        for masks in folders:
            same = photos == masks
            if not same and (_within(photos, masks) or _within(masks, photos)):
                continue
            if "" not in (part_of(photos)[0], part_of(masks)[0]) and part_of(photos)[0] != part_of(masks)[0]:
                continue  # masks of test/ are not of the photos of train/, whatever they are called
            count, tail = _match(names[photos], names[masks], same=same)
            small = min(len(listing.folders[photos]), len(listing.folders[masks])) / (2 if same else 1)
            # photos hold more colours than masks, by one file of each
            if count and count >= SHARE * small and (same or colours(photos) > max(FEW, colours(masks))):
                yield count, photos, masks, tail


class _Names:
    """The names of a folder's image files, taken apart for `_match`."""

    def __init__(self, names: list[str]) -> None:
        self.parts = [(stem_of(name), PurePosixPath(name).suffix) for name in names]
        self.stems = {stem for stem, _ in self.parts}
        self.jpegs = {stem for stem, suffix in self.parts if suffix.lower() in (".jpg", ".jpeg")}


def _match(photos: _Names, masks: _Names, *, same: bool) -> tuple[int, str]:
    """How many mask files have a photo's name and one ending; '' stands for the same name in another folder."""
    if not same:
        plain = sum(stem in photos.stems for stem, _ in masks.parts)
        if plain:
            return plain, ""
    tails = Counter[str]()
    known = photos.jpegs if same else photos.stems
    lengths = sorted({len(stem) for stem in known}, reverse=True)
    for stem, suffix in masks.parts:
        if same and suffix.lower() in (".jpg", ".jpeg"):
            continue
        most = len(stem) if same else len(stem) - 1
        end = next((length for length in lengths if length <= most and stem[:length] in known), 0)
        if end:
            tails[re.sub(r"\d", "?", stem[end:]) + suffix] += 1
    return (tails.most_common(1)[0][1], tails.most_common(1)[0][0]) if tails else (0, "")


def _colours(path: str) -> int:
    try:
        with open_picture(read_bytes(path), name=path, what="image", max_pixels=PILLOW_LIMIT) as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(np.int64)
    except DataError:
        return 0
    return len(np.unique(pixels @ (65536, 256, 1)))


def mode_of(paths: list[str]) -> tuple[str, dict[str, object], str]:
    """(mode or '' when these are no masks, further keys, what was seen) by the pixels of a few mask files."""
    values, depth, colours = set[int](), 0, 0
    clean, unreadable = True, list[str]()
    for path in paths:
        try:
            name = PurePosixPath(path).name
            with open_picture(read_bytes(path), name=name, what="mask", max_pixels=PILLOW_LIMIT) as image:
                pixels = np.asarray(image)
        except DataError as error:
            unreadable.append(str(error))  # the others tell what they are; the reader tells of this one
            continue
        if pixels.ndim == 3 and pixels.shape[-1] in (3, 4):
            flat = pixels[..., :3].reshape(-1, 3).astype(np.int64)
            if (flat != flat[:, :1]).any():
                colours = max(colours, len(np.unique(flat @ (65536, 256, 1))))
                continue
            pixels = pixels[..., 0]
        elif pixels.ndim == 3:
            pixels = pixels[..., 0]
        pixels = pixels.astype(np.int64) * (255 if pixels.dtype == bool else 1)
        depth = max(depth, int(pixels.max()))
        clean = clean and int((pixels == 255).sum()) >= _CLEAN * int((pixels > 0).sum())
        values |= set(np.unique(pixels).tolist()[: 4 * FEW])
    if len(unreadable) == len(paths):
        return "", {}, unreadable[0] if unreadable else "no file"
    return _meaning(values, depth=depth, colours=colours, clean=clean)


def _meaning(values: set[int], *, depth: int, colours: int, clean: bool) -> tuple[str, dict[str, object], str]:
    if colours > FEW:
        return "", {}, f"{colours} colours: photos, not masks"
    if colours:
        return "color", {}, f"{colours} colours, each a mask"
    if depth > 255:
        return "instance", {}, f"values up to {depth}: class * divisor + instance"
    if values <= {0, 255}:
        return "binary", {}, "values 0 and 255"
    if values <= {0, 1}:
        return "binary", {}, "values 0 and 1"
    if clean:
        return "binary", {}, "values 0 and 255 with soft edges"
    if len(values) <= FEW:
        drop: dict[str, object] = {"drop": [0, 255]} if 255 in values and len(values) > 2 else {}
        return "index", drop, f"{len(values)} values, up to {depth}, each a mask"
    return "", {}, f"{len(values)} grey values: photos, not masks"


def _is_list(listing: Listing, name: str, known: set[str]) -> bool:
    """Whether most lines of a text file are names of photos, with or without suffix. known: without."""
    lines = [line.strip() for line in read_bytes(listing.path(name))[:100_000].decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line][:200]
    return bool(lines) and sum(line in known or stem_of(line) in known for line in lines) >= 0.9 * len(lines)


def _sample(listing: Listing, masks: str, tail: str) -> list[str]:
    names = listing.folders[masks]
    if tail:
        pattern = re.compile(re.escape(tail).replace(r"\?", r"\d") + "$")
        names = [name for name in names if pattern.search(name)]
    return [_full(masks, name) for name in names[:: max(1, len(names) // SAMPLE)][:SAMPLE]]


def _other_suffix(listing: Listing, folder: str, tail: str) -> str:
    """The suffix of the photos that share a folder with their masks."""
    suffixes = Counter(PurePosixPath(name).suffix for name in listing.folders[folder] if not name.endswith(tail))
    return suffixes.most_common(1)[0][0] if suffixes else ""


def _within(folder: str, above: str) -> bool:
    return above == "." or folder == above or folder.startswith(f"{above}/")


def _full(folder: str, name: str) -> str:
    return name if folder == "." else f"{folder}/{name}"
