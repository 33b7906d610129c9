"""How long the model itself took on one image, by wall clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Literal, NamedTuple

Step = Literal["encode", "decode", "everything"]


class Lap(NamedTuple):
    """One call of the model."""

    step: Step
    asked: int  # images encoded or segmented, or masks of one decoder call
    seconds: float


class Stopwatch:
    """Runs only while the model works, in pieces; a lap adds up the pieces since the last one.

    A device computes while its host goes on: a lap must end with something that waits for it, such as a copy.
    """

    def __init__(self, turn: AbstractContextManager[object] | None = None) -> None:
        """turn: a lock, where several threads ask one model: waiting for it is not the model's time."""
        self._turn = turn or nullcontext()
        self.laps: list[Lap] = []
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block is the model's time."""
        with self._turn:
            start = perf_counter()
            try:
                yield
            finally:
                self._seconds += perf_counter() - start

    def lap(self, step: Step, asked: int) -> None:
        """What ran since the last lap was one call for `asked` images or masks."""
        self.laps.append(Lap(step, asked, self._seconds))
        self._seconds = 0.0

    def drop(self) -> None:
        """What ran since the last lap is no call's time."""
        self._seconds = 0.0
