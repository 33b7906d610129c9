"""Tar archives as folders: what is in them, and where. Nothing is ever unpacked.

A member is read by its address (sum.storage), which holds its offset and size: one seek on disk, one ranged request
to a bucket. Only regular files of a plain tar can be used; all else is refused with a reason.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, BinaryIO

from sum.data.tar_listings import Contents, Place, kept_listing
from sum.storage import join, list_files, member_address, open_seekable

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4", ".taz")
THREADS = 8  # archives opened at a time
_HEADER = 2**20  # bytes: a header that is longer is no name but an attack
_BLOCK = tarfile.BLOCKSIZE
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_KINDS = {
    tarfile.SYMTYPE: "is a symbolic link",
    tarfile.LNKTYPE: "is a hard link",
    tarfile.CHRTYPE: "is a device",
    tarfile.BLKTYPE: "is a device",
    tarfile.FIFOTYPE: "is a pipe",
}
REMEDY = "make the archive again with regular files only, or take it out of the folder"  # of what is refused
_REPACK = "not seekable: repack it as a plain tar"


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file of an archive."""

    name: str  # relative, with `/`, unique in the archive
    uri: str  # what sum.storage.read_bytes takes


@dataclass(frozen=True, slots=True)
class Listing:
    """What an archive holds, in its order; a name that begins with a dot is left out, as `list_files` does."""

    members: tuple[Member, ...]
    refused: tuple[tuple[str, str], ...]  # (member's name, or '' for the archive as a whole; reason)


def list_members(uri: str) -> Listing:
    """The regular files of a tar archive on disk or in a bucket, found by its headers.

    Of a damaged or truncated archive, what comes before the damage. Raises NotFound, StorageError.
    """
    with open_seekable(uri) as file:
        version = getattr(file, "version", "")  # of a bucket's archive
        found = kept_listing(uri, version, lambda: _read(file)) if version else _read(file)
    members = (Member(name, member_address(uri, name, offset=offset, size=size)) for name, offset, size in found.places)
    return Listing(tuple(members), found.refused)


def list_photos(folder: str) -> tuple[list[str], list[tuple[str, str]]]:
    """As `list_files`, with the members of each tar archive in its place: `x.tar!/a/b.jpg#512+90`, relative as well.

    Returns them, and (path, reason) of all that was refused. Raises NotFound without the folder, StorageError.
    """
    names, refused = list[str](), list[tuple[str, str]]()
    files = list_files(folder)
    archives = [name for name in files if name.lower().endswith(".tar")]
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        listings = dict(zip(archives, pool.map(lambda name: list_members(join(folder, name)), archives), strict=True))
    for name in files:
        if name.lower().endswith(COMPRESSED):
            refused.append((join(folder, name), f"is compressed, {_REPACK}"))
        elif name in listings:
            begin = len(join(folder, name)) - len(name)
            names += [member.uri[begin:] for member in listings[name].members]
            refused += [
                (join(folder, name) + (f"!/{member}" if member else ""), reason)
                for member, reason in listings[name].refused
            ]
        else:
            names.append(name)
    return names, refused


def _read(file: BinaryIO) -> Contents:
    for magic, kind in _MAGIC.items():
        if file.read(len(magic)) == magic:
            return Contents((), (("", f"is compressed ({kind}), {_REPACK}"),))
        file.seek(0)
    places, refused, seen = list[Place](), list[tuple[str, str]](), set[str]()
    size = file.seek(0, 2)
    try:
        for info in _headers(file, size):
            name, reason = _judge(info)
            if not reason and name in seen:
                reason = "is in the archive twice"
            if reason:
                refused.append((name, reason))
            elif name and not any(part.startswith(".") for part in name.split("/")):
                seen.add(name)
                places.append((name, info.offset_data, info.size))
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        refused.append(
            ("", f"is no whole tar archive ({str(error) or type(error).__name__}): make or download it again")
        )
    return Contents(tuple(places), tuple(refused))


def _headers(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo]:
    """The headers of an archive of `size` bytes. Raises TarError where it is damaged, cut short or without its end."""
    if not size:
        raise tarfile.ReadError("zero bytes")
    file.seek(0)
    at = 0
    guarded: IO[bytes] = _Guarded(file, size)  # type: ignore[assignment]
    with tarfile.open(fileobj=guarded, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        while (info := archive.next()) is not None:
            if info.size < 0 or info.offset_data < at + _BLOCK:
                raise tarfile.ReadError(f"a header at byte {at} points back")
            at = info.offset_data
            if info.isreg() and not info.issparse() and at + info.size > size:
                raise tarfile.ReadError(f"cut short: '{_shown(info.name)}' ends at byte {at + info.size} of {size}")
            yield info
        file.seek(archive.offset)  # of the block that ended the reading
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"no header and no end mark at byte {archive.offset} of {size}")


class _Guarded:
    """A file for tarfile, which believes every size that a header states."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def read(self, size: int) -> bytes:
        """A header, of a size that one may have."""
        if not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        """To a place inside the file."""
        if not 0 <= offset <= self._size:
            raise tarfile.ReadError(f"a member that ends at byte {offset + 1} of {self._size}")
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


def _judge(info: tarfile.TarInfo) -> tuple[str, str]:
    """The name of a member and why it cannot be used; neither for a folder."""
    raw = info.name
    if "\x00" in raw or _shown(raw) != raw:
        return _shown(raw), "its name is not UTF-8"
    if raw.startswith(("/", "\\")) or raw[1:2] == ":":
        return raw, "its name is absolute"
    if ".." in raw.replace("\\", "/").split("/"):
        return raw, "its name leads out of the archive with '..'"
    if info.isdir():
        return "", ""
    if info.issparse():
        return raw, "is a sparse file"
    if not info.isreg():
        return raw, _KINDS.get(info.type, f"is of kind {info.type!r}, not a regular file")
    if not raw.isprintable():
        return repr(raw), "its name has control characters"
    return PurePosixPath(raw).as_posix(), ""


def _shown(name: str) -> str:
    return name.encode("utf-8", errors="backslashreplace").decode()
