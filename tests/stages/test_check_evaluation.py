"""Stage check_evaluation: real tables pass; those of other settings are refused before a rule is looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sum.data.records import Manifest
from sum.errors import DataError, MissingInput, ValidationFailed
from sum.stages import check_evaluation, evaluate
from tests.bench_world import configured, make_manifest, make_weights

pytestmark = pytest.mark.filterwarnings(  # of great_expectations' own imports
    "ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Path, Path]]:
    """A project with the evaluation of a base and of a model that equals it."""
    folder = tmp_path_factory.mktemp("checked")
    weights = make_weights(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_manifest()
        benchmark = evaluate.read_benchmark()
        for name in ("base", "small"):
            config = configured(weights)
            evaluate.examine(config, evaluate.Subject(name, weights[0], "tiny"), benchmark, out=evaluate.OUT / name)
    return folder, weights


def test_real_tables_pass(world: tuple[Path, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, weights = world
    monkeypatch.chdir(folder)
    report = json.loads(check_evaluation.run(configured(weights), budget="small").read_text())
    assert report["success"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rounds": 3, "report_rounds": [1]}, "evaluate.rounds=2, and 3 is asked for"),
        ({"prompts": ["point"]}, r"evaluate.prompts=\['point', 'box'\], and \['point'\] is asked for"),
        ({"everything": False}, "evaluate.everything=True, and False is asked for"),
        ({"fidelity": False}, "evaluate.fidelity=True, and False is asked for"),
    ],
)
def test_other_settings_are_named(
    world: tuple[Path, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(world[0])
    with pytest.raises(DataError, match=rf"data/evaluation/base was made with {said}: .*dvc repro evaluate@base"):
        check_evaluation.run(configured(world[1], **changes), budget="small")


def test_without_an_evaluation(world: tuple[Path, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world[0])
    with pytest.raises(MissingInput, match="dvc repro evaluate@large"):
        check_evaluation.run(configured(world[1]), budget="large")


def test_tables_of_other_masks_fail(world: tuple[Path, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world[0])
    rows = (evaluate.OUT / "small" / "rows.parquet").read_bytes()
    config = configured(world[1])
    manifest = evaluate.read_benchmark()
    fewer = manifest.images[:1]
    kept = {image.image_id for image in fewer}
    try:
        part = Manifest(fewer, [mask for mask in manifest.masks if mask.image_id in kept])
        evaluate.examine(config, evaluate.Subject("small", world[1][0], "tiny"), part, out=evaluate.OUT / "small")
        with pytest.raises(ValidationFailed, match="every model has the same masks"):
            check_evaluation.run(config, budget="small")
    finally:
        (evaluate.OUT / "small" / "rows.parquet").write_bytes(rows)
