"""The finished shards of one piece of work, where all processes that share it find them: a folder, or a bucket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from sum import s3
from sum.claims import BucketClaims, Claims, FolderClaims
from sum.errors import NotFound, StorageError
from sum.storage import S3, join, read_bytes, write_atomic
from sum.uploads import put

SHARE = "SUM_SHARE"  # environment: a folder or s3:// prefix that all machines of a run see


class Share(Protocol):
    """Where shards are, and who makes which."""

    folder: Path  # of the shards on this machine

    @property
    def claims(self) -> Claims:
        """Who makes which."""

    def refresh(self) -> None:
        """Learn what others have finished since."""

    def has(self, name: str) -> bool:
        """Whether somebody has finished it; then it lies in `folder`."""

    def shown(self, name: str) -> bool:
        """Whether the others see it."""

    def show(self, name: str) -> None:
        """Let the others see what was finished in `folder`."""


class FolderShare:
    """Processes that see one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.claims: Claims = FolderClaims(folder / "claims")

    def refresh(self) -> None:
        """A folder is always as it is."""

    def has(self, name: str) -> bool:
        """See Share."""
        return (self.folder / name).exists()

    def show(self, name: str) -> None:
        """It is there already."""

    def shown(self, name: str) -> bool:
        """What is there is seen."""
        return self.has(name)


class BucketShare:
    """Processes that see one bucket; each has a folder of its own, and fetches what others have made."""

    def __init__(self, folder: Path, uri: str, *, lease: float | None = None) -> None:
        """uri: the prefix for this piece of work; lease: see BucketClaims."""
        self.folder, self._uri = folder, uri
        self.claims: Claims = BucketClaims(join(uri, "claims"), lease=lease)
        self._there = frozenset[str]()

    def refresh(self) -> None:
        """One listing."""
        try:
            self._there = frozenset(s3.list_keys(join(self._uri, "shards")))
        except NotFound:
            self._there = frozenset()

    def has(self, name: str) -> bool:
        """See Share: what others have made is fetched."""
        path = self.folder / name
        if not path.exists() and name in self._there:
            write_atomic(path, read_bytes(join(self._uri, "shards", name)))
        return path.exists()

    def show(self, name: str) -> None:
        """Upload it."""
        put(join(self._uri, "shards", name), (self.folder / name).read_bytes())
        self._there |= {name}

    def shown(self, name: str) -> bool:
        """See Share: at the last look."""
        return name in self._there


def is_shared() -> bool:
    """Whether other machines may see the work folders."""
    return bool(os.environ.get(SHARE))


def open_share(folder: Path) -> Share:
    """The share for the work `folder`: itself, or the place of that name below SUM_SHARE."""
    place = os.environ.get(SHARE, "")
    if not place:
        return FolderShare(folder)
    if place.startswith(S3):
        return BucketShare(folder, join(place, folder.as_posix()))
    if not Path(place).is_dir():
        raise StorageError(f"{SHARE} is '{place}', which is no folder. Make it, or name an s3:// prefix.")
    return FolderShare(Path(place) / folder)
