"""kill -9 of `python -m sum finetune` at random moments, with one process and with two that share a batch (slow).

benchmarks/kill_training.py does it thirty times, on pseudo-labels and maps and under torchrun; these are its functions.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.kill_training import torment
from sum.cli import main
from sum.data.records import ImageRecord, MaskRecord, encode_mask, write_manifest
from sum.stages import finetune as preloaded  # noqa: F401  # so that no copy imports it
from sum.storage import sha256_file
from tests.forks import Forked, ended, fork_beside_threads, members
from tests.stages.label_world import configure, make_project

pytestmark = [fork_beside_threads, pytest.mark.slow, pytest.mark.timeout(300)]
OPTIM = {"steps": 6, "lr": 1e-3, "images_per_batch": 2, "masks_per_image": 2, "ema": 0.9, "checkpoint_every": 1}
FINETUNE = {
    "method": "human_only",
    "optim": OPTIM,
    "rounds": {"rounds": 3},
    "augment": {"flip": 0.5, "scale": [0.5, 1.5]},
    "accumulate": 2,
    "arch": "lora",
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
def project(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    images, masks = zip(*(photo(number) for number in range(5)), strict=True)
    write_manifest(Path("data/manifest"), images, masks)
    places = {"root": "data/raw/u", "licence": "MIT"}
    sets = {"h": {"kind": "raster", "split": "train", "task": "part"} | places}
    sets["u"] = {"kind": "images", "split": "unlabelled"} | places
    budgets = {"small": {"human": ["h"], "unlabelled": ["u"]}}
    configure(tmp_path, budgets=budgets, datasets=sets, finetune=FINETUNE, tracking={"uri": tracking_uri})
    return tmp_path


def finetune(processes: int) -> None:
    """The command, in a copy of this process; of two that share a batch no torchrun ends one when the other dies."""

    def work(rank: int = 0) -> None:
        assert main(["finetune", "small"]) == 0

    if processes == 1:
        work()
    else:
        assert [ended(child, within=120) for child in members(processes, work)] == [0] * processes


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_training_publishes_the_same_bytes(project: Path, processes: int) -> None:
    def start() -> Forked:
        return Forked(partial(finetune, processes), project / "log")

    tally = torment(project, start, kills=2, processes=processes)
    assert tally.kills == 2
    assert tally.in_writes >= 1  # every other one
    assert tally.completed >= 1
