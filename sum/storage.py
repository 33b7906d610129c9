"""Bytes in and out: local paths and s3://bucket/key read alike; local files and folders written whole or not at all.

No other module knows boto3. Bytes that cannot be had raise StorageError; what does not exist raises its child NotFound.
S3 takes its settings from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL_S3,
AWS_MAX_ATTEMPTS (5).
"""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from sum.errors import StorageError, SumError

S3 = "s3://"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


class NotFound(StorageError):
    """The file, folder or object does not exist."""


def join(uri: str, *names: str) -> str:
    """`uri` with `names` below it, for local paths and s3:// alike."""
    return "/".join((uri.rstrip("/") or "/", *(name.strip("/") for name in names if name.strip("/") not in ("", "."))))


def exists(uri: str) -> bool:
    """Whether a file or folder is there; on S3, an object or any object below the prefix."""
    if not uri.startswith(S3):
        return Path(uri).exists()
    bucket, key = _split(uri)
    with _s3_errors(uri):
        page = _client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1000)
    return any(not key or item["Key"] == key or item["Key"].startswith(key + "/") for item in page.get("Contents", ()))


def list_files(uri: str) -> list[str]:
    """All files below a folder, as sorted relative names with `/`; names that begin with a dot are left out.

    Raises NotFound without such a folder or prefix.
    """
    names = _list_s3(uri) if uri.startswith(S3) else _list_local(Path(uri))
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def read_bytes(uri: str) -> bytes:
    """The content of a file or object. Raises NotFound without it, StorageError when it cannot be read."""
    if not uri.startswith(S3):
        with _disk_errors(Path(uri)):
            return Path(uri).read_bytes()
    bucket, key = _split(uri)
    with _s3_errors(uri):
        body: bytes = _client().get_object(Bucket=bucket, Key=key)["Body"].read()
    return body


def size_of(uri: str) -> int:
    """Bytes of a file or object. Raises NotFound without it."""
    if not uri.startswith(S3):
        with _disk_errors(Path(uri)):
            return Path(uri).stat().st_size
    bucket, key = _split(uri)
    with _s3_errors(uri):
        return int(_client().head_object(Bucket=bucket, Key=key)["ContentLength"])


def fetch(uri: str, cache: Path) -> Path:
    """A local path with the content of `uri`: itself when local, or a copy below `cache`, kept while it is valid."""
    if not uri.startswith(S3):
        if not Path(uri).exists():
            raise NotFound(f"{uri} does not exist.")
        return Path(uri)
    bucket, key = _split(uri)
    with _s3_errors(uri):
        head = _client().head_object(Bucket=bucket, Key=key)
    version = hashlib.sha256(f"{uri} {head['ETag']} {head['ContentLength']}".encode()).hexdigest()[:16]
    target = cache / version / PurePosixPath(key).name
    if target.exists():
        return target
    with replace_file(target) as partial, _s3_errors(uri):
        _client().download_file(bucket, key, str(partial))
    return target


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a local file, read in pieces."""
    with _disk_errors(Path(path)), Path(path).open("rb") as file:
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
    with _disk_errors(path):
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
    with _disk_errors(folder):
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
        with suppress(PermissionError, ValueError):  # another user's, and it runs; not one of ours
            try:
                os.kill(int(number), 0)  # only asks
            except ProcessLookupError:
                _remove(left)


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
def _disk_errors(path: Path) -> Iterator[None]:
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
        raise StorageError(f"{error.filename or path}: {error.strerror}.") from error


def _existing(path: Path) -> Path:
    """The path or its nearest parent that exists."""
    return next((place for place in (path, *path.absolute().parents) if place.exists()), Path("/"))


def _list_local(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise NotFound(f"{folder} does not exist or is not a folder.")

    def refuse(error: OSError) -> None:
        raise StorageError(f"{error.filename}: {error.strerror}.") from error

    names = []
    for place, _, files in os.walk(folder, followlinks=True, onerror=refuse):
        names += [(Path(place) / name).relative_to(folder).as_posix() for name in files]
    return names


def _list_s3(uri: str) -> list[str]:
    bucket, key = _split(uri)
    prefix = f"{key.rstrip('/')}/" if key else ""
    names = []
    with _s3_errors(uri):
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            names += [
                item["Key"].removeprefix(prefix) for item in page.get("Contents", ()) if not item["Key"].endswith("/")
            ]
    if not names:
        raise NotFound(f"{uri}: the bucket '{bucket}' has no object below '{prefix}'.")
    return names


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix(S3).partition("/")
    if not bucket:
        raise StorageError(f"'{uri}' names no bucket; wanted s3://BUCKET/KEY.")
    return bucket, key.rstrip("/")


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _client() -> Any:
    attempts = os.environ.get("AWS_MAX_ATTEMPTS", "5")
    if not attempts.isdigit() or int(attempts) < 1:
        raise StorageError(f"AWS_MAX_ATTEMPTS is '{attempts}'; wanted a whole number of at least 1.")
    return _make_client(_endpoint(), int(attempts), os.environ.get("AWS_ACCESS_KEY_ID"), os.getpid())


@functools.lru_cache(maxsize=4)
def _make_client(endpoint: str | None, attempts: int, account: str | None, process: int) -> Any:
    """One client for all threads; `process` is part of the key, as a forked reader must not use old sockets."""
    from boto3.session import Session  # not boto3.client, whose shared session remembers credentials
    from botocore.config import Config

    settings = Config(
        retries={"mode": "standard", "max_attempts": attempts},
        max_pool_connections=16,
        connect_timeout=5,
        read_timeout=30,
    )
    return Session().client("s3", endpoint_url=endpoint, config=settings)


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """What boto3 raises -> one sentence that says what to set."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        _raise_refusal(uri, error)
    except (Boto3Error, BotoCoreError, ValueError) as error:
        raise StorageError(_no_answer(uri, error)) from error


def _raise_refusal(uri: str, error: Any) -> None:
    """The server answered, and not with the bytes."""
    code, status = str(error.response["Error"].get("Code")), error.response["ResponseMetadata"].get("HTTPStatusCode")
    if code == "NoSuchBucket":
        raise NotFound(
            f"{uri}: no bucket '{_split(uri)[0]}' at {_endpoint() or 'AWS'}. Make it, or mend AWS_ENDPOINT_URL_S3."
        ) from error
    if status == 404:
        raise NotFound(f"{uri} does not exist.") from error
    if status in (401, 403):
        raise StorageError(f"{uri}: access denied ({code}). Check {_KEYS} and the rights on the bucket.") from error
    raise StorageError(
        f"{uri}: the S3 server answered {status} {code}: {error.response['Error'].get('Message')}"
    ) from error


def _no_answer(uri: str, error: Exception) -> str:
    """The request did not get as far as an answer."""
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError, NoCredentialsError, PartialCredentialsError

    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"{uri}: no S3 credentials. Set {_KEYS} (and AWS_ENDPOINT_URL_S3 for a server that is not AWS)."
    if isinstance(error, HTTPClientError | NoConnection):
        server = _endpoint() or "AWS"
        return f"{uri}: no answer from the S3 server {server}. Start it, or set AWS_ENDPOINT_URL_S3. ({error})"
    return f"{uri}: {error}"
