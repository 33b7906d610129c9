"""MLflow through sum.tracking and sum.registry, on SQLite and with servers that are away."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sum import mlflow_client, tracking
from sum.errors import ConfigError, TrackingError
from sum.mlflow_client import connect
from sum.provenance import environment, flatten, provenance, tags_asked, uncommitted
from sum.registry import Registry, compare_link, download, run_of_weights
from sum.storage import sha256_file

ENV = os.environ | {"PYTHONPATH": "."}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights of a test")
    return path


def start(uri: str, name: str = "ft-small") -> tracking.Run:
    params = {"finetune": {"optim": {"lr": 1e-3, "steps": 4}}, "seed": 0, "human": ["a", "b"]}
    return tracking.start_run(uri=uri, experiment="sum", name=name, params=params, tags={"budget": "small"})


def test_a_finished_run_holds_everything(tracking_uri, weights, tmp_path):
    with start(tracking_uri) as run:
        for step in range(4):
            run.log_metrics({"loss": 1.0 / (step + 1), "lr": 0.1}, step=step)
        run.log_file(weights, folder="files")
        run.log_image(np.zeros((4, 5, 3), np.uint8), name="pictures/0001.png")
        run.log_model(weights, name="sum-ft-small", fingerprint="ff00", params={"backbone": "tiny"})
    found = run.client.get_run(run.id)
    assert found.info.status == "FINISHED"
    assert found.data.params["finetune.optim.lr"] == "0.001"
    assert found.data.params["human"] == "['a', 'b']"
    history = {point.step: point.value for point in run.client.get_metric_history(run.id, "loss")}
    assert history == {0: 1.0, 1: 0.5, 2: pytest.approx(1 / 3), 3: 0.25}
    assert found.data.tags["budget"] == "small"
    assert {"git.commit", "git.dirty", "dvc.lock", "version.torch", "device"} <= set(found.data.tags)
    kept = [path for path in (tmp_path / "mlruns").rglob("*") if path.is_file()]
    assert {"model.safetensors", "environment.txt", "0001.png"} <= {path.name for path in kept}
    assert not [path for path in kept if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    assert not [path for path in kept if path.read_bytes().startswith(b"\x80")]  # nor one under another name


def test_tags_of_the_environment_come_to_a_runs_own(tracking_uri, monkeypatch):
    monkeypatch.setenv("SUM_TAGS", '{"row": "small-sum-hq", "seed": 3, "budget": "another"}')
    tags = connect(tracking_uri).get_run(start(tracking_uri).id).data.tags
    assert (tags["row"], tags["seed"], tags["budget"]) == ("small-sum-hq", "3", "small")


@pytest.mark.parametrize("text", ["[]", "row", "{"])
def test_tags_that_are_none_are_one_error(text):
    assert tags_asked({}) == tags_asked({"SUM_TAGS": ""}) == {}
    with pytest.raises(ConfigError, match="SUM_TAGS is '"):
        tags_asked({"SUM_TAGS": text})


def test_an_interrupted_run_is_killed_and_resumes_without_doubled_steps(tracking_uri, weights):
    def train(run: tracking.Run, stop: int) -> None:
        with run:
            for step in range(4):
                run.log_metrics({"loss": float(step)}, step=step)
                if step == stop:
                    run.flush()
                    raise KeyboardInterrupt

    first = start(tracking_uri)
    with pytest.raises(KeyboardInterrupt):
        train(first, stop=1)
    assert first.client.get_run(first.id).info.status == "KILLED"
    again = tracking.resume_run(tracking_uri, first.id)
    assert again is not None
    assert again.id == first.id
    assert again.client.get_run(first.id).info.status == "RUNNING"
    train(again, stop=99)
    assert [point.step for point in again.client.get_metric_history(first.id, "loss")] == [0, 1, 2, 3]
    assert again.client.get_run(first.id).info.status == "FINISHED"


def test_an_error_ends_the_run_as_failed(tracking_uri):
    run = start(tracking_uri)
    with pytest.raises(ZeroDivisionError), run:
        raise ZeroDivisionError
    assert run.client.get_run(run.id).info.status == "FAILED"


def test_a_run_that_the_database_does_not_know_is_none(tracking_uri):
    assert tracking.resume_run(tracking_uri, "0" * 32) is None


def test_more_metrics_than_one_request_takes(tracking_uri):
    run = start(tracking_uri)
    for step in range(1000):
        run.log_metrics({"a": 1.0, "b": 2.0, "c": 3.0}, step=step)
    run.finish()
    assert len(run.client.get_metric_history(run.id, "c")) == 1000


def test_training_goes_on_while_the_server_is_away(tracking_uri, monkeypatch, caplog):
    run = start(tracking_uri)
    real = run.client.log_batch

    def refuse(*args, **keywords):
        raise OSError("connection refused")

    monkeypatch.setattr(run.client, "log_batch", refuse)
    for step in range(tracking.BATCH + 50):
        run.log_metrics({"loss": 1.0}, step=step)
    assert len([record for record in caplog.records if "training goes on" in record.message]) == 1
    with pytest.raises(TrackingError, match="connection refused"):
        run.finish()
    monkeypatch.setattr(run.client, "log_batch", real)
    run.finish()
    assert len(run.client.get_metric_history(run.id, "loss")) == tracking.BATCH + 50


def test_a_batch_that_cut_a_step_loses_and_doubles_nothing(tracking_uri, monkeypatch):
    monkeypatch.setattr(tracking, "BATCH", 3)  # two metrics a step: the first batch ends inside step 1
    run = start(tracking_uri)
    real, calls = run.client.log_batch, []

    def once(*args, **keywords):
        calls.append(1)
        if len(calls) > 1:
            raise OSError("connection refused")
        return real(*args, **keywords)

    monkeypatch.setattr(run.client, "log_batch", once)
    for step in range(4):
        run.log_metrics({"loss": 1.0, "lr": 2.0}, step=step)
    run.offer()
    assert [len(run.client.get_metric_history(run.id, key)) for key in ("loss", "lr")] == [2, 1]
    monkeypatch.setattr(run.client, "log_batch", real)
    again = tracking.resume_run(tracking_uri, run.id)  # the first was killed here, with what waited
    assert again is not None
    for step in range(4):
        again.log_metrics({"loss": 1.0, "lr": 2.0}, step=step)
    again.finish()
    for key in ("loss", "lr"):
        assert [point.step for point in again.client.get_metric_history(run.id, key)] == [0, 1, 2, 3]


def test_a_model_is_logged_once_a_fingerprint(tracking_uri, weights):
    run = start(tracking_uri)
    first = run.log_model(weights, name="m", fingerprint="aa", params={})
    assert run.log_model(weights, name="m", fingerprint="aa", params={}) == first
    assert run.log_model(weights, name="m", fingerprint="bb", params={}) != first
    resumed = tracking.resume_run(tracking_uri, run.id)
    assert resumed is not None
    assert resumed.model_id == run.model_id


def test_the_evaluation_lies_on_model_and_run_under_one_digest(tracking_uri, weights):
    for name, value in (("base", 0.5), ("sum-ft-small", 0.6)):
        run = start(tracking_uri, name)
        run.log_model(weights, name=name, fingerprint=name, params={})
        run.log_evaluation({"all": {"iou_1": value + 0.1}, "demo": {"iou_1": value}}, digest="d" * 64)
        run.finish()
        metrics = run.client.get_logged_model(run.model_id).metrics
        found = {(m.dataset_name, m.key, m.value) for m in metrics}
        assert found == {("demo", "iou_1", value), ("all", "iou_1", value + 0.1)}
        assert {m.dataset_digest for m in metrics} == {"d" * 36}
        shown = run.client.get_run(run.id).data.metrics
        assert shown["demo/iou_1"] == value
        assert shown["iou_1"] == value + 0.1  # of all, although it was not the last


def test_an_evaluation_wants_a_logged_model(tracking_uri):
    with pytest.raises(TrackingError, match="no logged model"):
        start(tracking_uri).log_evaluation({}, digest="d")


def test_weights_of_another_server_get_a_run_of_their_own(tracking_uri, weights):
    def find(run_id=None) -> tracking.Run:
        where = {"uri": tracking_uri, "experiment": "sum"}
        return run_of_weights(weights, name="base", fingerprint="cc", run_id=run_id, **where)

    first = find("0" * 32)
    assert first.client.get_run(first.id).info.status == "FINISHED"
    second = find()
    assert (second.id, second.model_id) == (first.id, first.model_id)


def test_one_version_a_model_and_aliases_that_move(tracking_uri, weights):
    run = start(tracking_uri)
    registry = Registry(tracking_uri)
    versions = []
    for fingerprint in ("one", "two"):
        model = run.log_model(weights, name="m", fingerprint=fingerprint, params={})
        about = {"budget": "small", "overall": fingerprint}
        version = registry.register(model, run_id=run.id, name="sum", tags=about)
        assert registry.register(model, run_id=run.id, name="sum", tags=about).number == version.number
        registry.point("sum", alias="champion", number=version.number)
        versions.append(version)
    champion = registry.at("sum", alias="champion")
    assert champion is not None
    assert (champion.number, champion.tags["overall"]) == (versions[1].number, "two")
    registry.drop("sum", alias="champion", number=versions[0].number)  # another one's: stays
    assert registry.at("sum", alias="champion") is not None
    registry.drop("sum", alias="champion", number=versions[1].number)
    assert registry.at("sum", alias="champion") is None
    registry.tag(versions[0], key="refused", value="no gain")
    assert run.client.get_model_version("sum", versions[0].number).tags["refused"] == "no gain"
    registry.untag(versions[0], key="refused")
    registry.untag(versions[0], key="refused")
    assert "refused" not in run.client.get_model_version("sum", versions[0].number).tags


def register(uri: str, weights: Path, fingerprint: str) -> None:
    """`weights` as the champion of registered model `sum`."""
    run = start(uri)
    model = run.log_model(weights, name="m", fingerprint=fingerprint, params={})
    version = Registry(uri).register(model, run_id=run.id, name="sum", tags={})
    Registry(uri).point("sum", alias="champion", number=version.number)


def test_the_champion_is_downloaded_with_its_card(tracking_uri, weights, tmp_path):
    (tmp_path / "model.json").write_text('{"backbone": "tiny"}')
    register(tracking_uri, weights, sha256_file(weights))
    folder = tmp_path / "fetched" / "champion"
    found = download(tracking_uri, "sum", alias="champion", folder=folder)
    assert found == folder / weights.name
    assert found.read_bytes() == weights.read_bytes()
    there = {path.name for path in folder.iterdir()}
    assert there == {"MLmodel", "model.json", "model.safetensors", "registered_model_meta"}  # the last is MLflow's


def test_a_download_that_is_not_what_was_registered_is_refused(tracking_uri, weights, tmp_path):
    register(tracking_uri, weights, sha256_file(weights))
    (stored,) = (tmp_path / "mlruns").rglob("model.safetensors")
    stored.write_bytes(b"weights of a thief")
    with pytest.raises(
        TrackingError, match=r"models:/sum@champion .version 1.: none of .*'model.safetensors'.* has the"
    ):
        download(tracking_uri, "sum", alias="champion", folder=tmp_path / "fetched")
    assert not list((tmp_path / "fetched").iterdir())
    with pytest.raises(TrackingError, match="has no models:/sum@large"):
        download(tracking_uri, "sum", alias="large", folder=tmp_path / "fetched")


@pytest.mark.timeout(60)
def test_no_server_is_one_error_at_once(free_port):
    began = time.monotonic()
    with pytest.raises(TrackingError, match=rf"no MLflow server answers at .*:{free_port}.*mlflow server"):
        start(f"http://127.0.0.1:{free_port}")
    assert time.monotonic() - began < 12


@pytest.mark.timeout(60)
def test_a_server_that_hangs_is_one_error_within_seconds(silent_server, monkeypatch):
    monkeypatch.setattr(mlflow_client, "KNOCK", 0.2)
    began = time.monotonic()
    with pytest.raises(TrackingError, match=r"no MLflow server answers.*timed out"):
        start(f"http://127.0.0.1:{silent_server}")
    assert time.monotonic() - began < 12


def test_the_environment_wins_over_the_setting(tracking_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    assert start("http://127.0.0.1:9").client.tracking_uri == tracking_uri


def test_a_database_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrackingError, match="MLflow did not take sqlite"):
        start(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    facts = provenance(tmp_path)
    assert (facts["git.commit"], facts["git.dirty"], facts["dvc.lock"]) == ("unknown",) * 3
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert provenance(tmp_path)["git.commit"] == "unknown"


def test_uncommitted_changes_are_a_patch_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert uncommitted(tmp_path) is None
    path = tmp_path / "file.txt"
    path.write_text("one\n\ntwo\n")
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--message", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert uncommitted(tmp_path) is None
    path.write_text("one\n\n  two \n")
    patch = uncommitted(tmp_path)
    subprocess.run(["git", "checkout", "--quiet", "file.txt"], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply"], input=patch, text=True, cwd=tmp_path, check=True)
    assert path.read_text() == "one\n\n  two \n"
    monkeypatch.setattr("sum.provenance.LARGEST", 10)
    assert uncommitted(tmp_path).splitlines()[0] == patch[:10]
    assert "cut after 10 of" in uncommitted(tmp_path)


def test_peak_memory_is_in_megabytes():
    code = "from sum.provenance import peak_memory; a = bytearray(300_000_000); print(peak_memory())"
    small_parent = ["sh", "-c", '"$0" "$@"; exit $?']  # Linux counts the parent before exec too: pytest is large
    command = [*small_parent, sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=ENV).stdout
    assert 300 < float(said) < 400  # what was asked for, and Python


def test_environment_lists_versions():
    assert "\ntorch==" in environment()
    assert flatten({"a": {"b": {"c": None}}}) == {"a.b.c": "None"}


def test_compare_link_maps_versions_to_runs():
    link = compare_link("sum", {"3": "abc"})
    assert link.startswith("/#/compare-model-versions?name=%22sum%22&runs=%7B%223%22%3A%22abc%22%7D&")
