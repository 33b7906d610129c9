"""A small labelled project: photos with pseudo-labels and maps, one with a human mask, and settings to tune on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sum.data.records import ImageRecord, MaskRecord, encode_mask, read_manifest, write_manifest
from sum.models.checkpoint import load_segmenter
from sum.models.refiner import Refiner, save_refiner
from sum.settings import Config
from sum.stages import check_labels, finetune, pseudo_label, uncertainty
from sum.stages.common import REFINER
from sum.storage import sha256_file
from tests.stages.label_world import WEIGHTS, configure, contents, make_project

BUDGETS = {"small": {"human": ["h"], "unlabelled": ["u"]}}
DATASETS = {
    "h": {"kind": "raster", "root": "data/raw/u", "split": "train", "task": "part", "licence": "MIT"},
    "u": {"kind": "images", "root": "data/raw/u", "split": "unlabelled", "licence": "MIT"},
}
OPTIM = {"steps": 3, "lr": 1e-3, "images_per_batch": 2, "masks_per_image": 2, "checkpoint_every": 1}


def settings(folder: Path, uri: str, *, method: str = "sum", maps: str = "confidence", **more: object) -> Config:
    return configure(
        folder,
        budgets=BUDGETS,
        datasets=DATASETS,
        tracking={"uri": uri},
        uncertainty={"method": maps, "min_refine_area": 1},
        refine={"discrepancy": ["teacher"]},
        finetune={"method": method, "optim": OPTIM, "rounds": {"rounds": 2}} | more,
    )


def add_human_mask() -> None:
    """A human mask on the first photo, which is a data set of its own; in the working directory."""
    plain = read_manifest(Path("data/manifest"), reader="test")
    mask = np.zeros((48, 64), dtype=bool)
    mask[10:30, 20:50] = True
    photo = "data/raw/u/0.png"
    human = ImageRecord("h/0", "h", photo, sha256_file(photo), 48, 64, "part", "train", "MIT")
    row = MaskRecord("h/0#0", "h/0", "h", "part", "train", 600, 20, 10, 49, 29, encode_mask(mask), "", "")
    write_manifest(Path("data/manifest"), [*plain.images, human], [row])


def make_labelled(folder: Path) -> None:
    """All of it."""
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        add_human_mask()
        config = settings(folder, "sqlite:///unused.db")
        make_refiners()
        pseudo_label.run(config)
        uncertainty.run(config)
        check_labels.run(config)


def as_if_uninterrupted(whole: Path, config: Config) -> dict[str, bytes]:
    """The files of the model here, once they are those of a training in `whole` that nothing interrupted."""
    out = Path("data/models/small")
    resumed = contents(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(whole)
        finetune.run(config, budget="small")
        straight = contents(out)
    for name in ("model.safetensors", "delta.safetensors", "history.csv", "summary.json", "model.json"):
        assert resumed[name] == straight[name], name
    return resumed


def make_refiners() -> None:
    """A refinement module and the other one of discrepancy_teacher, of random changes to SAM's decoder."""
    for seed, path in enumerate((REFINER, REFINER.with_name("student.safetensors"))):
        refiner = Refiner(load_segmenter(WEIGHTS, backbone="tiny"))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in refiner.core.sam.parameters():
                value.add_(0.05 * torch.randn(value.shape, generator=generator))
        save_refiner(path, refiner, origin=sha256_file(WEIGHTS), about={})
