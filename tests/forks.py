"""Processes that are copies of this one: nothing is imported again, so a kill, or two gloo processes, cost little."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Python 3.12 warns of any fork beside threads; the copy leaves those alone.
fork_beside_threads = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def fork(work: Callable[[], object]) -> int:
    """Do `work` in a copy of this process; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:  # whatever happens: the copy must not go on as pytest
        os._exit(code)


class Forked:
    """A copy of this process at work, with the face of subprocess.Popen; what it says goes to a file."""

    def __init__(self, work: Callable[[], object], log: Path) -> None:
        def told() -> None:
            with log.open("w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w", 1, closefd=False)  # stays open for the traceback
            work()

        log.unlink(missing_ok=True)
        log.touch()
        self.returncode: int | None = None
        self.pid = fork(told)

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = time.monotonic() + (1e9 if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("fork", timeout or 0)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode


def ended(child: int, *, within: float = 60.0) -> int:
    """How a copy ended: its exit code, or minus the signal. One that still runs is killed, and the test fails."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError(f"process {child} hangs")


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """A test in a copy of this process: backward over tensors without values starts autograd's threads for devices, and
    after that no copy of this process can run backward.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        def work() -> None:
            try:
                test(*arguments, **named)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)  # that of `sys` may be a fixture's, which is lost
                sys.__stderr__.flush()
                raise

        assert ended(fork(work), within=300.0) == 0, "its error stands under captured stderr"

    return fork_beside_threads(run)


def members(count: int, work: Callable[[int], object]) -> list[int]:
    """The numbers of `count` gloo processes, begun; each does `work(rank)`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def member(rank: int) -> None:
        from accelerate.state import AcceleratorState

        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ.update({name: str(number) for name, number in numbers.items()}, MASTER_ADDR="127.0.0.1")
        AcceleratorState._reset_state(True)  # of the process that was copied
        work(rank)

    return [fork(lambda rank=rank: member(rank)) for rank in range(count)]


def gang(count: int, work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work(rank)` returns, as JSON, in each of `count` gloo processes; folder: for their notes."""
    children = members(count, lambda rank: (folder / f"{rank}.json").write_text(json.dumps(work(rank))))
    assert [ended(child) for child in children] == [0] * count
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
