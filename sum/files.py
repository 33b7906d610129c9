"""Local files and folders, written whole or not at all; what the disk refuses is one sentence.

Others import these from sum.storage, which reads s3:// alike.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sum.errors import DataError, NotFound, Refused, StorageError, SumError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
LINKED = 100  # ways by which links may lead to one folder: a chain of pairs of links has 2 to the power of its length


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a local file, read in pieces."""
    with disk_errors(Path(path)), Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill at any moment, sees the old content or the new, never a part.

    Raises StorageError when the disk is full (with the free space) or refuses.
    """
    with replace_file(path) as partial:
        partial.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically and always the same way: sorted keys, two spaces, one newline at the end; no NaN."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomic(path, f"{text}\n".encode())


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write; on success it takes the place of `path`, on error it goes."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling to fill; on success it takes the place of `folder`, on error it goes.

    A kill leaves the old folder, or between two renames none (then the reader says what to run), never a mixture. Of
    two processes that do this at once the last one wins, or gets a StorageError.
    """
    folder = folder.absolute()
    partial, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    with disk_errors(folder):
        _sweep(folder)
        _remove(partial)  # of a killed run that had our number
        partial.mkdir(parents=True)
        try:
            yield partial
            for path in [*partial.rglob("*"), partial]:
                _sync(path)
            _remove(old)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
            _sync(folder.parent)
            _remove(old)
        finally:
            _remove(partial)


def _sweep(folder: Path) -> None:
    """Remove what killed runs left beside `folder`: siblings of processes that are no more."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*"):
        number = left.name.removeprefix(f".{folder.name}.").removesuffix(".partial").removesuffix(".old")
        if is_left(number):
            _remove(left)


def is_left(number: str) -> bool:
    """Whether a file or folder that bears this number of a process was left behind: on this machine none has it."""
    try:
        os.kill(int(number), 0)  # only asks
    except ProcessLookupError:
        return True
    except (PermissionError, ValueError):  # another user's, and it runs; not one of ours
        return False
    return False


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    """Bytes of a file, or names of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """An OSError about `path` -> StorageError with the free space when that is the trouble; our own errors pass."""
    try:
        yield
    except SumError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"{error.filename or path} does not exist.") from error
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(_existing(path)).free / 1e6
            raise StorageError(
                f"{path}: no space left on the disk, {free:.1f} MB free. Free some and run the same command again."
            ) from error
        if error.errno is None:
            raise
        kind = Refused if error.errno in _REFUSED else StorageError
        raise kind(f"{error.filename or path}: {error.strerror}.") from error


def _existing(path: Path) -> Path:
    """The path or its nearest parent that exists."""
    return next((place for place in (path, *path.absolute().parents) if place.exists()), Path("/"))


def size_of_file(path: Path) -> int:
    """Bytes of a file. Raises DataError of a pipe, socket or device: it has no size, and reading may never end."""
    with disk_errors(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path}: a pipe, socket or device, not a file")
    return status.st_size


def list_folder(folder: Path) -> list[str]:
    """All files below a folder, as relative names with `/`, in no order; links are followed, but not back up.

    Raises NotFound without it, DataError where more than LINKED ways lead to one folder.
    """
    if not folder.is_dir():
        raise NotFound(f"{folder} does not exist or is not a folder.")

    def refuse(error: OSError) -> None:
        raise (Refused if error.errno in _REFUSED else StorageError)(f"{error.filename}: {error.strerror}.") from error

    names, ways = list[str](), Counter[tuple[int, int]]()
    above = {str(folder): frozenset({_identity(str(folder))})}  # folder to come -> itself and those on the way to it
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        names += [(Path(place) / name).relative_to(folder).as_posix() for name in files]
        chain, below = above.pop(place), list(folders)
        folders.clear()
        for name in below:
            path = os.path.join(place, name)  # noqa: PTH118  # as os.walk names it
            one = _identity(path)
            if one in chain:
                continue
            ways[one] += 1
            if ways[one] > LINKED:
                raise DataError(f"{path}: links lead to this folder in more than {LINKED} ways. Remove those links.")
            folders.append(name)
            above[path] = chain | {one}
    return names


def _identity(folder: str) -> tuple[int, int]:
    """What all links to one folder have in common."""
    with disk_errors(Path(folder)):
        status = os.stat(folder)  # noqa: PTH116  # millions of them
    return status.st_dev, status.st_ino
