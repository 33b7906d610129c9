"""Which process makes which shard, where several on one machine or on many share the work.

In a folder a claim is a file lock: the kernel lets go of it when its holder dies, wherever the file system knows locks
(local disks, NFS 4, Lustre with `flock`). In a bucket it is a lease, an object that its holder renews: one that was not
renewed for LEASE seconds, by the watcher's own clock, is taken over by a conditional write, of which one succeeds.
Should two make one shard all the same, after a pause longer than the lease, both write the same bytes.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from sum import s3
from sum.downloads import drop, locked
from sum.errors import NotFound, StorageError
from sum.uploads import delete, put

LEASE = 60.0  # s


class Claims(Protocol):
    """Who makes what."""

    def take(self, name: str) -> AbstractContextManager[bool]:
        """A context in which `name` is this process's to make, if it yields True."""


class FolderClaims:
    """Among processes that see one folder."""

    def __init__(self, folder: Path) -> None:
        """folder: of the locks."""
        self._folder = folder

    @contextmanager
    def take(self, name: str) -> Iterator[bool]:
        """See Claims."""
        with locked(self._folder / name, wait=False) as mine:
            try:
                yield mine
            finally:
                if mine:
                    drop(self._folder / name)


class BucketClaims:
    """Among processes that see one bucket whose server knows conditional writes."""

    def __init__(self, uri: str, *, lease: float | None = None) -> None:
        """uri: prefix of the lease objects; lease: seconds without a sign of life after which a holder counts as dead.

        LEASE by default.
        """
        self._uri, self._lease = uri, LEASE if lease is None else lease
        self._worker = uuid.uuid4().hex
        self._seen: dict[str, tuple[str, float]] = {}  # name -> ETag of another's lease, and since when it is that

    @contextmanager
    def take(self, name: str) -> Iterator[bool]:
        """See Claims. While it lasts a thread renews the lease; who loses it goes on, and writes the same bytes."""
        uri = f"{self._uri}/{name}"
        etag = self._acquire(uri, name)
        if not etag:
            yield False
            return
        over = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(uri, etag, over), daemon=True)
        renewing.start()
        try:
            yield True
        finally:
            over.set()
            renewing.join()
            with suppress(StorageError):  # it runs out by itself
                if self._own(uri):  # else it was taken over, and is the other's to let go
                    delete(uri)

    def _acquire(self, uri: str, name: str) -> str | None:
        """The ETag of our lease, or None when another's is alive."""
        etag = put(uri, self._sign(0), replacing="")
        if etag:
            return etag
        reply = self._look(uri)
        if reply is None:
            return None  # let go of just now: the next round gets it
        if self._is_ours(reply):
            return reply.head.etag  # the answer to our own write was lost
        etag, since = self._seen.get(name, ("", 0.0))
        if etag != reply.head.etag:
            self._seen[name] = reply.head.etag, time.monotonic()
            return None
        return self._replace(uri, etag) if time.monotonic() - since > self._lease else None

    def _replace(self, uri: str, etag: str) -> str | None:
        try:
            return put(uri, self._sign(0), replacing=etag)
        except NotFound:
            return None

    def _renew(self, uri: str, etag: str, over: threading.Event) -> None:
        beat = 0
        while not over.wait(self._lease / 4):
            beat += 1
            try:
                etag = put(uri, self._sign(beat), replacing=etag) or self._own(uri)
            except NotFound:
                return
            except StorageError:
                continue  # the next beat tries again; the lease is four beats long
            if not etag:
                return  # taken over

    def _own(self, uri: str) -> str:
        """The ETag of the lease if it is ours, as when the answer to a renewal was lost; else ''."""
        reply = self._look(uri)
        return reply.head.etag if reply and self._is_ours(reply) else ""

    @staticmethod
    def _look(uri: str) -> s3.Reply | None:
        try:
            return s3.get(uri)
        except NotFound:
            return None

    def _is_ours(self, reply: s3.Reply) -> bool:
        return bool(reply.body) and json.loads(reply.body or b"")["worker"] == self._worker

    def _sign(self, beat: int) -> bytes:
        return json.dumps({"worker": self._worker, "beat": beat}).encode()
