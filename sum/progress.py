"""One progress bar for everything long: rate, share and time left; one line now and then where there is no terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")
log = logging.getLogger(__name__)
EVERY = 15.0  # seconds between lines without a terminal: enough to see life, few enough for a log


def track(
    items: Iterable[T], *, title: str, unit: str, total: int | None = None, start: int = 0, quiet: bool = False
) -> Iterator[T]:
    """Yield `items` from number `start` on while showing `title`, the count, `unit`s a second and the time left.

    total: the count where `items` has no length. quiet: yield only (other processes of a multi-GPU run).
    """
    count = total if total is not None else len(items)  # type: ignore[arg-type]  # without a length the caller gives total
    rest = islice(items, start, None)
    if quiet:
        yield from rest
        return
    console = Console(stderr=True)
    if console.is_terminal:
        yield from _bar(rest, title=title, unit=unit, total=count, start=start, console=console)
    else:
        yield from _lines(rest, title=title, unit=unit, total=count, start=start)


def _step(shown: Iterator[int]) -> None:
    next(shown, None)


@contextmanager
def counting(*, title: str, unit: str, total: int) -> Iterator[Callable[[], None]]:
    """The same where there is no one list to go through: yields what is to be called after each item."""
    shown = track(range(total + 1), title=title, unit=unit, total=total)
    next(shown)
    try:
        yield lambda: _step(shown)
    finally:
        shown.close()  # type: ignore[attr-defined]  # it is a generator


def _bar(items: Iterable[T], *, title: str, unit: str, total: int, start: int, console: Console) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, completed=start, rate="")
        began = time.perf_counter()
        for done, item in enumerate(items, 1):
            yield item
            progress.update(task, advance=1, rate=f"{done / (time.perf_counter() - began):.2f} {unit}/s")


def _lines(items: Iterable[T], *, title: str, unit: str, total: int, start: int) -> Iterator[T]:
    began = told = time.perf_counter()
    for done, item in enumerate(items, 1):
        yield item
        now = time.perf_counter()
        if now - told >= EVERY or start + done == total:
            rate = done / (now - began)
            log.info(
                "%s: %d/%d, %.2f %s/s, %.0f s left",
                title,
                start + done,
                total,
                rate,
                unit,
                (total - start - done) / rate,
            )
            told = now
