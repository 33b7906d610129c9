"""A project after stage check_labels, for `python -m sum ablate`: four scenes to learn from, three to test on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from sum.config import check_config, load_config
from sum.core.geometry import mask_to_box
from sum.data.demo import make_scene
from sum.data.records import ImageRecord, MaskRecord, encode_mask, write_manifest
from sum.stages import pseudo_label, uncertainty
from sum.storage import sha256_file
from tests.bench_world import PARAMS, make_weights

LABELLED = [  # a grid of few points, whose masks are all kept: the weights are random
    ("pseudo_label.points_per_side", 2),
    *((f"pseudo_label.{name}", 0.0) for name in ("pred_iou_thresh", "stability_thresh")),
    ("pseudo_label.box_nms_thresh", 1.0),
    ("pseudo_label.max_area_share", 2.0),
    ("pseudo_label.min_area", 1),
    ("uncertainty.min_refine_area", 1),
    ("finetune.optim.images_per_batch", 2),
]


def scene(number: int, dataset: str, split: str) -> tuple[ImageRecord, list[MaskRecord]]:
    """A picture of 64 px in data/raw and its entities."""
    made = make_scene(number, side=64)
    path = Path("data/raw") / f"{dataset}-{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(made.image).save(path)
    image_id = f"{dataset}/{number}"
    place: dict[str, Any] = {"image_id": image_id, "dataset": dataset, "task": "entity", "split": split}
    image = ImageRecord(path=str(path), sha256=sha256_file(path), licence="MIT", height=64, width=64, **place)
    masks = []
    for index, truth in enumerate(list(made.entities)[:2]):
        box = mask_to_box(torch.from_numpy(truth)[None])[0].tolist()
        about: dict[str, Any] = dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
        about |= {"area": int(truth.sum()), "rle": encode_mask(truth), "category": "", "source": ""}
        masks.append(MaskRecord(mask_id=f"{image_id}#{index}", **place, **about))
    return image, masks


def unlabelled(image: ImageRecord) -> ImageRecord:
    """A photo without masks."""
    return replace(image, task="unspecified")


def make_labels() -> None:
    """Pseudo-labels and maps by the real stages, in the working directory of a project with the changes LABELLED."""
    config = load_config()
    for stage in (pseudo_label, uncertainty):
        stage.run(config)


def make_project(folder: Path, *, changes: Sequence[tuple[str, Any]] = ()) -> None:
    """Fill the working directory `folder`; changes: dotted key and value of its params.yaml.

    Of the labels there are only the notes that are looked at: rows that learn from them want `make_labels`.
    """
    weights, refiner = make_weights(folder / "weights")
    parts = [scene(number, "learn_a", "train") for number in range(2)]
    parts += [scene(number, "learn_b", "train") for number in range(2, 4)]
    parts += [scene(number, "test", "test") for number in range(4, 7)]
    parts += [(unlabelled(image), []) for image, _ in (scene(number, "more", "unlabelled") for number in (7, 8))]
    write_manifest(Path("data/manifest"), [image for image, _ in parts], [mask for _, found in parts for mask in found])
    Path("data/refiner").mkdir()
    refiner.rename("data/refiner/model.safetensors")
    params = small_params(weights, changes)
    config = check_config(params, source="params.yaml")
    for section, name in (("pseudo_label", "pseudo_labels"), ("uncertainty", "uncertainty")):
        Path("data", name).mkdir()
        made = {key: value for key, value in asdict(getattr(config, section)).items() if key != "on_bad"}
        Path("data", name, "summary.json").write_text(json.dumps({"settings": made}))
    for name in ("validation/report.json", "checks/labels.json"):
        Path("data", name).parent.mkdir()
        Path("data", name).write_text(json.dumps({"success": True, "manifest": fingerprint()}))
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def fingerprint() -> str | None:
    """Of the manifest, as a check of it notes."""
    path = Path("data/manifest/summary.json")
    return json.loads(path.read_text())["fingerprint"] if path.is_file() else None


def small_params(weights: Path, changes: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The tree of params.yaml with two budgets and runs of seconds."""
    tree: dict[str, Any] = yaml.safe_load(PARAMS.read_text())
    entry = {"kind": "raster", "root": "data/raw", "split": "train", "task": "entity", "licence": "MIT"}
    tree["device"] = "cpu"
    tree["model"]["checkpoint"] = str(weights.relative_to(Path.cwd()))
    tree["datasets"] = {name: {**entry} for name in ("learn_a", "learn_b")}
    tree["datasets"] |= {"test": {**entry, "split": "test"}}
    tree["datasets"]["more"] = {"kind": "images", "root": "data/raw", "split": "unlabelled", "licence": "MIT"}
    own = {"unlabelled": ["more"], "human_per_unlabelled": 1}
    tree["budgets"] = {"small": {"human": ["learn_a"], **own}, "medium": {"human": ["learn_a", "learn_b"], **own}}
    optim = {"steps": 3, "warmup_steps": 0, "decay_steps": 0, "images_per_batch": 1, "masks_per_image": 1}
    tree["finetune"]["optim"] |= optim | {"checkpoint_every": 1}
    tree["finetune"]["rounds"] |= {"rounds": 2}
    tree["evaluate"] |= {"rounds": 2, "report_rounds": [1, 2], "prompts": ["point"], "resamples": 50, "workers": 1}
    tree["evaluate"] |= {"unspecified": False, "everything": False, "fidelity": False}
    tree["register"]["rounds"] = [1]
    tree["ablation"] = {"budgets": ["small", "medium"], "seeds": [0, 1], "settings": {}}
    tree["ablation"]["grid"] = [{"methods": ["human_only"], "archs": ["full"]}]
    for key, value in changes:
        *above, name = key.split(".")
        branch = tree
        for part in above:
            branch = branch[part]
        branch[name] = value
    return tree
