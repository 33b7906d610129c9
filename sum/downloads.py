"""A large object into a local file: parts in parallel, and after a kill only the parts that are missing.

A folder holds `data` (as long as the object), `done` (a line `NUMBER SHA256` for each part that is in it) and `lock`.
A part counts when its bytes in `data` still have that hash, so nothing needs to reach the disk in order.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from sum import s3
from sum.errors import StorageError
from sum.files import disk_errors

PART = 8 * 2**20  # bytes of one request
THREADS = 8


def version_of(uri: str, head: s3.Head) -> str:
    """A name for this version of an object: other bytes, other name."""
    return hashlib.sha256(f"{uri} {head.etag} {head.size}".encode()).hexdigest()[:32]


@contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold `folder` against other processes and threads; a killed holder lets go. Yields False when not to be had."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = (folder / "lock").open("a")
        except FileNotFoundError:  # removed between the two lines
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            if not _is_same(file.fileno(), folder / "lock"):
                continue  # the last holder removed the folder
            yield True
            return


def download(uri: str, head: s3.Head, folder: Path) -> Path:
    """Complete `folder`/data, of an object that is this version; the caller holds the folder's lock.

    Raises StorageError, s3.ObjectChanged when the object is another by now.
    """
    with disk_errors(folder):
        for _ in range(s3.attempts()):
            _fill(uri, head, folder)
            if not head.md5 or _md5(folder / "data") == head.md5:
                return folder / "data"
            (folder / "done").unlink()
    raise StorageError(f"{uri}: the bytes are not those of the server's checksum ({head.etag}), {s3.attempts()} times.")


def drop(folder: Path) -> None:
    """Remove a folder whose lock the caller holds."""
    shutil.rmtree(folder, ignore_errors=True)


def _fill(uri: str, head: s3.Head, folder: Path) -> None:
    """Fetch what `data` lacks."""
    with (folder / "data").open("a+b") as file, (folder / "done").open("a+") as journal:
        file.truncate(head.size)
        missing = sorted(set(range(-(-head.size // PART))) - _arrived(file.fileno(), journal.fileno(), head.size))
        journal.write("\n")  # ends the line that a kill cut

        with ThreadPoolExecutor(max_workers=THREADS) as pool, open_for_writing(folder / "data") as handle:
            running = {pool.submit(_part, uri, head, number, handle): number for number in missing}
            try:
                for future in as_completed(running):
                    journal.write(f"{running[future]} {future.result()}\n")
                    journal.flush()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


@contextmanager
def open_for_writing(path: Path) -> Iterator[int]:
    """A handle for writing anywhere in a file, from any thread."""
    handle = os.open(path, os.O_WRONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _part(uri: str, head: s3.Head, number: int, handle: int) -> str:
    """Fetch one part into its place; returns its hash."""
    offset = number * PART
    reply = s3.get(uri, span=(offset, min(PART, head.size - offset)), etag=head.etag)
    body = reply.body if reply else None
    assert body is not None  # no condition was set under which there is none
    view, at = memoryview(body), offset
    while view:
        written = os.pwrite(handle, view, at)
        view, at = view[written:], at + written
    return hashlib.sha256(body).hexdigest()


def _arrived(data: int, journal: int, size: int) -> set[int]:
    """The parts whose bytes are there."""
    text = os.pread(journal, os.fstat(journal).st_size, 0).decode("ascii", errors="replace")
    found = set()
    for number, digest in re.findall(r"^(\d{1,9}) ([0-9a-f]{64})$", text, flags=re.MULTILINE):
        offset = int(number) * PART
        if hashlib.sha256(os.pread(data, min(PART, max(size - offset, 0)), offset)).hexdigest() == digest:
            found.add(int(number))
    return found


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
