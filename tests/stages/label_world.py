"""A project of five unlabelled photos, random `tiny` weights and params.yaml, to test the two labelling stages in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from PIL import Image

from sum.config import check_config
from sum.data.records import ImageRecord, write_manifest
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import save_segmenter
from sum.models.segmenter import Segmenter
from sum.settings import Config
from sum.storage import sha256_file

ROOT = Path(__file__).parents[2]
SIZES = [(48, 64), (64, 64), (70, 40), (64, 90), (32, 32)]
WEIGHTS = Path("weights.safetensors")
CHANGES: dict[str, dict[str, Any]] = {
    "model": {"checkpoint": str(WEIGHTS)},
    "pseudo_label": {
        "points_per_side": 2,
        "points_per_batch": 3,
        "pred_iou_thresh": 0.0,
        "stability_thresh": 0.0,
        "box_nms_thresh": 1.0,
        "max_area_share": 2.0,
        "min_area": 1,
        "shard_images": 2,
    },
    "uncertainty": {"min_refine_area": 1},
}


def make_project(folder: Path) -> None:
    """Photos u/0 .. u/4 of SIZES in the manifest, with one train and one test image that must not be labelled."""
    records = []
    for number, (height, width) in enumerate([*SIZES, (16, 16), (16, 16)]):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        path = folder / f"data/raw/u/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cv2.resize(coarse, (width, height))).save(path)
        image = record(number, split=("unlabelled", "train", "test")[max(0, number - 4)])
        records.append(replace(image, sha256=sha256_file(path)))
    write_manifest(folder / "data/manifest", reversed(records), [])
    (folder / "data/validation").mkdir()
    (folder / "data/validation/report.json").write_text('{"success": true}')
    torch.manual_seed(0)
    model = Segmenter(BACKBONES["tiny"].build(), backbone="tiny")
    with torch.no_grad():
        for value in model.sam.parameters():
            value.add_(0.05 * torch.randn_like(value))
    save_segmenter(folder / WEIGHTS, model, about={})
    configure(folder)


def record(number: int, *, split: str = "unlabelled") -> ImageRecord:
    height, width = [*SIZES, (16, 16), (16, 16)][number]
    return ImageRecord(
        image_id=f"u/{number}",
        dataset="u",
        path=f"data/raw/u/{number}.png",
        sha256="",
        height=height,
        width=width,
        task="unspecified",
        split=split,
        licence="MIT",
    )


def configure(folder: Path, **changes: Mapping[str, Any]) -> Config:
    """Write params.yaml: the repository's, with CHANGES and these on top; returns it, checked."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"device": "cpu"}
    for part in (CHANGES, changes):
        for section, values in part.items():
            tree[section] = tree[section] | dict(values)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree))
    return check_config(tree, source="params.yaml")


def kill(folder: Path, *, stage: str, function: str, call: int, budget: str | None = None) -> None:
    """Run a stage in a process that kills itself at call number `call` of `function`, a name in the stage's module."""
    words = {} if budget is None else {"budget": budget}
    script = f"""
import os, signal, yaml
from sum.config import check_config
from sum.stages import {stage} as stage

real, calls = stage.{function}, []

def last(*arguments, **options):
    calls.append(1)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)

stage.{function} = last
stage.run(check_config(yaml.safe_load(open("params.yaml")), source="params.yaml"), **{words})
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    """File name -> bytes of everything in a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
