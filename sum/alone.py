"""One training a folder at a time: a second start of the same command is refused, and does not disturb the first."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from sum.engine import Loop
from sum.errors import InUse
from sum.storage import disk_errors

log = logging.getLogger(__name__)

TAKEN = (errno.EACCES, errno.EAGAIN)


@contextmanager
def alone(loop: Loop) -> Iterator[None]:
    """Hold the folder of a training while it lasts. Raises InUse, on all its processes, when another one holds it.

    A holder that is killed lets go at once: the lock is the process's own, which its readers do not inherit.
    """
    path = loop.folder / "lock"
    with disk_errors(loop.folder):
        loop.folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        holder = loop.told_by_first(_take(file) if loop.rank == 0 else "")
        if holder:
            raise InUse(
                f"{loop.folder}: the same training runs already: {holder}. Wait for it, or end it: the same command "
                f"then goes on from its last checkpoint. If that machine is gone, remove {path}: a network's disk may "
                "hold the lock of the dead for a while."
            )
        yield


def _take(file: IO[str]) -> str:
    """Lock a file and leave this process's name in it; returns whose lock it is already, if it is another's."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            file.seek(0)
            return file.read().strip() or "a process that just began"
        log.warning("%s cannot be locked (%s): nobody would see it if the same were trained twice", file.name, error)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return ""
