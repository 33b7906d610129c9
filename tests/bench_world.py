"""A project of three small test images, random `tiny` weights and params.yaml, to evaluate models in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from sum.config import check_config
from sum.core.geometry import mask_to_box
from sum.data.demo import make_scene
from sum.data.records import ImageRecord, MaskRecord, encode_mask, write_manifest
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import load_segmenter, save_segmenter
from sum.models.refiner import Refiner, save_refiner
from sum.models.segmenter import Segmenter
from sum.settings import Config
from sum.storage import sha256_file

PARAMS = Path(__file__).parents[1] / "params.yaml"
BARE = {"unspecified": False, "everything": False, "fidelity": False}


def make_weights(folder: Path) -> tuple[Path, Path]:
    """A random base and a refinement module that differs from it."""
    torch.manual_seed(0)
    model = Segmenter(BACKBONES["tiny"].build(), backbone="tiny")
    refiner = Refiner(model)
    with torch.no_grad():
        refiner.core.sam.mask_decoder.mask_tokens.weight += 1
    origin = save_segmenter(folder / "base.safetensors", model, about={})
    save_refiner(folder / "refiner.safetensors", refiner, origin=origin, about={})
    return folder / "base.safetensors", folder / "refiner.safetensors"


def tuned_weights(weights: tuple[Path, Path], path: Path, *, prompt: float) -> Path:
    """The base with task prompts all of this value."""
    model = load_segmenter(weights[0], backbone="tiny")
    with torch.no_grad():
        model.task_prompt[1:] = prompt
    path.parent.mkdir(parents=True, exist_ok=True)
    save_segmenter(path, model, about={})
    return path


def configured(weights: tuple[Path, Path], **changes: Any) -> Config:
    tree = yaml.safe_load(PARAMS.read_text())
    tree["model"]["checkpoint"] = str(weights[0])
    tree["device"] = "cpu"
    tree["pseudo_label"] |= {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_thresh": 0.0, "min_area": 1}
    tree["evaluate"] |= {"rounds": 2, "report_rounds": [1, 2], "resamples": 20, **changes}
    tree["register"]["rounds"] = [1]
    return check_config(tree, source="params.yaml")


def make_manifest() -> None:
    """Three pictures of two tasks, one of them not square, and one for training that must not be looked at."""
    images, masks = [], []
    for number, (dataset, task, split) in enumerate(
        [
            ("things", "entity", "test"),
            ("things", "entity", "test"),
            ("pieces", "part", "test"),
            ("old", "part", "train"),
        ]
    ):
        scene = make_scene(number, side=64)
        height = 64 if number else 48
        path = Path("data/raw") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image[:height]).save(path)
        place = {"image_id": f"{dataset}/{number}", "dataset": dataset, "task": task, "split": split}
        size = {"height": height, "width": 64}
        images.append(ImageRecord(path=str(path), sha256=sha256_file(path), licence="MIT", **size, **place))
        truths = scene.entities if task == "entity" else scene.parts
        cut = [truth[:height] for truth in truths if truth[:height].any()][:3]
        for index, truth in enumerate(cut):
            box = dict(
                zip(("x0", "y0", "x1", "y1"), mask_to_box(torch.from_numpy(truth)[None])[0].tolist(), strict=True)
            )
            about = {"area": int(truth.sum()), "rle": encode_mask(truth), "category": "", "source": ""}
            masks.append(MaskRecord(mask_id=f"{dataset}/{number}#{index}", **place, **box, **about))
    write_manifest(Path("data/manifest"), images, masks)
