"""Bytes in and out: local paths, s3://bucket/key and members of tar archives read alike.

The one face of sum.files (local disk), sum.s3 (boto3), sum.downloads and sum.cache. Bytes that cannot be had raise
StorageError; what does not exist raises its child NotFound. A member of an archive is addressed
`FILE.tar!/MEMBER#OFFSET+SIZE`, offset and size in bytes of its content: one seek, or one ranged request, reads it.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from sum import s3
from sum.cache import BLOCK, Cache, the_cache
from sum.downloads import PART, download, drop, locked, version_of
from sum.errors import DataError, NotFound, StorageError
from sum.files import (
    disk_errors,
    is_left,
    list_folder,
    replace_file,
    replace_folder,
    sha256_file,
    size_of_file,
    write_atomic,
    write_json,
)
from sum.ranged import Ranged
from sum.s3 import S3

__all__ = (
    "S3", "NotFound", "disk_errors", "exists", "fetch", "is_left", "join", "keep", "list_files", "member_address",
    "member_name", "open_seekable", "open_whole", "read_bytes", "recall", "replace_file", "replace_folder",
    "sha256_file", "size_of", "write_atomic", "write_json",
)  # fmt: skip

_MEMBER = re.compile(
    r"(?P<file>.*?\.tar)!/(?P<name>.+)#(?P<offset>\d{1,18})\+(?P<size>\d{1,18})", re.DOTALL | re.IGNORECASE
)


def join(uri: str, *names: str) -> str:
    """`uri` with `names` below it, for local paths and s3:// alike."""
    return "/".join((uri.rstrip("/") or "/", *(name.strip("/") for name in names if name.strip("/") not in ("", "."))))


def member_address(file: str, name: str, *, offset: int, size: int) -> str:
    """The address of `size` bytes at `offset` of the tar archive `file`, which is its member `name`."""
    return f"{file}!/{name}#{offset}+{size}"


def member_name(uri: str) -> str:
    """`a/b.tar!/c/d.jpg#512+90` -> `a/b/c/d.jpg`; what is no member's address stays as it is."""
    found = _MEMBER.fullmatch(uri)
    return f"{found['file'][:-4]}/{found['name']}" if found else uri


def exists(uri: str) -> bool:
    """Whether a file or folder is there; on S3, an object or any object below the prefix."""
    file, _ = _place(uri)
    return s3.exists(file) if file.startswith(S3) else Path(file).exists()


def list_files(uri: str) -> list[str]:
    """All files below a folder, as sorted relative names with `/`; names that begin with a dot are left out.

    Raises NotFound without such a folder or prefix.
    """
    names = s3.list_keys(uri) if uri.startswith(S3) else list_folder(Path(uri))
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def read_bytes(uri: str, *, sha256: str = "") -> bytes:
    """The content of a file, object or member; sha256: what it must be, if that is known.

    Of a bucket's bytes a copy is kept: with a known hash it is used without asking the server, else when the server
    says that the object is the same. Raises NotFound without it, StorageError when it cannot be read, DataError when
    the content is another than `sha256` says, or of a pipe or device. Without sha256 a member of a bucket's archive is
    asked for until it came twice the same (`_twice` says why).
    """
    file, span = _place(uri)
    if not file.startswith(S3):
        return _same(uri, sha256, lambda: _read_local(file, span))
    cache = the_cache()
    kept = cache.load(sha256) if sha256 else None
    if kept is not None:
        return kept
    return _same(uri, sha256, lambda: _read_remote(uri, cache, file=file, span=span, sha256=sha256))


def size_of(uri: str) -> int:
    """Bytes of a file, object or member. Raises NotFound without it, DataError when it is a pipe or device."""
    file, span = _place(uri)
    if span:
        return span[1]
    if file.startswith(S3):
        return s3.look_up(file).size
    return size_of_file(Path(file))


def fetch(uri: str, cache: Path) -> Path:
    """A local path with the content of `uri`: itself when local, or a copy below `cache`, kept while it is valid.

    Not part of the bounded cache: weights stay. A download that was killed goes on where it was.
    """
    if not uri.startswith(S3):
        if not Path(uri).exists():
            raise NotFound(f"{uri} does not exist.")
        return Path(uri)
    head = s3.look_up(uri)
    version = version_of(uri, head)[:16]
    target = cache / version / PurePosixPath(s3.split(uri)[1]).name
    if not target.exists():
        parts = cache / f".{version}.parts"
        with locked(parts):
            if not target.exists():
                data = download(uri, head, parts)
                with replace_file(target) as partial:
                    data.replace(partial)
            drop(parts)
    return target


def open_seekable(uri: str) -> BinaryIO:
    """A file or object for reading here and there; of an object, always the version that it is now (`version`)."""
    if uri.startswith(S3):
        return cast("BinaryIO", Ranged(uri))
    size_of_file(Path(uri))
    with disk_errors(Path(uri)):
        return Path(uri).open("rb")


def open_whole(uri: str) -> BinaryIO:
    """A file, object or member for reading once from its begin; of a large object, the checked copy in the cache.

    In memory is only what is no larger than a part of a download, or has no place in the cache.
    """
    file, span = _place(uri)
    if not span and not file.startswith(S3):
        return open_seekable(file)
    head = None if span else s3.look_up(file)
    if head and head.size > PART:
        copy = _large_copy(uri, the_cache(), head)
        if copy is not None:
            return copy
    return io.BytesIO(read_bytes(uri))


def recall(address: str, version: str) -> bytes | None:
    """What was kept under this address and version; b'' when it is damaged or was dropped since, None: never kept."""
    cache = the_cache()
    known = cache.known(address)
    return (cache.load(known.sha256) or b"") if known and known.etag == version else None


def keep(address: str, version: str, data: bytes) -> None:
    """Keep bytes in the cache for `recall`, if they fit."""
    cache = the_cache()
    if len(data) + BLOCK <= cache.limit:
        cache.keep(address, version, data)


def _place(uri: str) -> tuple[str, tuple[int, int] | None]:
    """The file or object that holds the bytes, and (offset, size) of a member in it."""
    found = _MEMBER.fullmatch(uri)
    return (found["file"], (int(found["offset"]), int(found["size"]))) if found else (uri, None)


def _read_local(file: str, span: tuple[int, int] | None) -> bytes:
    size = size_of_file(Path(file))
    with disk_errors(Path(file)), Path(file).open("rb") as opened:
        if not span:
            return opened.read(size)
        opened.seek(span[0])
        data = opened.read(min(span[1], size))  # no more memory than there are bytes
    if len(data) != span[1]:
        raise DataError(f"{file}: ends before byte {sum(span)}: it has changed. Run `dvc repro --force ingest`.")
    return data


def _read_remote(uri: str, cache: Cache, *, file: str, span: tuple[int, int] | None, sha256: str) -> bytes:
    """From the copy if the server says that nothing changed, else from the server; with a hash, always from there."""
    known = None if sha256 else cache.known(uri)
    copy = cache.load(known.sha256) if known else None
    unless = known.etag if known and copy is not None else ""
    reply = s3.get(file, span=span, unless=unless, limit=PART if cache.limit else None)
    if reply is None:
        assert copy is not None  # else nothing was asked of the server that it could answer so
        return copy
    if reply.body is None:
        return _read_large(uri, cache, reply.head)
    body = _twice(file, reply.head, reply.body, span=span) if span and span[1] and not sha256 else reply.body
    whole = not sha256 or hashlib.sha256(body).hexdigest() == sha256
    if whole and len(body) + BLOCK <= cache.limit:
        cache.keep(uri, reply.head.etag, body)
    return body


def _twice(file: str, head: s3.Head, body: bytes, *, span: tuple[int, int]) -> bytes:
    """`body` of a member, or what comes instead of it, once the same bytes have arrived twice from this version.

    A part has no checksum, and its hash becomes the truth of the manifest. The shard's own checksum would need all of
    the shard (11 GB of SA-1B) for a few members, and is none where the parts of an upload were of unlike sizes; reading
    twice doubles the traffic of stage ingest alone, as every later stage knows the hash.
    """
    seen, tries = {hashlib.sha256(body).hexdigest()}, s3.attempts()
    for _ in range(tries):
        again = _body(s3.get(file, span=span, etag=head.etag))
        digest = hashlib.sha256(again).hexdigest()
        if digest in seen:
            return again
        seen.add(digest)
    raise StorageError(f"{file}: {span[1]} bytes from byte {span[0]} on came differently {tries + 1} times.")


def _read_large(uri: str, cache: Cache, head: s3.Head) -> bytes:
    """An object of many parts, by way of the cache, or at once when that is too small for it."""
    copy = _large_copy(uri, cache, head)
    if copy is None:
        return _body(s3.get(uri))
    with copy:
        return copy.read()


def _large_copy(uri: str, cache: Cache, head: s3.Head) -> BinaryIO | None:
    """The copy of an object of many parts, opened: it may leave the cache meanwhile; None: that is too small for it."""
    for _ in range(s3.attempts()):
        if head.size * 2 > cache.limit:
            return None
        parts = cache.parts(version_of(uri, head))
        try:
            with locked(parts):
                known = cache.known(uri)
                same = known is not None and known.etag == head.etag  # another process was faster
                copy = cache.open(known.sha256) if known and same else None
                if copy is None:
                    cache.reserve(head.size)
                    path = download(uri, head, parts)
                    copy = path.open("rb")
                    cache.keep_file(uri, head.etag, path)
                drop(parts)
                return copy
        except s3.ObjectChanged:
            head = s3.look_up(uri)
    raise StorageError(f"{uri} changes while it is read. Wait until it is written, then run the same command again.")


def _body(reply: s3.Reply | None) -> bytes:
    assert reply is not None  # no condition was set under which there is none
    assert reply.body is not None
    return reply.body


def _same(uri: str, sha256: str, read: Callable[[], bytes]) -> bytes:
    """What `read` gives, if it has this hash; a part of an object may arrive with a wrong byte, so twice is asked."""
    seen = set[str]()
    while True:
        data = read()
        found = hashlib.sha256(data).hexdigest() if sha256 else ""
        if found == sha256:
            return data
        if found in seen or len(seen) >= s3.attempts():
            raise DataError(
                f"{uri} is not what it was at ingest (sha256 {found[:12]}..., then {sha256[:12]}...): "
                "the file has changed. Run `dvc repro --force ingest`."
            )
        seen.add(found)
