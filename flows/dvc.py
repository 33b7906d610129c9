"""Run one DVC stage, or a command of this package, as a child: its lines as they come, how it ended, and no orphan; ask
which stages are out of date.

Knows nothing of Prefect.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from sum.cli import QUIET

Outcome = Literal["ran", "unchanged", "restored"]
TAIL = 8  # lines of a failure that the exception repeats when the stage gave no `error:` line
MENDABLE = (1, 2)  # exit codes of `python -m sum` for a fault that a second try meets again


class StageFailed(RuntimeError):
    """The stage crashed, or a disk, bucket or server was away: another try may do."""


class StageRefused(StageFailed):
    """The input or the settings are at fault and the stage said so in an `error:` line: another try would repeat it."""


def run_stage(stage: str, *, project: Path, tell: Callable[[str], None]) -> Outcome:
    """`dvc repro --single-item STAGE` in `project`; tell: gets every line as it comes.

    Returns what DVC did. Raises StageRefused or StageFailed with its `error:` lines. When this process dies, by any
    signal, the stage is stopped as well.
    """
    lines: deque[str] = deque(maxlen=TAIL)
    outcome: Outcome = "ran"
    faults: list[str] = []
    with _guarded(["dvc", "repro", "--single-item", stage], project) as child:
        for line in _lines(child):
            tell(line)
            lines.append(line)
            outcome = _outcome(line) or outcome
            faults += [line] if line.startswith("error: ") else []
        code = child.wait()
    if code:
        kind = StageRefused if faults and _stage_code(lines) in MENDABLE else StageFailed
        raise kind(f"stage '{stage}' failed:\n" + "\n".join(faults or lines))
    return outcome


def run_command(words: Sequence[str], *, project: Path, tell: Callable[[str], None]) -> None:
    """`python -m sum WORDS` in `project`; tell: gets every line as it comes.

    Raises as `run_stage`. When this process dies, by any signal, the command is stopped as well.
    """
    lines: deque[str] = deque(maxlen=TAIL)
    with _guarded(["sum", *words], project) as child:
        for line in _lines(child):
            tell(line)
            lines.append(line)
        code = child.wait()
    if code:
        kind = StageRefused if code in MENDABLE else StageFailed
        raise kind(f"`python -m sum {words[0]}` ended with {code}:\n" + "\n".join(lines))


def _lines(child: subprocess.Popen[str]) -> Iterator[str]:
    assert child.stdout is not None
    yield from filter(None, map(str.rstrip, child.stdout))


def out_of_date(stages: Iterable[str], *, project: Path) -> list[str]:
    """Those of `stages` that `dvc repro` would run in `project`: never made, or made from other inputs or numbers.

    Raises StageFailed when DVC cannot tell.
    """
    wanted = list(stages)
    if not wanted:  # to DVC no name means all of them
        return []
    with _guarded(["dvc", "status", "--json", *wanted], project) as child:
        said, _ = child.communicate()
    answer = next((line for line in said.splitlines() if line.startswith("{")), None)
    if child.returncode or answer is None:
        raise StageFailed(f"`dvc status` failed:\n{said[-2000:]}")
    return [stage for stage in wanted if stage in json.loads(answer)]


@contextmanager
def _guarded(words: list[str], project: Path) -> Iterator[subprocess.Popen[str]]:
    """`python -m WORDS` as a child whose lines come through one pipe; told to stop when the block ends first."""
    with subprocess.Popen(
        [sys.executable, "-m", "sum.guard", str(os.getpid()), sys.executable, "-m", *words],
        cwd=project,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()


def environment() -> dict[str, str]:
    """The environment of a stage: this interpreter, this package from any folder, unbuffered, nobody phones home."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    modules = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **QUIET, "PATH": path, "PYTHONPATH": modules, "PYTHONUNBUFFERED": "1"}


def _outcome(line: str) -> Outcome | None:
    """What a line of DVC says about the stage, if it does."""
    if "didn't change, skipping" in line:
        return "unchanged"
    if "is cached - skipping run" in line:
        return "restored"
    return None


def _stage_code(lines: deque[str]) -> int | None:
    """The exit code of the stage's command, from DVC's last words."""
    found = re.search(r"exited with (-?\d+)", "\n".join(lines))
    return int(found.group(1)) if found else None
