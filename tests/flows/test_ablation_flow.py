"""The deployment sum/ablation: shared stages by DVC, then the command with a live log; what came of it is shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows import ablation
from flows.ablation import ablation_flow, stages_before
from flows.dvc import StageFailed, StageRefused, run_command
from tests.flows.project import make_project


def test_the_stages_before_are_those_that_all_runs_share():
    wanted = ["demo", "ingest", "validate", "refine", "pseudo_label", "uncertainty", "check_labels"]
    assert stages_before() == wanted


def test_tables_of_an_earlier_call_are_not_shown_again(tmp_path: Path, monkeypatch):
    """A flow's function without Prefect's server: stages are over, the command refuses, then it writes."""
    monkeypatch.chdir(tmp_path)
    shown: list[Path] = []
    monkeypatch.setattr(ablation, "stages_before", list)
    monkeypatch.setattr(ablation, "show", shown.append)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "tables.md").write_text("of an earlier call")
    os.utime(folder / "tables.md", ns=(1, 1))

    def refuse(words: list[str]) -> None:
        raise StageRefused("no")

    monkeypatch.setattr(ablation, "ablate", refuse)
    with pytest.raises(StageRefused):
        ablation_flow.fn(out="mine")
    assert not shown
    monkeypatch.setattr(ablation, "ablate", lambda words: (folder / "tables.md").write_text("new"))
    ablation_flow.fn(out="mine")
    assert shown == [folder]


@pytest.mark.slow
def test_a_command_that_refuses_is_told_from_one_that_fails(tmp_path: Path):
    lines: list[str] = []
    with pytest.raises(StageRefused, match="`python -m sum ablate` ended with 2"):
        run_command(["ablate", "nonsense"], project=tmp_path, tell=lines.append)
    assert any("'nonsense' is no key=value" in line for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_flow_runs_stages_then_the_command_and_shows_its_tables(tmp_path, monkeypatch):
    """On a stub pipeline; the command is a stand-in that notes its words, and fails once for a reason that passes."""
    from prefect.client.orchestration import get_client
    from prefect.testing.utilities import prefect_test_harness

    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    calls: list[list[str]] = []

    def stand_in(words: list[str], *, project: Path, tell) -> None:
        calls.append(words)
        tell("row by row")
        if len(calls) == 1:
            raise StageFailed("a server is away")
        (project / "mine").mkdir()
        (project / "mine/tables.md").write_text("# Ablation\n")
        (project / "mine/cost.csv").write_text("row,seed,delta_mb\nsmall-sum-full,0,\n")

    monkeypatch.setattr(ablation, "run_command", stand_in)
    monkeypatch.setattr(ablation.ablate, "retry_delay_seconds", [0, 0])
    with prefect_test_harness(server_startup_timeout=180), get_client(sync_client=True) as client:
        done = ablation_flow(settings=["seed=1"], only=["sum"], out="mine", jobs=2)
        shown = {artifact.key: str(artifact.data) for artifact in client.read_artifacts()}
    assert list(done) == stages_before()
    assert set(done.values()) == {"ran"}
    assert calls == [["ablate", "seed=1", "--out", "mine", "--jobs", "2", "--only", "sum"]] * 2
    assert shown["ablation-tables"].endswith("# Ablation\n")
    assert "small-sum-full" in shown["ablation-cost"]
