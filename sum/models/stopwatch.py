"""How long the model itself took on one image, by wall clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Literal, NamedTuple

Step = Literal["encode", "decode", "redraw", "maps", "everything", "fidelity"]
Clock = Callable[[], float]  # seconds


class Lap(NamedTuple):
    """One call of the model."""

    step: Step  # `redraw`: masks of a call that was timed already, drawn once more
    asked: int  # images encoded or segmented, or masks of one decoder call
    seconds: float


class Stopwatch:
    """Runs only while the model works, in pieces; a lap adds up the pieces since the last one.

    A device computes while its host goes on: a lap must end with something that waits for it, such as a copy. All laps
    together are all the time the model worked.
    """

    def __init__(
        self,
        turn: AbstractContextManager[object] | None = None,
        *,
        clock: Clock = perf_counter,
        finish: Callable[[], None] = lambda: None,
    ) -> None:
        """turn: a lock, where several threads ask one model: waiting for it is not the model's time.

        finish: waits for the device, so that a thread's work is done when it gives its turn to the next.
        """
        self._turn, self._clock, self._finish = turn or nullcontext(), clock, finish
        self.laps: list[Lap] = []
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block is the model's time."""
        with self._turn:
            start = self._clock()
            try:
                yield
                self._finish()
            finally:
                self._seconds += self._clock() - start

    def lap(self, step: Step, asked: int) -> None:
        """What ran since the last lap was one call for `asked` images or masks."""
        self.laps.append(Lap(step, asked, self._seconds))
        self._seconds = 0.0
