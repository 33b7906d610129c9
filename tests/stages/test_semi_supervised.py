"""Stage finetune with a teacher, and with the contrastive loss: a kill, several processes, what the plan says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from sum.commands.plan import describe
from sum.errors import ConfigError
from sum.stages import finetune
from tests.stages.label_world import ROOT, WEIGHTS, kill
from tests.stages.tuning_world import OPTIM, as_if_uninterrupted, settings

pytestmark = pytest.mark.filterwarnings("ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning")
EMA = OPTIM | {"ema": 0.9, "steps": 4}


def test_a_teacher_wants_an_average_and_the_plan_says_what_it_leaves_out(tmp_path: Path, tracking_uri: str) -> None:
    with pytest.raises(ConfigError, match=r"augseg_box: its teacher is the average of the weights; set optim\.ema"):
        settings(tmp_path, tracking_uri, method="augseg_box")
    with pytest.raises(ConfigError, match=r"method augseg chooses among three outputs, and arch hq has one"):
        settings(tmp_path, tracking_uri, method="augseg", optim=EMA, arch="hq")
    words = {"sum": "", "augseg": "the teacher's pass", "u2pl": "the contrastive loss"}
    for method, said in words.items():
        told = describe(settings(tmp_path, tracking_uri, method=method, optim=EMA))
        assert said in told
        assert ("not counted" in told) == bool(said)


@pytest.mark.slow  # imports torch and MLflow once more
@pytest.mark.parametrize("method", ["augseg", "u2pl"])
def test_a_killed_training_goes_on_to_the_same_weights(
    project: Path, tracking_uri: str, tmp_path: Path, method: str
) -> None:
    """The teacher is the average and the bank lies in the checkpoint: after the kill both are what they were."""
    options = {"method": method, "optim": EMA, "accumulate": 2, "augment": {"flip": 0.5, "scale": [0.5, 1.5]}}
    config = settings(project, tracking_uri, **options)  # type: ignore[arg-type]
    whole = tmp_path / "whole"
    shutil.copytree(project, whole)
    kill(project, stage="finetune", function="train_in_parts", call=3, budget="small")
    (state,) = (load_file(max(path.glob("checkpoint-*"))) for path in Path("work/finetune").iterdir())
    assert bool("more.bank.keys" in state) == (method == "u2pl")
    if method == "u2pl":
        assert state["more.bank.count"].sum() > 0
    finetune.run(config, budget="small")
    resumed = as_if_uninterrupted(whole, config)
    history = pd.read_csv(Path("data/models/small/history.csv"))
    column = "loss_consistency" if method == "augseg" else "loss_contrast"
    assert (history[column] > 0).any()
    assert json.loads(resumed["summary.json"])["final"][column] == pytest.approx(history[column].mean(), abs=1e-5)


SHARED = {"steps": 3, "lr": 1e-3, "images_per_batch": 4, "masks_per_image": 3, "warmup_steps": 0, "ema": 0.9}
ROUNDS = {"rounds": 2, "loss_side": 64}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_learn_what_one_learns(project: Path, tmp_path: Path) -> None:
    """As tests/stages/test_finetune_processes.py has it; without the keys' biases, to which attention is blind.

    The first of the two has the human images of every step, the other the unlabelled ones. Of u2pl: its processes share
    the bank besides.
    """
    found = [tmp_path / "one", tmp_path / "two"]
    for folder in found:
        shutil.copytree(project, folder)
        config = settings(folder, f"sqlite:///{folder}/mlflow.db", method="u2pl", optim=SHARED, rounds=ROUNDS)
        if folder == found[0]:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                finetune.run(config, budget="small")
            continue
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "sum", "finetune", "small"]
        env |= {"SUM_PROCESSES": "2"}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    want, many = (load_file(folder / "data/models/small/model.safetensors") for folder in found)
    base, apart, gone = load_file(found[0] / WEIGHTS), torch.zeros(()), torch.zeros(())
    for name in want.keys() - {name for name in want if name.endswith("k_proj.bias")}:
        way = (want[name] - base.get(name, torch.zeros_like(want[name]))).norm()
        apart, gone = apart + (many[name] - want[name]).norm() ** 2, gone + way**2
    assert gone > 0
    assert apart.sqrt() <= 5e-3 * gone.sqrt()
    curves = [pd.read_csv(folder / "data/models/small/history.csv") for folder in found]
    for column in ("loss", "grad_norm", "loss_contrast"):
        assert curves[1][column].tolist() == pytest.approx(curves[0][column].tolist(), rel=5e-3, abs=1e-6)
    banks = [load_file(max(folder.glob("work/finetune/*/checkpoint-*"))) for folder in found]
    assert torch.equal(banks[0]["more.bank.count"], banks[1]["more.bank.count"])
    torch.testing.assert_close(banks[1]["more.bank.keys"], banks[0]["more.bank.keys"], rtol=1e-2, atol=1e-2)
