"""Every arch with the methods of the comparison through the real stage: trained, published, taken up, evaluated."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from sum.data.records import read_manifest, write_manifest
from sum.models.archs import ARCHS
from sum.models.checkpoint import load_segmenter
from sum.models.deltas import load_delta
from sum.stages import evaluate, finetune
from tests.stages.label_world import WEIGHTS, kill
from tests.stages.tuning_world import OPTIM, as_if_uninterrupted, settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(  # of great_expectations' own imports
        "ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning"
    ),
]
OUT = Path("data/models/small")
CASES = [(arch, method) for arch in sorted(ARCHS) for method in ("sum", "vanilla", "human_only")]


@pytest.mark.parametrize(("arch", "method"), CASES)
def test_every_arch_trains_with_the_methods_of_the_comparison(
    project: Path, tracking_uri: str, arch: str, method: str
) -> None:
    optim = OPTIM | {"steps": 12, "lr": 3e-3, "checkpoint_every": 12, "drop_last": 2}
    finetune.run(settings(project, tracking_uri, method=method, arch=arch, optim=optim), budget="small")
    history = pd.read_csv(OUT / "history.csv")
    assert history["loss"].iloc[-4:].mean() < history["loss"].iloc[:4].mean()
    assert history["lr"].tolist() == pytest.approx([3e-3] * 10 + [3e-4] * 2)
    base, whole = load_file(WEIGHTS), load_file(OUT / "model.safetensors")
    moved = {name for name in base if not torch.equal(base[name], whole[name])}
    parts = {name.split(".")[0] for name in moved} - {"task_prompt"}
    adapted = {"image_encoder"} if arch == "lora" else set()
    assert parts == {*ARCHS[arch].own} | adapted
    assert ("task_prompt" in moved) == (method == "sum")
    if arch in ("hq", "adapter"):
        assert all(name.startswith("hq.") or ".adapter." in name for name in whole.keys() - base.keys())
    one, other = (
        load_segmenter(OUT / "model.safetensors", backbone="tiny"),
        load_delta(OUT / "delta.safetensors", base=WEIGHTS),
    )
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    summary = json.loads((OUT / "summary.json").read_text())
    delta = load_file(OUT / "delta.safetensors")
    unlearnt = 0 if method == "sum" else delta["task_prompt"].numel()
    assert summary["trained"] == sum(value.numel() for value in delta.values()) - unlearnt
    assert json.loads((OUT / "model.json").read_text())["arch"]["name"] == arch


@pytest.mark.parametrize("arch", ["hq"])
def test_a_killed_training_goes_on_to_the_same_weights(
    project: Path, tracking_uri: str, arch: str, tmp_path: Path
) -> None:
    config = settings(project, tracking_uri, arch=arch)
    whole = tmp_path / "whole"
    shutil.copytree(project, whole)
    kill(project, stage="finetune", function="train_in_parts", call=3, budget="small")
    assert not OUT.exists()
    finetune.run(config, budget="small")
    as_if_uninterrupted(whole, config)


@pytest.mark.parametrize("arch", ["adapter", "hq", "lora"])  # the others are plain SAMs
def test_every_arch_is_evaluated(project: Path, tracking_uri: str, arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Games, automatic masks and checks of fidelity, with the numbers that each must have."""
    config = settings(project, tracking_uri, arch=arch)
    finetune.run(config, budget="small")
    manifest = read_manifest(Path("data/manifest"), reader="test")
    named = next(image for image in manifest.images if image.dataset == "h")
    images = [replace(image, split="test") if image is named else image for image in manifest.images]
    write_manifest(Path("data/manifest"), images, [replace(mask, split="test") for mask in manifest.masks])
    evaluate.run(config, model="small")
    rows = pd.read_parquet("data/evaluation/small/rows.parquet")
    assert set(rows["output"]) >= {"oracle", "single", "confident"}
    assert rows["iou"].between(0, 1).all()
    first = rows[(rows["round"] == 1)].groupby("output")["iou"].mean()
    if arch == "hq":  # one output: the closest of them is the likeliest
        assert first["oracle"] == first["confident"]
    assert Path("data/evaluation/small/summary.json").is_file()
