"""`python -m sum ablate` with real trainings: killed in the middle it goes on, and its tables are the same (slow)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from sum.data.labels import LabelStore
from sum.mlflow_client import connect
from tests.ablation_world import LABELLED, make_labels, make_project

PROJECT = Path(__file__).parents[2]
LONG = 600  # seconds that a call may take on a busy machine


def start(out: str, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sum", "ablate", "--out", out, *words]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def end(child: subprocess.Popen[bytes]) -> str:
    told = child.communicate(timeout=LONG)[0].decode()
    assert child.returncode == 0, told
    return told


def at_work(folder: Path) -> list[int]:
    """Ids of the processes whose working directory lies below a folder, but for this one."""
    found = []
    for process in psutil.process_iter(["pid", "cwd", "status"]):
        inside = Path(process.info["cwd"] or "/").is_relative_to(folder)
        if inside and process.info["pid"] != os.getpid() and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(int(process.info["pid"]))
    return found


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + LONG
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_the_middle_it_goes_on_to_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    grid = [{"methods": ["human_only"]}, {"methods": ["sum"], "archs": ["hq"]}]
    one = [("ablation.budgets", ["small"]), ("ablation.seeds", [0]), ("ablation.grid", grid)]
    make_project(project, changes=[*LABELLED, *one])
    make_labels()
    with start("killed") as killed:
        wait_for(project, "killed/runs/small-sum-hq-0/work/finetune/*/*.safetensors")
        os.kill(killed.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while at_work(project):
        assert time.monotonic() < deadline, "a training outlived the command that started it"
        time.sleep(0.2)
    done = project / "killed/runs/small-human_only-full-0"
    before = (done / "finetune.log").stat().st_mtime_ns
    assert (done / "done.json").is_file()

    end(start("killed"))
    assert (done / "finetune.log").stat().st_mtime_ns == before, "what was done was done again"
    end(start("whole", "--jobs", "2", "finetune.optim.workers=0"))
    for name in ("tables.csv", "pairs.csv"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes(), name
    table = pd.read_csv("whole/tables.csv")
    rows = {output: set(part["row"]) for output, part in table.groupby("output")}
    assert rows == {"oracle": {"base", "small-human_only-full"}, "single": {*rows["oracle"], "small-sum-hq"}}
    assert LabelStore(Path("whole/runs/small-sum-hq-0/data/pseudo_labels")).image_ids, "nothing to learn from"
    first, second = (plain(Path(out, "tables.md")) for out in ("killed", "whole"))
    assert first == second
    assert sorted(path.name for path in Path("data").iterdir()) == sorted(
        ["raw", "manifest", "validation", "refiner", "pseudo_labels", "uncertainty", "checks"]
    )
    check_tracking(f"sqlite:///{project}/mlflow.db")


def plain(path: Path) -> str:
    """Without the table of costs, whose times are another's every time."""
    return re.sub(r"## What it costs.*?(?=\n## )", "", path.read_text(), flags=re.DOTALL)


def check_tracking(uri: str) -> None:
    """A run with tags and figures for each of both folders' runs; nothing registered."""
    client = connect(uri)
    experiment = client.get_experiment_by_name("sum-ablation")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    tags = [{key: run.data.tags.get(key) for key in ("ablation", "row", "arch", "seed")} for run in runs]
    wanted = [
        {"ablation": out, "row": f"small-{method}-{arch}", "arch": arch, "seed": "0"}
        for out in ("killed", "whole")
        for method, arch in (("human_only", "full"), ("sum", "hq"))
    ]
    found = [entry for entry in tags if entry["row"] != "base"]
    assert sorted(found, key=str) == sorted(wanted, key=str)
    assert all("all/iou_at_1" in run.data.metrics for run in runs)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert not client.search_registered_models()
