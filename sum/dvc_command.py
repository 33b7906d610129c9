"""DVC as a command of this interpreter, for commands that ask it something; flows have a runner of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_dvc(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `dvc WORDS` in the working folder, without telemetry; its exit code and what it said."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        env={**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
