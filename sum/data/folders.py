"""Folders of image files: which of their files are meant, under which id, and the layout of photos without masks."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from sum.data.archives import REMEDY, list_photos
from sum.data.documents import read_lines
from sum.data.sources import (
    SUFFIXES,
    Item,
    Job,
    Note,
    Problem,
    Sample,
    Source,
    is_image_name,
    read_photo,
    stem_of,
    told,
)
from sum.errors import DataError
from sum.storage import join, member_name

STRAY = "file that is no image by its suffix passed over"
UNMATCHED = "image file whose name ends otherwise than image_suffix and mask_suffix passed over"
_PAIR = "add the file, or take the name out"


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one folder that are meant, below `source.root`."""

    place: str  # below the root: the folder up to its first `*`
    base: str  # the same with the root
    files: dict[str, list[str]] = field(default_factory=dict)  # id -> paths below `base`, sorted
    findings: list[Item] = field(default_factory=list)


def images_layout(source: Source) -> list[Job]:
    """A folder of photos without masks."""
    listing = list_folder(source, source.folder, suffix=source.image_suffix)
    jobs, photos = [told(item) for item in listing.findings], listing.files
    within = replace(source, images=listing.place)
    for name in listed_names(source, known=photos) or sorted(photos):
        if name in photos:
            jobs.append(Job(name, functools.partial(_photo, within, photos[name][0], name=name)))
        else:
            jobs.append(absent(source, name, folder=source.folder))
    return jobs


def _photo(source: Source, relative: str, *, name: str) -> list[Item]:
    image = read_photo(source, relative, name=name)
    return [image if isinstance(image, Problem) else Sample(image, ())]


def list_folder(
    source: Source, folder: str, *, suffix: str, several: bool = False, also: tuple[str, str] | None = None
) -> Listing:
    """The image files of a folder that end with `suffix`, by id: what stands for each `*` of the folder, then the path
    below it without suffix.

    suffix: `.jpg` or `_im.jpg` in any case, or `_im` for every image suffix; `?` and `*` are wildcards, of which the
    id's part is as long as it can be. several: an id may have more than one file. also: (folder, suffix) of the other
    half of the set; its files are not told as left over. Files whose suffix is no image's are told when no `suffix`
    says what is meant, image files that end otherwise always. Raises DataError when no file is left.
    """
    place, pattern = _pattern(folder)
    base, ending = join(source.root, place), _ending(suffix)
    others = [(_pattern(also[0]), _ending(also[1]))] if also else []
    listing = Listing(place, base)
    names, refused = list_photos(base)
    listing.findings.extend(Problem(path, reason, REMEDY) for path, reason in refused)
    for relative in names:
        inside = pattern.fullmatch(member_name(relative))
        if not inside or _of_other(join(place, relative), folder, also):
            continue
        if not _is_text(relative):
            listing.findings.append(Problem(join(base, readable(relative)), *_ENCODING))
            continue
        *parts, rest = inside.groups()
        fit = ending.fullmatch(rest)
        if fit and is_image_name(rest):
            _take(listing, "/".join((*parts, fit[1])), relative, several=several)
        elif is_image_name(rest):
            taken = any(
                of.fullmatch(member_name(relative)) and end.fullmatch(rest) for (at, of), end in others if at == place
            )
            if not taken:
                listing.findings.append(Note(UNMATCHED, join(base, relative)))
        elif not suffix:
            listing.findings.append(Note(STRAY, join(base, relative)))
    if not listing.files:
        wanted = f" whose name ends with '{suffix}'" if suffix else ""
        raise DataError(f"data set '{source.name}': {join(source.root, folder)} holds no image file{wanted}")
    return listing


_ENCODING = ("its name is not UTF-8 text: it cannot be written to the manifest", "rename the file")


def _take(listing: Listing, name: str, relative: str, *, several: bool) -> None:
    """One more file of an id."""
    files = listing.files.setdefault(name, [])
    if files and not several:
        reason = f"has the same name as {files[0]} but for the suffix"
        path = join(listing.base, relative)
        listing.findings.append(Problem(path, reason, "rename or delete one of the two"))
    else:
        files.append(relative)


def _pattern(folder: str) -> tuple[str, re.Pattern[str]]:
    """`a/*/b` -> the folder `a` and what a path below it must be; a group a `*`, the last one the rest."""
    parts = [part for part in PurePosixPath(folder).parts if part != "/"]
    first = next((index for index, part in enumerate(parts) if "*" in part), len(parts))
    tail = "".join(f"{re.escape(part)}/".replace(r"\*", "([^/]*)") for part in parts[first:])
    return "/".join(parts[:first]) or ".", re.compile(f"{tail}(.+)", re.DOTALL)


def _ending(suffix: str) -> re.Pattern[str]:
    """What a path must be to end with `suffix`; the group is its id."""
    kinds = "|".join(re.escape(kind) for kind in sorted(SUFFIXES))
    exact = PurePosixPath(f"x{suffix}").suffix.lower() in SUFFIXES
    text = re.escape(suffix).replace(r"\?", "[^/]").replace(r"\*", "[^/]*")
    return re.compile(f"(.+){text}" if exact else f"(.+){text}(?:{kinds})", re.IGNORECASE | re.DOTALL)


def _of_other(path: str, folder: str, also: tuple[str, str] | None) -> bool:
    """Whether a file below `folder` lies in the folder of the other half, when that is the deeper one."""
    if also is None or "*" in also[0]:
        return False
    mine, other = PurePosixPath(folder), PurePosixPath(also[0])
    return other != mine and mine in other.parents and PurePosixPath(path).is_relative_to(other)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def readable(name: str) -> str:
    r"""A file name with `\xNN` in place of the bytes that are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def listed_names(source: Source, *, known: Collection[str]) -> list[str]:
    """The ids of the source's list, each once, in its order; none when it has no list.

    A line may carry the suffix of its photo or mask, or an image suffix. known: the ids of photos: a line that is one
    is taken as it stands.
    """
    if source.names is None:
        return []
    lines = read_lines(join(source.root, source.names), lines=source.lines, max_mb=source.max_json_mb)
    endings = [_ending(suffix) for suffix in (source.image_suffix, source.mask_suffix)]
    return list(dict.fromkeys(line if line in known else _bare(line, endings) for line in lines))


def _bare(line: str, endings: list[re.Pattern[str]]) -> str:
    """A line of a list without the ending of a file name."""
    fits = [fit[1] for fit in (ending.fullmatch(line) for ending in endings) if fit]
    return fits[0] if fits else stem_of(line) if is_image_name(line) else line


def absent(source: Source, name: str, *, folder: str) -> Job:
    """A job that says that a file is not there which a list or a partner asks for."""
    asked = f"it is listed in {source.names}" if source.names else "the file of that name in the other folder needs it"
    return told(Problem(join(source.root, folder, name), f"no image file of this name; {asked}", _PAIR))
