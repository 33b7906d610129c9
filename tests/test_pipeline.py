"""The real stages under real DVC at a very small scale (slow): repro, nothing twice, narrow re-runs, kill -9, S3."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import pytest
import yaml

from flows.dvc import environment
from sum.registry import Registry
from tests.flows.served import LONG, flow_processes, serving
from tests.small import PROJECT, Small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


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
    assert "data/evaluation/large/figures.json" in small.dvc("metrics", "show")
    small.dvc("plots", "show", "--out", "plots")
    page = (small.folder / "plots" / "index.html").read_text()
    for budget in ("small", "medium", "large"):
        assert f"{budget}/history.csv" in page


def test_a_changed_budget_runs_only_that_budget(small):
    path = small.folder / "params.yaml"
    before = path.read_text()
    small.edit(lambda tree: tree["budgets"]["small"].update(human=["demo_salient", "demo_entity"]))
    try:
        own = ["finetune@small", "evaluate@small", "check_evaluation@small", "register@small"]
        assert stages_run(small.dvc("repro")) == ["validate", *own, "report"]
    finally:
        path.write_text(before)
        said = small.dvc("repro")
    assert "Stage 'finetune@small' is cached" in said  # the old weights come back
    assert "register@small" in stages_run(said)  # aliases are no files: DVC's cache could not move them back
    registry = Registry(f"sqlite:///{small.folder}/mlflow.db")
    for budget in ("small", "medium", "large"):
        told = json.loads((small.folder / f"data/registry/{budget}.json").read_text())
        held = registry.at("sum", alias=budget)
        assert held is not None
        assert held.number == told["versions"]["sum"]
        assert registry.figures(told["model_id"], digest=told_benchmark(small, budget))["all"]


def told_benchmark(small: Small, model: str) -> str:
    return str(json.loads((small.folder / f"data/evaluation/{model}/protocol.json").read_text())["benchmark"])


def test_training_again_to_the_same_weights_evaluates_nothing_again(small):
    """run.json beside the weights has another run id and other times: register wants them, the benchmark does not."""
    small.dvc("repro", "--force", "--single-item", "finetune@small")
    assert stages_run(small.dvc("repro")) == ["register@small", "report"]


@pytest.mark.parametrize(
    ("stage", "out", "left"),
    [
        ("refine", "data/refiner", "checkpoint-*"),
        ("pseudo_label", "data/pseudo_labels", "[0-9a-f]*.arrow"),
        ("uncertainty", "data/uncertainty", "[0-9a-f]*.arrow"),
        ("finetune@small", "data/models/small", "checkpoint-*"),  # its first file is a note for MLflow
        ("evaluate@small", "data/evaluation/small", "*"),
    ],
)
def test_kill_9_then_repro_goes_on_and_gives_the_same(small, stage, out, left):
    """The whole group is killed as soon as the stage has left something to resume from in its work folder."""
    kept = {path.name: content(path) for path in sorted((small.folder / out).iterdir()) if path.name in SAME}
    assert kept
    work = small.folder / "work" / stage.split("@")[0]
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(small.folder / out)
    command = small.command("dvc", "repro", "--force", "--single-item", stage)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=small.folder, env=small.env, start_new_session=True, **quiet) as child:
        while not [path for path in work.rglob(left) if path.is_file() and not path.name.startswith(".")]:
            assert child.poll() is None, "the stage ended before it left anything to resume from"
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)
    assert not (small.folder / out / next(iter(kept))).exists(), "killed too late to test anything"
    said = small.dvc("repro", "--force", "--single-item", stage)
    assert ("resumed at step" in said) == left.startswith("checkpoint")
    assert {path.name: content(path) for path in sorted((small.folder / out).iterdir()) if path.name in SAME} == kept


@pytest.mark.parametrize(
    ("stage", "out", "share"),
    [
        ("demo", "data/raw/demo", 0.7),
        ("ingest", "data/manifest", 0.9),
        ("validate", "data/validation/report.json", 0.9),
        ("check_labels", "data/checks/labels.json", 0.9),
        ("check_evaluation@small", "data/checks/evaluation/small.json", 0.95),
        ("register@small", "data/registry/small.json", 0.7),
        ("register@small", "data/registry/small.json", 0.95),
        ("report", "data/report", 0.95),
    ],
)
def test_kill_9_of_a_quick_stage_leaves_nothing_half_done(small, stage, out, share):
    """Killed after a share of its time; afterwards it gives the same files, and register no second version."""
    command = small.command("sum", *stage.split("@"))
    options = {"cwd": small.folder, "env": small.env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    began = time.monotonic()
    subprocess.run(command, check=True, **options)
    lasts = time.monotonic() - began
    kept = tree(small.folder / out)
    with subprocess.Popen(command, **options) as child:
        time.sleep(share * lasts)
        child.kill()
    left = tree(small.folder / out)
    assert not left or left == kept, "half written"
    subprocess.run(command, check=True, **options)
    assert tree(small.folder / out) == kept
    assert not [path for path in (small.folder / "data").rglob(".*.partial") if path.is_dir()]


def tree(path: Path) -> dict[str, bytes]:
    """Relative path -> content of a file or of a folder's files."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(files)}


# What a resumed stage must give again to the last bit; run.json and the like tell times and ids.
SAME = {"model.safetensors", "report.json", "rows.parquet", "predictions.parquet", "history.csv"} | {
    f"shard-{number:05d}.arrow" for number in range(20)
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


def test_push_to_s3_and_pull_into_a_copy_without_data(small, bucket, tmp_path, monkeypatch):
    small.dvc("repro")  # what the killed stages before left out of date
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.setitem(small.env, name, os.environ[name])
    small.dvc("remote", "add", "--default", "--force", "store", bucket)
    small.dvc("remote", "modify", "--local", "store", "endpointurl", os.environ["AWS_ENDPOINT_URL_S3"])
    small.dvc("push")
    other = copy(small)
    other.folder = tmp_path / "other"
    absent = {small.folder: {"data", "work"}, small.folder / ".dvc": {"cache", "tmp"}}
    shutil.copytree(small.folder, other.folder, ignore=lambda place, names: absent.get(Path(place), set()) & {*names})
    other.dvc("pull")
    assert stages_run(other.dvc("repro", "--dry")) == []
    for out in ("data/raw/demo", "data/models/large", "data/report"):
        assert tree(other.folder / out) == tree(small.folder / out)


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


def test_a_killed_deployment_run_goes_on_from_its_checkpoint(small, free_port):
    """`make serve`, `prefect deployment run sum/ft-small`, kill -9 of the flow while it trains, run again.

    The last of this file: it leaves another model than the others want.
    """
    for name in ("flows", "prefect.yaml"):
        (small.folder / name).symlink_to(PROJECT / name)
    small.edit(lambda tree: tree["finetune"]["optim"].update(steps=8))
    shutil.rmtree(small.folder / "work" / "finetune")
    with serving(small.folder, port=free_port) as served:
        with served.run("sum/ft-small") as watch:
            while not list((small.folder / "work").glob("finetune/*/checkpoint-*")):
                assert watch.poll() is None, served.log.read_text()
                time.sleep(0.05)
            (flow,) = flow_processes(served)
            os.kill(flow, signal.SIGKILL)
            told, _ = watch.communicate(timeout=120)
        assert watch.returncode != 0, told
        with served.run("sum/ft-small") as watch:
            told, _ = watch.communicate(timeout=LONG)
        log = served.log.read_text()
        assert watch.returncode == 0, told + log
        assert "resumed at step" in log
        kept = served.artifacts()
    assert [row["model"] for row in json.loads(kept["results-small"])] == ["base", "small", "medium", "large"]
    assert "Registered: " in kept["links-small"]
    assert "/models?workflowType" in kept["mlflow"]
    assert "compare-model-versions" in kept["mlflow-compare"]
