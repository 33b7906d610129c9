"""A limit on work that tells one walk from a walk for each, on a machine of any speed and however busy."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

QUICK = 0.05  # s: what the yardstick takes at most on an idle core of today


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """The block may take so much CPU time of its thread, and more by the factor by which a known loop is slow now."""
    before, start = _yardstick(), time.thread_time()
    yield
    took = time.thread_time() - start
    slow = max(1.0, before / QUICK, _yardstick() / QUICK)
    assert took < seconds * slow, f"{took:.2f} s of CPU, wanted {seconds:g} on a machine {slow:.1f} times as slow"


def _yardstick() -> float:
    start, total = time.thread_time(), 0
    for number in range(500_000):
        total += number
    return time.thread_time() - start
