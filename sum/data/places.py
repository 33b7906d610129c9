"""Where the photos of an annotation file are: `*` bound to the same text, several folders searched in turn."""

from __future__ import annotations

import difflib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from PIL import Image

from sum.data.archives import REMEDY, list_photos
from sum.data.records import ImageRecord
from sum.data.sources import Problem, Source, read_photo, stem_of
from sum.errors import DataError
from sum.storage import join, list_files, member_name, read_bytes

UNTURNED = "photo whose EXIF orientation is ignored: only so do its masks fit"
SHOWN = 40  # names in a message


@dataclass(frozen=True, slots=True)
class Place:
    """An annotation file, the folders of its photos, and the text that `*` stands for ('' without one)."""

    annotations: str  # a whole address
    folders: tuple[str, ...]  # below the root
    text: str

    def named(self, stem: str) -> str:
        """The id of an image within the data set."""
        return f"{self.text}/{stem}" if self.text else stem


@dataclass(frozen=True, slots=True)
class Found:
    """A photo that is there: its folder below the root, and its path below that folder."""

    folder: str
    relative: str

    @property
    def path(self) -> str:
        """Below the root, the same whichever folder of the place it was found in; an archive is a folder."""
        return PurePosixPath(self.folder, member_name(self.relative)).as_posix()


def places(source: Source) -> list[Place]:
    """The annotation files of a source with the folders of each, in the order of their names.

    Raises DataError when `*` matches no file, or stands in `images` alone.
    """
    folders = (source.images,) if isinstance(source.images, str) else source.images
    pattern = source.annotations
    if "*" not in pattern:
        starred = [folder for folder in folders if "*" in folder]
        if starred:
            reason = f"images '{starred[0]}' has a *, annotations '{pattern}' has none"
            raise DataError(f"data set '{source.name}': {reason}; wanted the same * in both, or a list of folders")
        return [Place(join(source.root, pattern), folders, "")]
    first, *others = (re.escape(part) for part in pattern.split("*"))
    matcher = re.compile(first + "([^/]+)" + r"\1".join(others))
    found = [(matcher.fullmatch(relative), relative) for relative in list_files(source.root)]
    texts = {match[1]: relative for match, relative in found if match}
    if not texts:
        raise DataError(f"data set '{source.name}': no file below {source.root} is named as annotations '{pattern}'")
    return [
        Place(join(source.root, relative), tuple(folder.replace("*", text) for folder in folders), text)
        for text, relative in sorted(texts.items())
    ]


def tidy(file_name: str) -> str:
    """A file name as tools write it, with `./`, `/home/me/` or backslashes of Windows -> a relative path with `/`."""
    return PurePosixPath(file_name.replace("\\", "/").lstrip("/")).as_posix()


def find_photos(
    source: Source, place: Place, names: Sequence[str]
) -> tuple[dict[str, Found | str | None], list[Problem]]:
    """Name -> where its photo is, by path below one of the folders in turn or else by its last part alone.

    Tar archives are folders. Second: what of them was refused, told only when a name has no photo.

    names: as `tidy` returns them. A text says why a name could mean several files, or a file be meant by several; None:
    no folder has it. With `only_found`, once some names agree with their folders, a file of the same last part
    elsewhere is another photo.
    """
    files = _files(source, place, {name.rpartition("/")[2] for name in names})
    wanted = Counter(name.rpartition("/")[2] for name in names)
    found, loose = dict[str, Found | str | None](), list[str]()
    for name in names:
        last = name.rpartition("/")[2]
        tied = files.exact.get(name) or _alone(_near(name, files), asked=1)
        if tied is None:
            loose.append(name)
            tied = _alone(files.having.get((last,), []), asked=wanted[last])
        found[name] = tied
    if source.only_found and len(loose) < len(names):
        found |= {name: None for name in loose if "/" in name}
    claims = Counter((name in files.exact, file.path) for name, file in found.items() if isinstance(file, Found))
    for name, file in found.items():
        if isinstance(file, Found):
            others = 0 if name in files.exact else claims[True, file.path]
            found[name] = _alone([file], asked=claims[name in files.exact, file.path] + others)
    return found, files.refused if None in found.values() else []


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a place that its names may mean."""

    exact: dict[str, Found]  # by path: below the first folder that has it, else below the root
    having: dict[tuple[str, ...], list[Found]]  # by (last part,), and by (last part, one of the folders above it)
    refused: list[Problem]


def _files(source: Source, place: Place, lasts: Set[str]) -> _Files:
    """Those whose last part is in `lasts`; one walk over the folders, whatever the number of names."""
    exact, whole = dict[str, Found](), dict[str, Found]()
    having, refused = defaultdict[tuple[str, ...], list[Found]](list), list[Problem]()
    for folder in place.folders:
        listed, bad = list_photos(join(source.root, folder))
        refused += [Problem(file, reason, REMEDY) for file, reason in bad]
        for relative in listed:
            last = member_name(relative).rpartition("/")[2]
            if last in lasts:
                file = Found(folder, relative)
                exact.setdefault(member_name(relative), file)
                whole.setdefault(file.path, file)
                for key in {(last,), *((last, part) for part in file.path.split("/")[:-1])}:
                    having[key].append(file)
    return _Files(whole | exact, having, refused)


def _near(name: str, files: _Files) -> list[Found]:
    """The files below the folders of the name, in their order; others may lie between."""
    *folders, last = name.split("/")
    few = min((files.having.get((last, folder), []) for folder in folders), key=len, default=[])
    near = list[Found]()
    for file in few:
        above = iter(file.path.split("/")[:-1])
        if all(folder in above for folder in folders):  # `in` goes on from where the one before was found
            near.append(file)
    return near


def _alone(files: list[Found], *, asked: int) -> Found | str | None:
    """The one file of a last part that `asked` names of the annotation file have."""
    if not files:
        return None
    if len(files) == 1 and asked == 1:
        return files[0]
    where = ", ".join(f"{file.folder}/{member_name(file.relative)}" for file in files[:3])
    return f"{asked} image(s) of the annotation file could be any of {len(files)} file(s): {where}"


def name_faults(names: Sequence[str]) -> list[str]:
    """For each file name of an annotation file why it cannot be used, '' where it can."""
    seen, faults = dict[str, str](), list[str]()
    for name in names:
        stem, fault = stem_of(name), ""
        if ".." in PurePosixPath(name).parts:
            fault = f"file name '{name}' leaves the image folder"
        elif stem in seen:
            fault = f"file names '{name}' and '{seen[stem]}' would have the same id"
        seen.setdefault(stem, name)
        faults.append(fault)
    return faults


def absent(source: Source, place: Place, name: str, *, found: str | None) -> Problem:
    """What is told when a name has no photo; found: as `find_photos` says it."""
    where = ", ".join(join(source.root, folder) for folder in place.folders)
    reason = found or f"the image is missing: no file of this name below {where}"
    remedy = "add the file, or take its entry out of the annotation file"
    folder = place.folders[0] if len(place.folders) == 1 else ""
    return Problem(join(source.root, folder, name), reason, remedy)


def open_photo(source: Source, found: Found, *, name: str) -> ImageRecord | Problem:
    """Read and decode a photo; name: its id within the data set."""
    image = read_photo(replace(source, images=found.folder), found.relative)
    return image if isinstance(image, Problem) else replace(image, image_id=f"{source.name}/{name}")


def fit_photo(image: ImageRecord, *, height: object, width: object) -> ImageRecord | None:
    """The photo in the frame of this size, which its annotations state: upright, else as stored; None: neither.

    A size that is not stated (None or 0) is that of the upright photo.
    """
    stated = (height or image.height, width or image.width)
    if stated == (image.height, image.width):
        return image
    if stated == (image.width, image.height) and image.exif == "transpose":
        with Image.open(io.BytesIO(read_bytes(image.path))) as opened:  # it was decoded before
            if opened.size == (image.height, image.width):  # stored on its side
                return replace(image, exif="ignore", height=image.width, width=image.height)
    return None


def require_known(source: Source, key: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    """Raise one DataError when a filter names what the annotations do not have; key: of params.yaml."""
    names = sorted(set(known))
    unknown = [name for name in wanted if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise DataError(
            f"datasets.{source.name}.{key}: the annotations have no {', '.join(repr(name) for name in unknown)}.{hint} "
            f"They have: {', '.join(names[:SHOWN]) or 'none'}{more}."
        )
