"""`python -m sum.guard PARENT COMMAND ...`: run a command in a process group of its own that never outlives its parent.

A flow starts DVC, which starts a stage; `python -m sum ablate` starts trainings. Killed hard (-9, out of memory), it
could not tell them to stop, and a silent orphan would go on writing. The guard watches its parent and ends the whole
group, gently first. PARENT is the id of the process that it watches: one that dies before the guard has started is
noticed, too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

GRACE = 15.0  # seconds a stage has to close its files after the first signal
TICK = 0.2  # seconds between two looks at the parent


class _Asked(Exception):
    """SIGTERM or SIGINT came."""


def main(words: Sequence[str]) -> int:
    """Run a command, words[1:]; returns its exit code. Told to stop, or without its parent, it dies with the group.

    words[0]: the id of the parent.
    """
    parent, command = int(words[0]), words[1:]
    if os.getppid() != parent:  # it died while this process came up
        return 1
    if os.getpgrp() != os.getpid():
        os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _raise_asked)
    child = subprocess.Popen(command)
    try:
        while os.getppid() == parent:
            try:
                return child.wait(timeout=TICK)
            except subprocess.TimeoutExpired:
                continue
    except _Asked:
        pass
    _end_group(child)
    return 1


def _raise_asked(number: int, frame: FrameType | None) -> None:
    raise _Asked


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """Ctrl-C for everybody; DVC waits for its stage. Then, or after a while, the end of all, the guard too."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.killpg(0, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=GRACE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
