"""A scratch DVC project with shell stages in place of ours: it tests the flow's mechanics, not what stages do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

PROJECT = Path(__file__).parents[2]
MODELS = ["base", "small", "medium", "large"]
BUDGET_STAGES = ("finetune", "check_evaluation", "register")


def make_project(folder: Path, commands: dict[str, str] | None = None) -> Path:
    """Write params.yaml, dvc.yaml (every stage of the real one, each leaving out/STAGE) and .dvc; returns `folder`.

    commands: stage -> shell command instead of the default.
    """
    (folder / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    (folder / "prefect.yaml").write_bytes((PROJECT / "prefect.yaml").read_bytes())
    real = yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"]
    stages, before = {}, None
    for name, body in real.items():
        family = {"foreach": ["small", "medium", "large"] if name in BUDGET_STAGES else MODELS}
        out = f"out/{name}" + (".${item}" if "foreach" in body else "")
        stage = {"cmd": (commands or {}).get(name, f"mkdir -p out && echo done > {out}"), "outs": [out]}
        if before:
            stage["deps"] = [before]
        stages[name] = {**family, "do": stage} if "foreach" in body else stage
        before = out if "foreach" not in body else before
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    subprocess.run([*dvc, "config", "core.analytics", "false"], cwd=folder, check=True)
    return folder


def processes_with(text: str) -> list[int]:
    """Ids of other processes whose command line holds `text`."""
    import psutil

    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if text in line and process.info["pid"] != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(int(process.info["pid"]))
    return found
