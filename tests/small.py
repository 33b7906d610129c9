"""The real project in a folder of its own, small enough that its whole pipeline takes minutes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from flows.dvc import environment

PROJECT = Path(__file__).parents[1]


def shrink(tree: dict[str, Any]) -> None:
    """Make params so small that a whole run takes minutes: its results mean nothing."""
    tree["device"] = "cpu"
    tree["demo"]["scenes"] = dict.fromkeys(tree["demo"]["scenes"], 5)
    for section in ("refine", "finetune"):
        small = {"steps": 4, "warmup_steps": 1, "decay_steps": 1, "images_per_batch": 2, "masks_per_image": 2}
        tree[section]["optim"] |= small | {"checkpoint_every": 1}
    tree["refine"] |= {"min_iou": 0.0, "pred_iou_thresh": 0.0, "stability_thresh": 0.0, "holdout_share": 0.4}
    tree["pseudo_label"] |= {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_thresh": 0.0, "shard_images": 1}
    tree["evaluate"] |= {"resamples": 20, "pictures": 1}


class Small:
    """A copy of this project at small scale, with a git repository of its own."""

    def __init__(self, folder: Path, *, change: Callable[[dict[str, Any]], None] = shrink, threads: int = 1) -> None:
        """change: what to do to the tree of params.yaml."""
        self.folder = folder
        self.env = {**environment(), "OMP_NUM_THREADS": str(threads), "GIT_CEILING_DIRECTORIES": str(folder.parent)}
        self.env["PYTHONPATH"] = str(folder)
        for name in ("sum", ".dvc"):
            shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache"))
        for name in ("params.yaml", "dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(PROJECT / name, folder)
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        self.edit(change)

    def edit(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change params.yaml."""
        path = self.folder / "params.yaml"
        tree = yaml.safe_load(path.read_text())
        change(tree)
        path.write_text(yaml.safe_dump(tree, sort_keys=False))

    def command(self, *words: str) -> list[str]:
        """`python -m WORDS` of this interpreter."""
        return [sys.executable, "-m", *words]

    def dvc(self, *words: str) -> str:
        """Run DVC to a good end; returns what it said."""
        command = self.command("dvc", *words)
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr
