"""Which runs trained on what, and as what their weights are registered: from a real MLflow database."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from sum.config import load_config
from sum.registry import Registry, trainings
from sum.tracking import start_run

PROJECT = Path(__file__).parents[1]


def test_trainings_tell_the_registered_versions(tracking_uri: str, tmp_path: Path) -> None:
    assert trainings(tracking_uri, experiment="sum") == []
    config = load_config(root=PROJECT)
    facts = {"budget": "medium", "data": "f1"}
    run = start_run(uri=tracking_uri, experiment="sum", name="ft-medium", params=asdict(config) | facts, tags=facts)
    start_run(uri=tracking_uri, experiment="sum", name="sum-base", params={}, tags={}).finish()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    model = run.log_model(tmp_path / "model.safetensors", name="ft-medium", fingerprint="w", params={})
    run.finish()
    registry = Registry(tracking_uri)
    version = registry.register(model, run_id=run.id, name="sum", tags={})
    registry.point("sum", alias="medium", number=version.number)
    (found,) = trainings(tracking_uri, experiment="sum")
    assert (found.run_id, found.status, found.budget, found.data) == (run.id, "FINISHED", "medium", "f1")
    assert found.datasets == ("demo_salient", "demo_entity", "demo_unlabelled")
    assert found.versions == ("sum v1 @medium",)
