"""A fine-tuning killed again and again at random moments: the weights in the end are those of an undisturbed run.

    python benchmarks/kill_training.py [--kills 30] [--processes 1|2] [--seed 0]

In a temporary project of demo scenes, pseudo-labels and maps, with the shipped weights and every option that keeps or
draws something of its own (average, augmentation, accumulation, adapters, early stopping). A checkpoint a step, and
every other kill falls into the write of one: the processes are stopped while a part of it is on the disk. Several
processes are started by torchrun: all are killed, or only one, whereupon the others must end by themselves. Then the
same command goes on. Whenever the training completes, what it published and its last state are compared, and all is
trained anew.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import psutil
from safetensors.torch import load_file

from benchmarks.kills import command, environment, make_project, run
from sum.tensor_files import DIGEST

OUT, WORK = Path("data/models/small"), Path("work/finetune")
SAME = ("model.safetensors", "history.csv", "summary.json", "model.json")
SETTINGS = {
    "finetune.optim": "{steps: 12, lr: 0.001, images_per_batch: 2, masks_per_image: 2, ema: 0.9, checkpoint_every: 1, "
    "warmup_steps: 1, decay_steps: 4}",
    "finetune.rounds": "{rounds: 3}",
    "finetune.augment": "{flip: 0.5, scale: [0.5, 1.5]}",
    "finetune.accumulate": "2",
    "finetune.arch": "lora",
    "finetune.lora": "{decoder: true}",
    "finetune.early_stop": "{patience: 12, held_out: 0.4}",
}
BEGUN = "small trains:"  # in the log, before the checkpoint is read
PATIENCE = 60.0  # seconds in which all processes end after one of them was killed


@dataclass
class Tally:
    """What happened so far."""

    kills: int = 0
    of_all: int = 0  # of `kills`, those of all processes at once
    in_writes: int = 0  # a part of a checkpoint was left
    completed: int = 0
    slowest_end: float = 0.0  # seconds from the kill of one process to the end of the others

    def __str__(self) -> str:
        words = (
            f"{self.kills} kills, {self.in_writes} within the write of a checkpoint, {self.completed} times completed, "
        )
        alone = self.kills - self.of_all
        more = f"; {alone} of one process alone: all had ended within {self.slowest_end:.1f} s" if alone else ""
        return f"{words}always the same bytes{more}"


class Command(Protocol):
    """What subprocess.Popen is."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


class Training:
    """The command that trains, started: one process, or one that waits for several."""

    def __init__(self, folder: Path, process: Command, *, processes: int) -> None:
        self.folder, self.process, self.processes = folder, process, processes

    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def wait(self, what: Callable[[], bool], *, within: float) -> None:
        """Until `what` is true, the command has ended, or the time is over."""
        deadline = time.monotonic() + within
        while self.process.poll() is None and time.monotonic() < deadline:
            if what():
                return
            time.sleep(0.002)

    def workers(self) -> list[psutil.Process]:
        """The processes that train, by rank; none when the command has ended."""
        try:
            one = psutil.Process(self.process.pid)
            return [one] if self.processes == 1 else sorted(one.children(), key=lambda child: child.pid)
        except psutil.NoSuchProcess:
            return []

    def finish(self) -> None:
        """Wait for the end, which must be a good one."""
        if self.process.wait():
            raise SystemExit(f"the training failed:\n{self.log()}")

    def kill(self, victims: list[psutil.Process], *, everyone: list[psutil.Process]) -> float:
        """kill -9; returns the seconds until everyone was gone."""
        began = time.monotonic()
        send(victims, signal.SIGKILL)
        send(everyone, signal.SIGCONT)  # of those that were stopped
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"the others go on after the kill of one process:\n{self.log()}") from None
        left = psutil.wait_procs(everyone, timeout=10)[1]
        if any(one.status() != psutil.STATUS_ZOMBIE for one in left):
            raise SystemExit("the command ended, its workers did not")
        return time.monotonic() - began


def parts(folder: Path) -> set[Path]:
    """Files of checkpoints that are not yet whole."""
    return set((folder / WORK).glob("*/.checkpoint-*.partial"))


def results(folder: Path) -> dict[str, bytes]:
    """What was published, and the last state: weights, average and moments, without the history's seconds."""
    found = {name: (folder / OUT / name).read_bytes() for name in SAME}
    state = load_file(max((folder / WORK).glob("*/checkpoint-*.safetensors")))
    return found | {name: value.numpy().tobytes() for name, value in state.items() if name not in ("history", DIGEST)}


def clean(folder: Path) -> None:
    shutil.rmtree(folder / WORK, ignore_errors=True)
    shutil.rmtree(folder / OUT, ignore_errors=True)


def stop_in_write(training: Training, *, before: set[Path], pause: float) -> list[psutil.Process]:
    """The workers, stopped while a part of a checkpoint is on the disk; none when the training ended before.

    before: parts that earlier kills left; pause: seconds from the part's appearance to the stop, if it lasts so long.
    """
    while training.process.poll() is None:
        training.wait(lambda: bool(parts(training.folder) - before), within=60)
        time.sleep(pause)
        workers = training.workers()
        send(workers, signal.SIGSTOP)
        training.wait(partial(stopped, workers), within=5)
        if parts(training.folder) - before:
            return workers
        send(workers, signal.SIGCONT)  # it was whole already: the next one
        pause = 0.0
    return []


def stopped(processes: list[psutil.Process]) -> bool:
    still = (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    with suppress(psutil.NoSuchProcess):
        return all(process.status() in still for process in processes)
    return True


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def strike(training: Training, dice: random.Random, *, window: float, tally: Tally) -> str | None:
    """Kill a training at a random moment; returns what was hit, None when it ended before."""
    before = parts(training.folder)
    training.wait(lambda: BEGUN in training.log(), within=600)
    training.wait(lambda: False, within=dice.uniform(0, window))
    writing = tally.kills % 2 == 0
    pause = dice.uniform(0, 0.02)
    workers = stop_in_write(training, before=before, pause=pause) if writing else training.workers()
    if training.process.poll() is not None or len(workers) < training.processes:
        return None
    all_at_once = training.processes == 1 or dice.random() < 0.5
    everyone = [psutil.Process(training.process.pid), *workers]
    rank = 0 if writing else dice.randrange(len(workers))  # the first one writes
    seconds = training.kill(everyone if all_at_once else [workers[rank]], everyone=everyone)
    if training.process.returncode == 0:
        return None  # it was done already
    if not all_at_once:
        tally.slowest_end = max(tally.slowest_end, seconds)
    within = bool(parts(training.folder) - before)
    tally.kills += 1
    tally.of_all += all_at_once
    tally.in_writes += within
    newest = max((path.name[11:18] for path in (training.folder / WORK).glob("*/checkpoint-*")), default="none")
    whom = "all" if all_at_once else f"process {rank}"
    return f"kill {tally.kills:3d}: {whom}, newest checkpoint {newest}{', within a write' if within else ''}"


def torment(
    folder: Path,
    start: Callable[[], Command],
    *,
    kills: int,
    processes: int,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Tally:
    """Train budget small of a project undisturbed, then with so many kills. Raises SystemExit on other bytes.

    start: starts the training, which logs to folder/log.
    """
    dice, tally = random.Random(seed), Tally()
    clean(folder)
    training = Training(folder, start(), processes=processes)
    training.wait(lambda: any((folder / WORK).glob("*/checkpoint-*")), within=600)
    began = time.monotonic()
    training.finish()
    window = 0.7 * (time.monotonic() - began)  # without the begin: there an empty MLflow database is made
    want = results(folder)
    while tally.kills < kills:
        clean(folder)
        while tally.kills < kills:
            training = Training(folder, start(), processes=processes)
            told = strike(training, dice, window=window, tally=tally)
            if told is None:
                break
            say(told)
        else:
            training = Training(folder, start(), processes=processes)
        training.finish()
        if results(folder) != want:
            raise SystemExit(f"other bytes after {tally.kills} kills")
        tally.completed += 1
        say(f"          complete: {len(SAME)} files and {len(want) - len(SAME)} tensors, the same bytes")
    return tally


def launch(folder: Path, words: list[str], *, processes: int) -> Command:
    """`python -m sum finetune small`, or the same under torchrun."""
    single = command("finetune", "small", *words)
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    line = single if processes == 1 else [single[0], *several, *single[1:]]
    env = environment(0, 1) | {"CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(folder)}  # where torchrun leaves its own
    if processes == 1:
        del env["RANK"], env["WORLD_SIZE"]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(line, cwd=folder, env=env, stdout=log, stderr=log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_project(folder, unlabelled=12)
        for stage in ("pseudo_label", "uncertainty", "check_labels"):
            run(stage, folder)
        words = [f"{key}={value}" for key, value in SETTINGS.items()]
        tally = torment(
            folder,
            partial(launch, folder, words, processes=options.processes),
            kills=options.kills,
            processes=options.processes,
            seed=options.seed,
            say=lambda line: print(line, flush=True),
        )
    print(tally)


if __name__ == "__main__":
    main()
