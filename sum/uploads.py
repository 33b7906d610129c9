"""Objects of a bucket, written: whole, or on the condition that nobody else has."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from sum import s3
from sum.errors import NotFound


def put(uri: str, data: bytes, *, replacing: str | None = None) -> str | None:
    """Write an object; returns its ETag, or None when the condition does not hold.

    replacing: write only in the place of the version with this ETag; '': only where there is no object. The server
    refuses bytes that arrive altered. Raises StorageError; NotFound when the version to replace has gone.
    """
    bucket, key = s3.split(uri)
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    asked: dict[str, Any] = {"Bucket": bucket, "Key": key, "Body": data, "ChecksumSHA256": digest}
    if replacing is not None:
        asked |= {"IfMatch": replacing} if replacing else {"IfNoneMatch": "*"}
    try:
        return str(s3.ask(uri, lambda client: client.put_object(**asked))["ETag"])
    except s3.ObjectChanged:
        return None


def delete(uri: str) -> None:
    """Remove an object; one that is not there is no error."""
    bucket, key = s3.split(uri)
    try:
        s3.ask(uri, lambda client: client.delete_object(Bucket=bucket, Key=key))
    except NotFound:
        return
