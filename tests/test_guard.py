"""The guard of children: a parent that died before the guard came up is noticed, too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_it_starts_nothing_without_its_parent(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    made = tmp_path / "made"
    for parent, there in ((gone.pid, False), (os.getpid(), True)):
        command = [sys.executable, "-m", "sum.guard", str(parent), "touch", str(made)]
        done = subprocess.run(command, cwd=PROJECT, check=False, start_new_session=True)
        assert (done.returncode, made.exists()) == (0 if there else 1, there)
