"""The flow as a function, on a stub pipeline: when it makes the report (slow: Prefect starts a server)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.dvc import environment
from flows.pipeline import others, stages_for, sum_flow
from sum.config import load_config
from tests.flows.project import MODELS, PROJECT, make_project


def test_the_other_budgets_stages_are_what_the_report_waits_for():
    found = others(load_config(root=PROJECT), budget="medium")
    per_budget = ("finetune", "evaluate", "check_evaluation", "register")
    assert found == [f"{name}@{budget}" for budget in ("small", "large") for name in per_budget]
    assert not set(found) & set(stages_for("medium"))


@pytest.fixture
def project(tmp_path, monkeypatch) -> Iterator[Path]:
    """A stub project that is up to date and has results of all models; Prefect with a server of its own."""
    from prefect.testing.utilities import prefect_test_harness

    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    dvc("repro")
    for model in MODELS:
        folder = tmp_path / "data" / "evaluation" / model
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"overall": {"iou@1": {"mean": 0.5}}}))
    (tmp_path / "data" / "registry").mkdir()
    for budget in MODELS[1:]:
        told = {"verdict": "refused", "reasons": [], "versions": {"sum": budget}, "run_id": budget}
        told |= {"champion": {"version": None, "budget": None, "previous": None, "why": "refused"}}
        (tmp_path / "data" / "registry" / f"{budget}.json").write_text(json.dumps(told))
    with prefect_test_harness(server_startup_timeout=180):
        yield tmp_path


def dvc(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], env=environment(), check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_report_waits_for_budgets_that_are_out_of_date(project):
    """All files lie there, but other numbers would make large anew: a report now would mix two worlds, or fail."""
    from prefect.client.orchestration import get_client

    path, out = project / "dvc.yaml", "out/finetune.${item}"
    path.write_text(path.read_text().replace(f"echo done > {out}", f"echo again > {out}"))
    (project / "out" / "report").unlink()
    done = sum_flow(budget="small")
    assert done["finetune@small"] == "ran"
    assert "report" not in done
    with get_client(sync_client=True) as client:
        links = [artifact for artifact in client.read_artifacts() if artifact.key == "links-small"]
    assert "out of date are finetune@medium, finetune@large" in str(links[0].data)
    dvc("repro", "finetune@medium", "finetune@large")
    assert sum_flow(budget="small")["report"] in ("ran", "restored")
