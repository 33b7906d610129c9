"""A model that learnt one kind of mask and forgot the rest is refused, by real training and evaluation (slow).

Budget `small` has salient objects alone; trained long and hard on four photos of them, without the paper's remedies, it
answers every prompt with the salient object. The overall figure would say so here; the rest of the table must, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from sum.registry import Registry
from tests.small import Small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
IN_TURN = "import sys; from sum.cli import main; sys.exit(max(main(words.split()) for words in sys.argv[1:]))"
JUDGED = ("evaluate small", "check_evaluation small", "register small")


def few(tree: dict[str, Any]) -> None:
    """The shipped `tiny` on a few scenes, human masks only."""
    tree["device"] = "cpu"
    tests = {"salient_test": 10, "entity_test": 5, "part_test": 5}
    tree["demo"]["scenes"] = {**dict.fromkeys(tree["demo"]["scenes"], 1), "salient_train": 4, **tests}
    optim = {"images_per_batch": 2, "masks_per_image": 1, "warmup_steps": 0, "decay_steps": 0, "layer_decay": 1.0}
    tree["finetune"] |= {"method": "human_only", "rounds": {"rounds": 2}}
    tree["finetune"]["optim"] |= optim
    tree["pseudo_label"] |= {"points_per_side": 4}
    tree["evaluate"] |= {"rounds": 3, "report_rounds": [1, 3], "resamples": 200, "pictures": 0}
    tree["register"] |= {"rounds": [1, 3]}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Small:
    """The base is evaluated."""
    made = Small(tmp_path_factory.mktemp("forgetting"), change=few)
    command(made, "demo", "ingest", "validate", "evaluate base")
    return made


def command(project: Small, *stages: str) -> str:
    """`python -m sum` of each, in one process; returns what they said."""
    words = [sys.executable, "-c", IN_TURN, *stages]
    done = subprocess.run(words, cwd=project.folder, env=project.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def verdict_on(project: Small, *, steps: int, lr: float) -> dict[str, Any]:
    """data/registry/small.json after training so long and so hard."""
    told = command(project, f"finetune small finetune.optim.steps={steps} finetune.optim.lr={lr}", *JUDGED)
    found: dict[str, Any] = json.loads((project.folder / "data/registry/small.json").read_text())
    assert f"small is {found['verdict']}: {found['reasons'][0]}" in told
    return found


def test_an_over_trained_model_is_refused_for_all_that_it_forgot(project):
    found = verdict_on(project, steps=60, lr=0.0005)
    assert found["verdict"] == "refused"
    failed = {(row["family"], row["name"]) for row in found["table"] if row["ok"] is False}
    assert {(prompt, task) for prompt in ("point", "box", "everything") for task in ("entity", "part")} <= failed
    assert {("fidelity", "all"), ("yield", "all")} <= failed
    rows = {(row["kind"], row["name"]): row for row in found["table"] if row["family"] != "gain"}
    assert rows["1 point", "salient"]["ok"]  # it did learn what it was taught
    assert rows["3 points", "part"]["high"] < -0.2  # far beyond doubt, and
    assert rows["3 points", "part"]["p"] < 0.1  # of five images 2 of 32 sign flips are as far out
    assert "part, 3 points: " in "; ".join(found["reasons"])
    registry = Registry(f"sqlite:///{project.folder}/mlflow.db")
    assert registry.at("sum", alias="champion") is None
    held = registry.at("sum", alias="small")
    assert held is not None
    assert held.tags["verdict"] == "refused"


def test_a_model_that_hardly_moved_is_refused_for_want_of_gain_alone(project):
    found = verdict_on(project, steps=1, lr=1e-9)
    assert [reason.split(":")[0] for reason in found["reasons"]] == ["overall, 1, 3 points"]
    assert found["not_looked_at"] == []
    assert [row["family"] for row in found["table"] if row["ok"] is False] == ["gain"]
