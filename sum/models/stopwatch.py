"""How long the model itself took on one image, by wall clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Literal, NamedTuple


class Lap(NamedTuple):
    """One call of the model."""

    step: Literal["encode", "decode"]
    asked: int  # images encoded, or masks of one decoder call
    seconds: float


class Stopwatch:
    """Runs only while the model works, in pieces; a lap adds up the pieces since the last one.

    A device computes while its host goes on: a lap must end with something that waits for it, such as a copy.
    """

    def __init__(self) -> None:
        self.laps: list[Lap] = []
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block is the model's time."""
        start = perf_counter()
        try:
            yield
        finally:
            self._seconds += perf_counter() - start

    def lap(self, step: Literal["encode", "decode"], asked: int) -> None:
        """What ran since the last lap was one call for `asked` images or masks."""
        self.laps.append(Lap(step, asked, self._seconds))
        self._seconds = 0.0

    def drop(self) -> None:
        """What ran since the last lap is no call's time."""
        self._seconds = 0.0
