"""SAM's own ViT-B, in Meta's file format and with random weights, through the stages of one budget (slow, 10 GB)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything import SamPredictor, sam_model_registry

from sum.models.checkpoint import load_segmenter
from tests.small import Small, shrink

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SETS = {"demo_salient": "salient_train", "demo_salient_test": "salient_test", "demo_unlabelled": "unlabelled"}


def shrink_for_vit_b(tree: dict[str, Any]) -> None:
    """One image a set, one budget, two steps."""
    shrink(tree)
    tree["model"] = {"backbone": "vit_b", "checkpoint": "sam_vit_b.pth"}
    tree["demo"]["scenes"] = dict.fromkeys(SETS.values(), 1)
    tree["datasets"] = {name: tree["datasets"][name] for name in SETS}
    only = {"human": ["demo_salient"], "unlabelled": ["demo_unlabelled"]}
    tree["budgets"] = dict.fromkeys(tree["budgets"], only)
    tree["refine"]["holdout_share"] = 0.0
    tree["refine"]["optim"] |= {"steps": 2, "images_per_batch": 1}
    tree["pseudo_label"]["points_per_side"] = 2
    tree["finetune"]["optim"] |= {"steps": 2, "images_per_batch": 1, "checkpoint_every": 2}


def test_vit_b_in_metas_format_runs_the_stages(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stock = sam_model_registry["vit_b"](checkpoint=None)
    project = Small(tmp_path, change=shrink_for_vit_b, threads=2)
    torch.save(stock.state_dict(), tmp_path / "sam_vit_b.pth")
    project.dvc("repro", "register@small")
    verdict = json.loads((tmp_path / "data/registry/small.json").read_text())
    assert verdict["verdict"] in {"promoted", "refused"}
    tuned = load_segmenter(tmp_path / "data/models/small/model.safetensors", backbone="vit_b")
    assert SamPredictor(tuned.sam).model.image_encoder.img_size == 1024
    before, after = stock.state_dict(), tuned.sam.state_dict()
    assert list(before) == list(after)  # Meta's keys: the file opens where SAM's does
    for part in ("image_encoder.blocks.0.attn.qkv.weight", "mask_decoder.iou_token.weight"):
        assert not torch.equal(before[part], after[part]), f"{part} was not trained"
