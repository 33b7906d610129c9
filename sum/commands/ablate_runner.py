"""Runs of `python -m sum ablate` as children: one a device at a time, own logs, no orphan, a failure is noted."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from sum.commands.ablate_inputs import Plan
from sum.errors import ConfigError, SumError
from sum.launch import VARIABLE, processes
from sum.progress import counting

log = logging.getLogger(__name__)
CODE = Path(__file__).parents[2]
PASSING = 75  # exit code of `python -m sum`: a disk, server or folder in use does not answer; trying again may help
PAUSES = (5.0, 30.0)  # seconds before another try
TAIL = 2000  # bytes of a log that are searched for what went wrong
NOT_FOR_CHILDREN = ("SUM_SHARE", "RANK")  # of work that is shared between machines or by torchrun
Call = Callable[[Sequence[str], Path, Mapping[str, str], Path], int]


def slots(jobs: int | None, *, device: str, environment: Mapping[str, str]) -> list[dict[str, str]]:
    """What the environment of a run gets, an entry for each run that may go on at once.

    device: cuda or cpu. A GPU is one run's; with SUM_PROCESSES, which spreads a run over several, there is one run at
    once. On a CPU `jobs` runs (1) share the cores: OMP_NUM_THREADS, where it is set, is how many there are.
    Raises ConfigError for more jobs than there are GPUs, or fewer than 1.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {jobs}")
    if processes(environment) > 1:
        if (jobs or 1) > 1:
            raise ConfigError(f"--jobs {jobs}: with {VARIABLE} a run has all devices, so one is made at a time")
        return [{}]
    if device == "cuda":
        cards = _cards(environment)
        if (jobs or 1) > len(cards):
            raise ConfigError(f"--jobs {jobs}: there are {len(cards)} GPUs, and a run has one of its own")
        return [{"CUDA_VISIBLE_DEVICES": card} for card in cards[: jobs or len(cards)]]
    stated = environment.get("OMP_NUM_THREADS", "")
    cores = int(stated) if stated.isdigit() else _cores()
    return [{"OMP_NUM_THREADS": str(max(1, cores // (jobs or 1)))} for _ in range(jobs or 1)]


def _cards(environment: Mapping[str, str]) -> list[str]:
    import torch

    seen = [card for card in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if card.strip()]
    return seen or [str(number) for number in range(torch.cuda.device_count())]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Children:
    """The processes that runs are made in; when the block ends, or is interrupted, none is left."""

    def __init__(self) -> None:
        self._alive: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.over = threading.Event()

    def call(self, words: Sequence[str], folder: Path, environment: Mapping[str, str], told: Path) -> int:
        """`python -m sum WORDS` in `folder`, what it says appended to the file `told`; its exit code."""
        with told.open("ab") as file:
            with self._lock:
                if self.over.is_set():
                    return 1
                child = subprocess.Popen(
                    [sys.executable, "-m", "sum.guard", str(os.getpid()), sys.executable, "-m", "sum", *words],
                    cwd=folder,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
                self._alive.add(child)
            try:
                return child.wait()
            finally:
                with self._lock:
                    self._alive.discard(child)

    def end(self) -> None:
        """Tell all to stop; each guard ends what it guards, gently first."""
        with self._lock:
            self.over.set()
            for child in self._alive:
                child.terminate()


def make(
    plans: Sequence[Plan],
    places: Sequence[Mapping[str, str]],
    environment: Callable[[Plan], Mapping[str, str]],
    *,
    begin: Callable[[Plan], None],
) -> dict[str, str]:
    """Make runs, as many at once as there are places; returns run -> what went wrong, for those that failed.

    places: of `slots`; environment: of a run's commands, without what its place adds; begin: makes the folder of
    a run, whose turn it is. Interrupted, it ends them all.
    """
    free: SimpleQueue[Mapping[str, str]] = SimpleQueue()
    for place in places:
        free.put(place)
    children, failed = Children(), dict[str, str]()
    with (
        ThreadPoolExecutor(len(places)) as pool,
        counting(title="ablate", unit="runs", total=len(plans)) as tick,
    ):

        def one(plan: Plan) -> None:
            """In a thread of the pool: wait for a place, make the run there, give the place back."""
            place = free.get()
            try:
                begin(plan)
                wrong = make_one(plan, {**environment(plan), **place}, call=children.call, wait=children.over.wait)
            except (SumError, OSError) as error:
                wrong = str(error)
            finally:
                free.put(place)
            if wrong and not children.over.is_set():
                log.warning("%s: %s", plan.run.name, wrong)
                failed[plan.run.name] = wrong

        waiting = [pool.submit(one, plan) for plan in plans]
        try:
            for future in as_completed(waiting):
                future.result()
                tick()
        except BaseException:
            for future in waiting:
                future.cancel()
            children.end()
            raise
    return failed


def make_one(
    plan: Plan, environment: Mapping[str, str], *, call: Call, wait: Callable[[float], object] = time.sleep
) -> str:
    """Run the commands of a run that have not ended yet; returns what went wrong, '' when it is done.

    call: runs one, see Children.call; wait: for so many seconds, before a command that may do better is tried again.
    """
    for command in plan.commands:
        if command in plan.times:
            continue
        told = plan.folder / f"{command}.log"
        for pause in (*PAUSES, None):
            log.info("%s: %s", plan.run.name, command)
            began, start = time.perf_counter(), told.stat().st_size if told.is_file() else 0
            code = call(plan.call(command), plan.folder, environment, told)
            if code != PASSING or pause is None:
                break
            log.info("%s: %s; another try in %.0f s", plan.run.name, _last_words(told, start), pause)
            wait(pause)
        if code:
            return f"{command} ended with {code}: {_last_words(told, start)} ({told})"
        plan.ended(command, seconds=time.perf_counter() - began)
    return ""


def _last_words(told: Path, start: int) -> str:
    """The `error:` line of a log from byte `start` on, else its last line."""
    text = told.read_bytes()[start:][-TAIL:].decode(errors="replace") if told.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return re.sub(r"^error: ", "", (errors or lines or ["it said nothing"])[-1])


def environment_of(plan: Plan, *, tags: str, uri: str, cache: Path) -> dict[str, str]:
    """Of the commands of a run: this package, one MLflow for all, its tags, the project's cache."""
    found = {key: value for key, value in os.environ.items() if key not in NOT_FOR_CHILDREN}
    modules = os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH")]))
    cache_folder = os.environ.get("SUM_CACHE") or str(cache)
    return {**found, "PYTHONPATH": modules, "MLFLOW_TRACKING_URI": uri, "SUM_TAGS": tags, "SUM_CACHE": cache_folder}
