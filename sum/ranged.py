"""An object of a bucket as a file for reading here and there, by ranged requests of one version."""

from __future__ import annotations

import io

from sum import s3

FIRST = 256 * 1024  # bytes of the first request, and what may be skipped by reading on
SKIPPED = 64 * 1024  # bytes of a request behind a longer gap: somebody reads a header here and there
MOST = 4 * 2**20  # bytes of a request, when one follows on the other


class Ranged(io.RawIOBase):
    """Reads ahead twice as far each time while the reader goes on nearly without gaps, and little when it skips."""

    def __init__(self, uri: str) -> None:
        """Raises NotFound without the object, StorageError."""
        self._uri, self._head, self._at = uri, s3.look_up(uri), 0
        self._start, self._buffer, self._ahead = 0, b"", FIRST // 2

    @property
    def version(self) -> str:
        """What differs for every other content of the object."""
        return f"{self._head.etag} {self._head.size}"

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Only remembered: nothing is asked of the server."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._head.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """The place of the next byte."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the buffer unless the object ends. Raises ObjectChanged, StorageError."""
        done = 0
        while done < len(buffer) and self._at < self._head.size:
            offset = self._at - self._start
            if not 0 <= offset < len(self._buffer):
                self._request(len(buffer) - done)
                offset = 0
            piece = self._buffer[offset : offset + len(buffer) - done]
            buffer[done : done + len(piece)] = piece
            done, self._at = done + len(piece), self._at + len(piece)
        return done

    def _request(self, wanted: int) -> None:
        """One ranged request from where the reader is."""
        gap = self._at - self._start - len(self._buffer)
        self._ahead = min(2 * self._ahead, MOST) if 0 <= gap <= FIRST else SKIPPED
        size = min(max(self._ahead, wanted), self._head.size - self._at)
        reply = s3.get(self._uri, span=(self._at, size), etag=self._head.etag)
        assert reply is not None  # no condition was set under which there is none
        assert reply.body is not None
        self._start, self._buffer = self._at, reply.body
