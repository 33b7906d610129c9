"""Stage finetune by several processes, and by several readers: the weights of one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from sum import tracking
from sum.stages import finetune
from tests.stages.label_world import ROOT, WEIGHTS
from tests.stages.tuning_world import settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning"),
]
OPTIM = {"steps": 4, "lr": 1e-3, "images_per_batch": 6, "masks_per_image": 3, "checkpoint_every": 2, "warmup_steps": 0}
ROUNDS = {"rounds": 4, "loss_side": 64}


def world(template: Path, folder: Path, **optim: int) -> Path:
    """The project with one human photo and five with pseudo-labels, to be trained on in batches of six: no epoch ends
    with a step.
    """
    shutil.copytree(template, folder)
    settings(folder, f"sqlite:///{folder}/mlflow.db", optim=OPTIM | optim, rounds=ROUNDS)
    return folder


SLURM = {  # what stands for Slurm and DVC: two machines that are this one, and nothing to commit to
    "scontrol": "echo localhost; echo localhost",
    "srun": '[ "$1" = --kill-on-bad-exit=1 ] || exit 9; shift; "$@" & first=$!; "$@"; wait $first',
    "dvc": 'echo "$@" > committed',
}


def start(folder: Path, *, processes: int) -> None:
    """Two by the file for Slurm, one on each of two machines; more by the variable for several GPUs."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "sum", "finetune", "small"]
    if processes == 2:
        for name, text in SLURM.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        command = ["bash", str(ROOT / "examples/slurm_finetune.sbatch"), "small"]
        path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        env |= {"PATH": path, "PROCESSES": "1", "PORT": str(port), "SLURM_SUBMIT_DIR": str(folder)}
        env |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    else:
        env["SUM_PROCESSES"] = str(processes)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert processes != 2 or (folder / "committed").read_text() == "commit --force finetune@small\n"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "data/models/small/model.safetensors")


def run(folder: Path, **optim: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        uri = f"sqlite:///{folder}/mlflow.db"
        finetune.run(settings(folder, uri, optim=OPTIM | optim, rounds=ROUNDS), budget="small")


@pytest.fixture(scope="module")
def one(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = world(template, tmp_path_factory.mktemp("one") / "project")
    run(folder)
    return folder


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_learn_what_one_learns_from_the_whole_batch(
    one: Path, template: Path, tmp_path: Path, processes: int
) -> None:
    """Real rounds of method sum, task prompts and losses; some have no human mask, and so no gradient of a task prompt.

    AdamW makes steps of full length of gradients that are rounding only: those of the keys' biases, to which attention
    is blind. They are left out; all else differs by a small part of the way it went.
    """
    many = world(template, tmp_path / "many", workers=processes - 2)
    start(many, processes=processes)
    base, want, found = load_file(one / WEIGHTS), weights(one), weights(many)
    assert want.keys() == found.keys()
    apart, gone = torch.zeros(()), torch.zeros(())
    for name in want.keys() - {name for name in want if name.endswith("k_proj.bias")}:
        way = (want[name] - base.get(name, torch.zeros_like(want[name]))).norm()
        difference = (found[name] - want[name]).norm()
        assert difference <= 0.03 * way, name
        apart, gone = apart + difference**2, gone + way**2
    assert gone > 0
    assert apart.sqrt() <= 2e-3 * gone.sqrt()
    curves = [pd.read_csv(folder / "data/models/small/history.csv") for folder in (one, many)]
    for column in ("loss", "grad_norm"):  # of the whole batch, not of the first process's images
        assert curves[1][column].tolist() == pytest.approx(curves[0][column].tolist(), rel=2e-3)
    runs = mlflow_runs(many)
    assert len(runs) == 1  # the first process alone keeps a record
    assert [path.name for path in many.glob("work/finetune/*/checkpoint-*")] == [
        path.name for path in one.glob("work/finetune/*/checkpoint-*")
    ]


def mlflow_runs(folder: Path) -> list[str]:
    """Ids of the runs of fine-tuning that MLflow has."""
    client = tracking.connect(f"sqlite:///{folder}/mlflow.db")
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return [run.info.run_id for run in found]


@pytest.mark.parametrize("workers", [1, 2])
def test_readers_do_not_matter(one: Path, template: Path, tmp_path: Path, workers: int) -> None:
    other = world(template, tmp_path / "other", workers=workers)
    run(other, workers=workers)
    want, found = weights(one), weights(other)
    assert all(torch.equal(found[name], want[name]) for name in want)
