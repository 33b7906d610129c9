"""Texts put aside in a temporary file and fetched again by group, with a few bytes of memory for each."""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Hashable, Iterator
from pathlib import Path

import numpy as np

from sum.storage import disk_errors

BUFFER = 2**22  # bytes written at a time; a spool that is no larger has no file


class Spool:
    """Texts, each of a group. Filled by one thread, then closed, then read by any.

    The file lies in TMPDIR and has no name, so that nothing is left of it, however the process ends.
    """

    def __init__(self) -> None:
        self._groups = dict[Hashable, int]()
        self._group_of, self._ends = array("q"), array("q")
        self._pending, self._handle = bytearray(), -1
        self._order = self._starts = np.zeros(0, dtype=np.int64)

    def add(self, group: Hashable, text: str) -> None:
        """Put a text aside. Raises StorageError when the disk is full."""
        data = text.encode()
        self._group_of.append(self._groups.setdefault(group, len(self._groups)))
        self._pending += data
        self._ends.append((self._ends[-1] if self._ends else 0) + len(data))
        if len(self._pending) > BUFFER:
            self._flush()

    def close(self) -> None:
        """Nothing more is added: sort the texts by group, those of one in the order in which they came."""
        groups = np.frombuffer(self._group_of, dtype=np.int64)
        self._order = np.argsort(groups, kind="stable")
        self._starts = np.concatenate(([0], np.cumsum(np.bincount(groups, minlength=len(self._groups)))))
        self._group_of = array("q")
        if self._handle >= 0:
            self._flush()

    def groups(self) -> Iterator[tuple[Hashable, int]]:
        """Each group, in the order of its first text, and the number of its texts."""
        for group, number in self._groups.items():
            yield group, int(self._starts[number + 1] - self._starts[number])

    def texts(self, group: Hashable) -> Iterator[str]:
        """The texts of a group, none for an unknown one."""
        number = self._groups.get(group)
        if number is None:
            return
        for index in self._order[self._starts[number] : self._starts[number + 1]].tolist():
            start = self._ends[index - 1] if index else 0
            yield self._read(start, self._ends[index] - start).decode()

    def _read(self, start: int, size: int) -> bytes:
        if self._handle < 0:
            return bytes(self._pending[start : start + size])
        return os.pread(self._handle, size, start)

    def _flush(self) -> None:
        with disk_errors(Path(tempfile.gettempdir())):
            if self._handle < 0:
                with tempfile.TemporaryFile(prefix="sum-") as file:
                    self._handle = os.dup(file.fileno())
                weakref.finalize(self, os.close, self._handle)
            view = memoryview(bytes(self._pending))
            while view:
                view = view[os.write(self._handle, view) :]
        self._pending.clear()


class Repeats:
    """How many of many values came before, at eight bytes for each integer."""

    def __init__(self) -> None:
        self._numbers, self._others, self._count = array("q"), set[Hashable](), 0

    def add(self, value: int | str) -> None:
        """One more value."""
        self._count += 1
        try:
            self._numbers.append(value)  # type: ignore[arg-type]  # a text is refused, and kept otherwise
        except (TypeError, OverflowError):
            self._others.add(value)

    def count(self) -> int:
        """The values that were there before."""
        return self._count - len(np.unique(np.frombuffer(self._numbers, dtype=np.int64))) - len(self._others)
