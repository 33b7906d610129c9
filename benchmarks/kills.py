"""The labelling stages killed again and again at random moments: what is complete in the end is the same bytes.

    python benchmarks/kills.py [--kills 50] [--workers 2] [--seed 0]

In a temporary project of demo scenes with the shipped weights and an untrained refinement module. Workers are processes
of `python -m sum STAGE` that share a folder; a moment after their labelling began one of them is killed and another is
started. Whenever a stage completes, its folder is compared, and everything is made anew.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sum.models.checkpoint import fingerprint, load_segmenter
from sum.models.refiner import Refiner, save_refiner

PROJECT = Path(__file__).parents[1]
OUT = {"pseudo_label": Path("data/pseudo_labels"), "uncertainty": Path("data/uncertainty")}
SCENES = {f"{task}_{split}": 4 for task in ("salient", "entity", "part") for split in ("train", "test")}
SETTINGS = ["pseudo_label.shard_images=4", "pseudo_label.points_per_side=12"]


def command(stage: str, *settings: str) -> list[str]:
    return [sys.executable, "-m", "sum", stage, *(settings or SETTINGS)]


def environment(rank: int, workers: int) -> dict[str, str]:
    ranks = {"RANK": str(rank), "WORLD_SIZE": str(workers)}
    return os.environ | ranks | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}


def run(stage: str, folder: Path, *settings: str) -> None:
    done = subprocess.run(
        command(stage, *settings), cwd=folder, env=environment(0, 1), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{stage}: {done.stderr}")


def make_project(folder: Path, *, unlabelled: int = 64) -> None:
    """Demo scenes, checked, the shipped weights, and an untrained refinement module."""
    shutil.copy(PROJECT / "params.yaml", folder)
    weights = Path("sum/models/weights/tiny.safetensors")
    (folder / weights.parent).mkdir(parents=True)
    shutil.copy(PROJECT / weights, folder / weights)
    run(
        "demo",
        folder,
        *(f"demo.scenes.{name}={count}" for name, count in (SCENES | {"unlabelled": unlabelled}).items()),
    )
    for stage in ("ingest", "validate"):
        run(stage, folder)
    refiner = Refiner(load_segmenter(folder / weights, backbone="tiny"))
    save_refiner(folder / "data/refiner/model.safetensors", refiner, origin=fingerprint(folder / weights), about={})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Victims:
    """Workers of one stage, of which one is killed at a time."""

    def __init__(self, stage: str, folder: Path, workers: int, dice: random.Random) -> None:
        self._stage, self._folder, self._count, self._dice = stage, folder, workers, dice
        self._workers: dict[int, subprocess.Popen[bytes]] = {}  # by rank

    def kill_one(self) -> int | None:
        """Start what is missing, wait for a random moment of their work, kill one; None when the stage completed."""
        for rank in set(range(self._count)) - set(self._workers):  # 0 publishes, and may be killed too
            self._workers[rank] = subprocess.Popen(
                command(self._stage),
                cwd=self._folder,
                env=environment(rank, self._count),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        while not self._at_work():
            if self.complete():
                return None
            time.sleep(0.02)
        time.sleep(self._dice.uniform(0, 4))
        if self.complete():
            return None
        if not self._workers:
            return None
        victim = self._workers.pop(self._dice.choice(sorted(self._workers)))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        if victim.returncode != -signal.SIGKILL:  # it was done already
            return self.kill_one()
        return victim.pid

    def _at_work(self) -> bool:
        """Whether a worker has a shard under way: its number is in the name of the file."""
        under_way = [path.name for path in (self._folder / "work" / self._stage).glob("*/.*.partial")]
        return any(f".{worker.pid}." in name for name in under_way for worker in self._workers.values())

    def complete(self) -> bool:
        """Whether the stage has published; a worker that failed stops everything."""
        for rank, worker in list(self._workers.items()):
            if worker.poll() is not None:
                if worker.returncode:
                    raise SystemExit(f"{self._stage}: a worker failed with {worker.returncode}")
                del self._workers[rank]
        return (self._folder / OUT[self._stage]).exists()

    def let_finish(self) -> None:
        for worker in self._workers.values():
            worker.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_project(folder)
        want = {}
        for stage, out in OUT.items():
            run(stage, folder)
            want[stage] = contents(folder / out)
        kills = completions = 0
        while kills < options.kills:
            for stage, out in OUT.items():
                if stage == "pseudo_label":
                    for path in (folder / "work", folder / OUT["pseudo_label"], folder / OUT["uncertainty"]):
                        shutil.rmtree(path, ignore_errors=True)
                else:
                    shutil.rmtree(folder / "work/uncertainty")  # made in passing: here the stage is to do it
                victims = Victims(stage, folder, options.workers, dice)
                while kills < options.kills and victims.kill_one() is not None:
                    kills += 1
                    finished = len(list((folder / "work" / stage).glob("*/[!.]*.arrow")))
                    print(f"kill {kills:3d}: {stage}, {finished} shards are whole", flush=True)
                victims.let_finish()
                run(stage, folder)
                if contents(folder / out) != want[stage]:
                    raise SystemExit(f"{stage}: other bytes after {kills} kills")
                completions += 1
                print(f"          {stage} complete: {len(want[stage])} files, the same bytes", flush=True)
        print(f"{kills} kills, {completions} times completed, always the same bytes")


if __name__ == "__main__":
    main()
