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
        for again in (False, True):  # no part has a checksum, the whole has: if it is wrong, every part is fetched anew
            _fill(uri, head, folder, again=again)
            if _is_whole(uri, head, folder / "data"):
                return folder / "data"
        if not head.md5:  # parts of unlike sizes: the ETag cannot be told, but every part came twice the same
            return folder / "data"
        (folder / "done").unlink()
    raise StorageError(
        f"{uri}: the bytes are not those of the checksum {head.etag}, and come so again. Upload the object anew."
    )


def drop(folder: Path) -> None:
    """Remove a folder whose lock the caller holds."""
    shutil.rmtree(folder, ignore_errors=True)


def _fill(uri: str, head: s3.Head, folder: Path, *, again: bool) -> None:
    """Fetch what `data` lacks; again: fetch all until each part came twice with the same bytes."""
    with (folder / "data").open("a+b") as file, (folder / "done").open("a+") as journal:
        file.truncate(head.size)
        arrived = _arrived(file.fileno(), journal.fileno(), head.size)
        missing = [number for number in range(-(-head.size // PART)) if again or number not in arrived]
        journal.write("\n")  # ends the line that a kill cut

        with ThreadPoolExecutor(max_workers=THREADS) as pool, open_for_writing(folder / "data") as handle:
            tasks = ((number, arrived.get(number, "")) for number in missing)
            running = {pool.submit(_part, uri, head, number, old, handle): number for number, old in tasks}
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


def _part(uri: str, head: s3.Head, number: int, old: str, handle: int) -> str:
    """Fetch one part into its place; returns its hash. old: the hash that is doubted, '' for none."""
    offset, seen, body, digest = number * PART, {old}, b"", ""
    for _ in range(s3.attempts() + 1):
        reply = s3.get(uri, span=(offset, min(PART, head.size - offset)), etag=head.etag)
        assert reply is not None  # no condition was set under which there is none
        body = reply.body or b""
        digest = hashlib.sha256(body).hexdigest()
        if not old or digest in seen:
            break
        seen.add(digest)
    view, at = memoryview(body), offset
    while view:
        written = os.pwrite(handle, view, at)
        view, at = view[written:], at + written
    return digest


def _arrived(data: int, journal: int, size: int) -> dict[int, str]:
    """The parts whose bytes are there, with their hashes."""
    text = os.pread(journal, os.fstat(journal).st_size, 0).decode("ascii", errors="replace")
    found = dict[int, str]()
    lines = re.findall(r"^(\d{1,9}) ([0-9a-f]{64})$", text, flags=re.MULTILINE)
    for number, digest in dict(lines).items():  # the last line of a part counts
        offset = int(number) * PART
        if hashlib.sha256(os.pread(data, min(PART, max(size - offset, 0)), offset)).hexdigest() == digest:
            found[int(number)] = digest
    return found


def _is_whole(uri: str, head: s3.Head, path: Path) -> bool:
    """Whether the bytes give the ETag, as far as it is made of them: MD5, or MD5 of the MD5s of the uploaded parts."""
    size = head.size if head.md5 else s3.part_size(uri, head)
    if not size:
        return True
    digests = list[bytes]()
    with path.open("rb") as file:
        for start in range(0, max(head.size, 1), size):
            digest, left = hashlib.md5(usedforsecurity=False), min(size, head.size - start)
            while left and (piece := file.read(min(left, 2**20))):
                digest.update(piece)
                left -= len(piece)
            digests.append(digest.digest())
    if head.md5:
        return digests[0].hex() == head.md5
    whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    return f"{whole}-{len(digests)}" == head.etag.strip('"')


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
