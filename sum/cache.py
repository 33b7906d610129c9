"""Copies of a bucket's bytes on the local disk, by content: `objects/ab/SHA256` once, however many names it has.

`names/ab/HASH-OF-ADDRESS` tells which version of an address was seen last and its sha256; `parts/` holds downloads
under way. SUM_CACHE (work/cache) is the place, SUM_CACHE_GB (50) the limit; what was used longest ago goes first, 0
keeps nothing. Any number of processes may share it: files appear by rename, sums are kept under a lock, and every
copy is hashed again when it is read, so a damaged one is fetched anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from sum.downloads import drop, locked
from sum.errors import Refused
from sum.files import disk_errors, sha256_file

BLOCK = 4096  # bytes that a small file takes on the disk
PARTIAL = ".partial-"
HOUR = 3600  # s
ROOM = 0.9  # of the limit: what is left when the limit was hit


@dataclass(frozen=True, slots=True)
class Known:
    """What an address held when it was read last."""

    etag: str
    sha256: str


class Cache:
    """The copies below one folder."""

    def __init__(self, folder: Path, limit: int) -> None:
        """limit: bytes, 0 for no cache at all."""
        self.folder, self.limit = folder, limit

    def load(self, sha256: str) -> bytes | None:
        """The bytes of this hash, if they are here and whole."""
        path = self._object(sha256)
        try:
            data = path.read_bytes()
            os.utime(path)  # used now
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        path.unlink(missing_ok=True)
        return None

    def open(self, sha256: str) -> BinaryIO | None:
        """The copy of this hash for reading, if it is here and whole; it may be dropped from the cache meanwhile."""
        path = self._object(sha256)
        try:
            file = path.open("rb")
            os.utime(path)
        except OSError:
            return None
        if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
            file.seek(0)
            return file
        file.close()
        path.unlink(missing_ok=True)
        return None

    def known(self, address: str) -> Known | None:
        """What `address` held when it was read last."""
        path = self._name(address)
        try:
            found = Known(**json.loads(path.read_bytes()))
            os.utime(path)
        except (OSError, ValueError, TypeError):
            return None
        return found

    def keep(self, address: str, etag: str, data: bytes) -> str:
        """Add a copy; returns its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if self.limit and not self._object(sha256).exists():
            self.reserve(len(data))
            self._put(self._object(sha256), data)
        self._tell(address, Known(etag, sha256))
        return sha256

    def keep_file(self, address: str, etag: str, path: Path) -> str:
        """Take over a file whose size was reserved; returns its sha256."""
        sha256 = sha256_file(path)
        target = self._object(sha256)
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        self._tell(address, Known(etag, sha256))
        return sha256

    def parts(self, version: str) -> Path:
        """The folder of a download under way."""
        return self.folder / "parts" / version

    def reserve(self, size: int) -> None:
        """Make room for `size` more bytes. Raises StorageError when the limit is below that."""
        need = size + BLOCK  # the name's file
        if need > self.limit:
            raise Refused(f"{self.folder}: {size} bytes do not fit into SUM_CACHE_GB={self.limit / 1e9:g}.")
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "size").open("a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                text = file.read()
                total = (int(text) if text.isdigit() else self._measure()) + need
                if total > self.limit:
                    total = self._evict(max(0, int(self.limit * ROOM) - need)) + need
                file.truncate(0)
                file.write(str(total))

    def _object(self, sha256: str) -> Path:
        return self.folder / "objects" / sha256[:2] / sha256

    def _name(self, address: str) -> Path:
        name = hashlib.sha256(address.encode()).hexdigest()
        return self.folder / "names" / name[:2] / name

    def _tell(self, address: str, known: Known) -> None:
        if self.limit and self.known(address) != known:
            self._put(self._name(address), json.dumps(asdict(known)).encode())

    def _put(self, path: Path, data: bytes) -> None:
        """A whole file by rename. Not synced: what a crash damages, the hash finds."""
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(data)
                Path(partial).replace(path)
            except BaseException:
                Path(partial).unlink(missing_ok=True)
                raise

    def _measure(self) -> int:
        return sum(size for _, size, _ in self._entries())

    def _evict(self, room: int) -> int:
        """Remove what was used longest ago until `room` bytes are left; returns what is."""
        entries = sorted(self._entries(), key=lambda entry: entry[0])
        total = sum(size for _, size, _ in entries)
        for used, size, path in entries:
            if total <= room:
                break
            if path.name.startswith(PARTIAL) and used > time.time() - HOUR:
                continue  # somebody is writing it
            if path.is_dir():
                with locked(path, wait=False) as mine:
                    if not mine:
                        continue  # somebody is at it
                    drop(path)
            else:
                path.unlink(missing_ok=True)
            total -= size
        return total

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """(last use, bytes, path) of objects, names and begun downloads."""
        for path in (*self.folder.glob("objects/*/*"), *self.folder.glob("names/*/*")):
            with suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime, max(status.st_size, BLOCK), path
        for path in self.folder.glob("parts/*"):
            files = list[os.stat_result]()
            for file in path.glob("*"):
                with suppress(FileNotFoundError):
                    files.append(file.stat())
            yield max((file.st_mtime for file in files), default=0.0), sum(file.st_size for file in files), path


def the_cache() -> Cache:
    """The cache that the environment asks for."""
    text = os.environ.get("SUM_CACHE_GB", "50")
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise Refused(f"SUM_CACHE_GB is '{text}'; wanted a number of gigabytes, 0 for no cache.")
    return Cache(Path(os.environ.get("SUM_CACHE") or "work/cache"), int(limit * 1e9))
