"""One DVC stage as a child: outcome, lines, failures, and no orphan when the parent dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from flows.dvc import StageFailed, StageRefused, environment, out_of_date, run_stage
from tests.flows.project import PROJECT, make_project, processes_with


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """One project for all tests here; each uses a stage of its own."""
    commands = {
        "refine": "echo 'error: data/manifest is missing'; exit 1",
        "pseudo_label": "echo 'error: no MLflow server answers'; exit 75",
        "uncertainty": "echo Traceback; exit 1",
        "report": "echo started; exec sleep 300.25",
    }
    made = make_project(tmp_path_factory.mktemp("project"), commands)
    (made / "out").mkdir()
    return made


@pytest.mark.slow
def test_a_stage_runs_once_and_its_lines_are_told(project):
    lines: list[str] = []
    assert run_stage("demo", project=project, tell=lines.append) == "ran"
    assert any("mkdir -p out" in line for line in lines)
    assert run_stage("demo", project=project, tell=lines.append) == "unchanged"
    assert lines[-1] == "Data and pipelines are up to date."


@pytest.mark.slow
def test_what_is_in_the_run_cache_is_restored(project):
    for stage in ("demo", "ingest"):
        run_stage(stage, project=project, tell=lambda line: None)
    (project / "out" / "ingest").unlink()
    (project / "dvc.lock").unlink()
    assert run_stage("ingest", project=project, tell=lambda line: None) == "restored"
    assert (project / "out" / "ingest").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "kind", "message"),
    [
        ("refine", StageRefused, "error: data/manifest is missing"),  # the same again: no retry
        ("pseudo_label", StageFailed, "no MLflow server answers"),  # the server may come back
        ("uncertainty", StageFailed, "Traceback"),
        ("nonsense", StageFailed, "nonsense"),
    ],
)
def test_failures(project, stage, kind, message):
    for needed in ("validate", "refine", "pseudo_label"):  # what a failed stage before would have left
        (project / "out").mkdir(exist_ok=True)
        (project / "out" / needed).touch()
    with pytest.raises(StageFailed) as caught:
        run_stage(stage, project=project, tell=lambda line: None)
    assert type(caught.value) is kind
    assert message in str(caught.value)


@pytest.mark.slow
def test_what_is_out_of_date_is_told(project):
    run_stage("demo", project=project, tell=lambda line: None)
    assert out_of_date([], project=project) == []
    assert out_of_date(["demo", "finetune@small", "report"], project=project) == ["finetune@small", "report"]
    with pytest.raises(StageFailed, match="nonsense"):
        out_of_date(["nonsense"], project=project)


@pytest.mark.slow
def test_a_hard_kill_of_the_parent_stops_the_stage(project):
    """kill -9 of the process that runs the stage: guard, DVC and the stage's command are gone within seconds."""
    (project / "out" / "check_labels").touch()
    code = (
        "from pathlib import Path\nfrom flows.dvc import run_stage\n"
        "run_stage('report', project=Path('.'), tell=lambda line: print(line, flush=True))"
    )
    env = {**environment(), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=project, env=env, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if line.strip() == "started":
                break
        assert processes_with("sleep 300.25")
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and processes_with("sleep 300.25"):
        time.sleep(0.1)
    assert not processes_with("sleep 300.25")


@pytest.mark.slow
def test_an_exception_in_the_parent_stops_the_stage_too(project):
    def tell(line: str) -> None:
        if line == "started":
            raise KeyboardInterrupt

    (project / "out" / "check_labels").touch()
    with pytest.raises(KeyboardInterrupt):
        run_stage("report", project=project, tell=tell)
    assert not processes_with("sleep 300.25")
