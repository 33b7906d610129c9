"""The real stages under real DVC at a very small scale (slow): repro, nothing twice, narrow re-runs, kill -9, S3."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flows.dvc import environment
from tests.flows.project import make_project

PROJECT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def shrink(path: Path) -> None:
    """Turn params.yaml into one whose whole pipeline takes minutes: its results mean nothing."""
    tree = yaml.safe_load(path.read_text())
    tree["device"] = "cpu"
    tree["demo"]["scenes"] = dict.fromkeys(tree["demo"]["scenes"], 5)
    for section in ("refine", "finetune"):
        small = {"steps": 4, "warmup_steps": 1, "decay_steps": 1, "images_per_batch": 2, "masks_per_image": 2}
        tree[section]["optim"] |= small | {"checkpoint_every": 1}
    tree["refine"] |= {"min_iou": 0.0, "pred_iou_thresh": 0.0, "stability_thresh": 0.0, "holdout_share": 0.4}
    tree["pseudo_label"] |= {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_thresh": 0.0, "shard_images": 1}
    tree["evaluate"] |= {"resamples": 20, "pictures": 1}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))


class Small:
    """A copy of this project at small scale, with a git repository of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**environment(), "OMP_NUM_THREADS": "1", "GIT_CEILING_DIRECTORIES": str(folder.parent)}
        self.env["PYTHONPATH"] = str(folder)
        for name in ("sum", ".dvc"):
            shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "tmp", "cache"))
        for name in ("params.yaml", "dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(PROJECT / name, folder)
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        shrink(folder / "params.yaml")

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", *words]

    def dvc(self, *words: str) -> str:
        """Run DVC to a good end; returns what it said."""
        command = self.command("dvc", *words)
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def hashes(self) -> dict[str, str]:
        """Output -> hash, of all stages, as dvc.lock has them."""
        lock = yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"]
        return {out["path"]: out["md5"] for stage in lock.values() for out in stage["outs"]}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    """The project after one whole `dvc repro`."""
    made = Small(tmp_path_factory.mktemp("small"))
    made.dvc("repro")
    return made


def stages_run(said: str) -> list[str]:
    return [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage '")]


def test_everything_is_made_and_a_second_repro_does_nothing(small):
    assert (small.folder / "data" / "report" / "index.html").is_file()
    assert "up to date" in small.dvc("status")
    assert stages_run(small.dvc("repro")) == []
    shown = subprocess.run(
        small.command("sum", "results"), cwd=small.folder, env=small.env, capture_output=True, text=True, check=True
    ).stdout
    for model in ("base", "small", "medium", "large"):
        assert model in shown
    assert "data/report/index.html" in shown
    assert "mlflow ui" in shown


def test_metrics_and_plots(small):
    assert "data/evaluation/large/summary.json" in small.dvc("metrics", "show")
    small.dvc("plots", "show", "--out", "plots")
    page = (small.folder / "plots" / "index.html").read_text()
    for budget in ("small", "medium", "large"):
        assert f"{budget}/history.csv" in page


def test_a_changed_budget_runs_only_that_budget(small):
    path = small.folder / "params.yaml"
    before = path.read_text()
    tree = yaml.safe_load(before)
    tree["budgets"]["small"]["human"] = ["demo_salient", "demo_entity"]
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    try:
        own = ["finetune@small", "evaluate@small", "register@small"]
        assert stages_run(small.dvc("repro")) == ["validate", *own, "report"]
    finally:
        path.write_text(before)
        small.dvc("repro")  # from the run cache


@pytest.mark.parametrize(
    ("stage", "out"),
    [
        ("refine", "data/refiner"),
        ("pseudo_label", "data/pseudo_labels"),
        ("uncertainty", "data/uncertainty"),
        ("finetune@small", "data/models/small"),
        ("evaluate@small", "data/evaluation/small"),
    ],
)
def test_kill_9_then_repro_goes_on_and_gives_the_same(small, stage, out):
    """The whole group is killed as soon as the stage has left something in its work folder."""
    kept = {path.name: content(path) for path in sorted((small.folder / out).iterdir()) if path.name in SAME}
    assert kept
    work = small.folder / "work" / stage.split("@")[0]
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(small.folder / out)
    command = small.command("dvc", "repro", "--force", "--single-item", stage)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=small.folder, env=small.env, start_new_session=True, **quiet) as child:
        while not [path for path in work.rglob("*") if path.is_file() and not path.name.startswith(".")]:
            assert child.poll() is None, "the stage ended before it left anything to resume from"
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)
    assert not (small.folder / out / next(iter(kept))).exists(), "killed too late to test anything"
    small.dvc("repro", "--force", "--single-item", stage)
    assert {path.name: content(path) for path in sorted((small.folder / out).iterdir()) if path.name in SAME} == kept


# What a resumed stage must give again to the last bit; run.json and the like tell times and ids.
SAME = {"model.safetensors", "report.json", "rows.parquet", "predictions.parquet", "history.csv"} | {
    f"shard-{number:05d}.parquet" for number in range(20)
}


def content(path: Path) -> object:
    """Bytes; of a table its rows, as compression may cut them elsewhere."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path).to_pylist()
    return path.read_bytes()


@pytest.fixture
def bucket(monkeypatch) -> Iterator[str]:
    """An S3 server on loopback with a bucket; the environment points there."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="project")
    yield "s3://project/dvc"
    server.stop()


def test_push_to_s3_and_pull_into_an_empty_copy(bucket, tmp_path):
    """A stub pipeline: the files of any stage travel the same way."""
    (tmp_path / "one").mkdir()
    one = make_project(tmp_path / "one")
    env = environment()

    def dvc(folder: Path, *words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *words], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    dvc(one, "repro", "--single-item", "demo")
    dvc(one, "remote", "add", "--default", "s3", bucket)
    dvc(one, "remote", "modify", "--local", "s3", "endpointurl", os.environ["AWS_ENDPOINT_URL_S3"])
    dvc(one, "push")
    other = tmp_path / "other"
    shutil.copytree(one, other, ignore=shutil.ignore_patterns("out", "cache", "tmp"))
    dvc(other, "pull", "demo")
    assert (other / "out" / "demo").read_text() == (one / "out" / "demo").read_text()


def test_base_weights_in_a_bucket_are_a_dependency_like_a_file(bucket, tmp_path):
    """dvc.yaml lists `${model.checkpoint}` among deps: an s3:// URL there is watched by its ETag."""
    import boto3

    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"])
    client.put_object(Bucket="project", Key="weights.bin", Body=b"one")
    (tmp_path / "params.yaml").write_text("model:\n  checkpoint: s3://project/weights.bin\n")
    stage = {"cmd": "echo made > out", "deps": ["${model.checkpoint}"], "outs": ["out"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"refine": stage}}))

    def dvc(*words: str) -> str:
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    dvc("init", "--no-scm", "--quiet")
    assert stages_run(dvc("repro")) == ["refine"]
    assert stages_run(dvc("repro")) == []
    client.put_object(Bucket="project", Key="weights.bin", Body=b"two")
    assert stages_run(dvc("repro")) == ["refine"]
