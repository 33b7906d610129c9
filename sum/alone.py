"""One training a folder at a time: a second start of the same command is refused, and does not disturb the first."""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from sum.engine import Loop
from sum.errors import Refused
from sum.storage import disk_errors

log = logging.getLogger(__name__)

TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def alone(loop: Loop) -> Iterator[None]:
    """Hold the folder of a training while it lasts. Raises Refused, on all its processes, when another one holds it.

    A holder that is killed lets go, at once: the lock is the process's own, which its readers do not inherit.
    """
    with disk_errors(loop.folder):
        loop.folder.mkdir(parents=True, exist_ok=True)
        file = (loop.folder / "lock").open("a")
    with file:
        mine = loop.rank > 0 or _take(file)
        if not loop.told_by_first(mine):
            raise Refused(
                f"{loop.folder}: the same training runs already, here or on another machine that sees this folder. "
                "Wait for it, or end it: the same command then goes on from its last checkpoint."
            )
        yield


def _take(file: IO[str]) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        log.warning("%s cannot be locked (%s): nobody would see it if the same were trained twice", file.name, error)
    return True
