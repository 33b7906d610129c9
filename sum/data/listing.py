"""The files of a folder or bucket prefix, seen from above: which folders hold photos, which names tell a split."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from sum.data.sources import is_image_name, stem_of
from sum.errors import DataError
from sum.storage import S3, NotFound, join, list_files

UNREADABLE = "unreadable"  # the kind of what may be an annotation file, and cannot be read
DEPTH = 4  # folders below the root that may be the place of a set: exports are nested one or two levels
_PARTS = {"train": "train", "training": "train", "val": "test", "valid": "test", "validation": "test", "test": "test"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to read what lies there: the keys of `datasets.NAME` but for split, task and licence."""

    kind: str
    root: str
    why: str
    keys: dict[str, object] = field(default_factory=dict)
    part: str = ""  # the name of a part of the set, such as train or val
    split: str = "train"
    rank: int = 0  # the higher, the surer

    @property
    def reading(self) -> tuple[str, int]:
        """Candidates of the same reading are parts of one set, others are alternatives."""
        return self.kind, self.rank


@dataclass(frozen=True, slots=True)
class Found:
    """What there is, best reading first, and why other kinds were refused: (kind, reason)."""

    candidates: list[Candidate]
    refused: list[tuple[str, str]]

    @property
    def unreadable(self) -> list[str]:
        """Why files that may be of the set could not be read."""
        return [reason for kind, reason in self.refused if kind == UNREADABLE]


class Listing:
    """Names of all files below a root, and the folders that hold images directly or below."""

    def __init__(self, root: str, *, only: str = "") -> None:
        """only: the one annotation file to look at. Raises NotFound, DataError when nothing lies there."""
        self.root, self.files = root, list_files(root)
        self.only = only
        if not self.files:
            raise DataError(f"{root} holds no file")
        self.images = [name for name in self.files if is_image_name(name)]
        self.folders = defaultdict[str, list[str]](list)  # folder -> images anywhere below, relative to it
        for name in self.images:
            for folder in _above(name):
                self.folders[folder].append(name if folder == "." else name[len(folder) + 1 :])

    def named(self, *suffixes: str) -> list[str]:
        """Files that end so; just the one that was asked for, if there was one."""
        names = [self.only] if self.only else self.files
        return [name for name in names if name.lower().endswith(suffixes)]

    def path(self, name: str) -> str:
        """The full address of a file below the root."""
        return join(self.root, name)

    def folder_of(self, wanted: list[str]) -> tuple[str, int]:
        """The folder below which most of the relative names `wanted` lie, and how many of them."""
        best, most = ".", 0
        for folder, names in sorted(self.folders.items(), key=lambda entry: (entry[0].count("/"), len(entry[0]))):
            count = len(set(names) & set(wanted))
            if count > most:
                best, most = folder, count
        return best, most

    def photo_folder(self) -> str:
        """The deepest folder that holds every image."""
        whole = [folder for folder, names in self.folders.items() if len(names) == len(self.images)]
        return max(whole, key=lambda folder: (folder != ".", folder.count("/"), len(folder)), default=".")


def place_of(path: str) -> tuple[str, str]:
    """A folder, prefix or file -> (root, the one file below it, or ''). Raises NotFound when nothing is there."""
    try:
        list_files(path)
    except NotFound:
        folder, _, name = path.rstrip("/").rpartition("/")
        folder = folder or ("/" if path.startswith("/") else ".")
        if not path.startswith(S3) and not Path(path).is_file():  # before all of the folder is looked through
            raise
        if name not in list_files(folder):
            raise
        return folder, name
    return path, ""


def part_of(name: str) -> tuple[str, str]:
    """(part, split) that a path tells: `annotations_val.json` -> (val, test); ("", train) when it tells none."""
    for word in reversed(re.split(r"[^a-z]+", name.lower())):
        if word in _PARTS:
            return word, _PARTS[word]
    return "", "train"


def stems(names: list[str]) -> set[str]:
    """Names without suffix."""
    return {stem_of(name) for name in names}


def _above(name: str) -> list[str]:
    """The folders that a file is below: `a/b/c.jpg` -> ".", "a", "a/b"."""
    return [parent.as_posix() for parent in PurePosixPath(name).parents if len(parent.parts) <= DEPTH]
