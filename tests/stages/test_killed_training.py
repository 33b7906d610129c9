"""kill -9 of `python -m sum finetune` at random moments, with one process and with two under torchrun (slow).

benchmarks/kill_training.py does it thirty times, on pseudo-labels and maps; these are its functions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.kill_training import torment
from sum.data.records import ImageRecord, MaskRecord, encode_mask, write_manifest
from sum.storage import sha256_file
from tests.stages.label_world import configure, make_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
OPTIM = {"steps": 6, "lr": 1e-3, "images_per_batch": 2, "masks_per_image": 2, "ema": 0.9, "checkpoint_every": 1}
FINETUNE = {
    "method": "human_only",
    "optim": OPTIM,
    "rounds": {"rounds": 3},
    "augment": {"flip": 0.5, "scale": [0.5, 1.5]},
    "accumulate": 2,
    "lora": {"decoder": True},
    "early_stop": {"patience": 6, "held_out": 0.5},
}


def photo(number: int) -> tuple[ImageRecord, MaskRecord]:
    """A human train image, h/NUMBER, with one mask."""
    path, name = Path(f"data/raw/u/{number}.png"), f"h/{number}"
    with Image.open(path) as opened:
        width, height = opened.size
    mask = np.zeros((height, width), dtype=bool)
    mask[8:24, 10:26] = True
    image = ImageRecord(name, "h", str(path), sha256_file(path), height, width, "part", "train", "MIT")
    return image, MaskRecord(
        f"{name}#0", name, "h", "part", "train", int(mask.sum()), 10, 8, 25, 23, encode_mask(mask), "", ""
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    images, masks = zip(*(photo(number) for number in range(5)), strict=True)
    write_manifest(Path("data/manifest"), images, masks)
    places = {"root": "data/raw/u", "licence": "MIT"}
    sets = {"h": {"kind": "raster", "split": "train", "task": "part"} | places}
    sets["u"] = {"kind": "images", "split": "unlabelled"} | places
    budgets = {"small": {"human": ["h"], "unlabelled": ["u"]}}
    configure(tmp_path, budgets=budgets, datasets=sets, finetune=FINETUNE)
    return tmp_path


@pytest.mark.parametrize(("processes", "kills"), [(1, 3), (2, 2)])
def test_a_killed_training_publishes_the_same_bytes(project: Path, processes: int, kills: int) -> None:
    tally = torment(project, kills=kills, processes=processes, words=[])
    assert tally.kills == kills
    assert tally.completed >= 1
