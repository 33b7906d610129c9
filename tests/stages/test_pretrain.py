"""The pretrain stage at a very small scale: coarse sources, what names its work, a kill, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sum.data.coarse import MIN_AREA, CoarseManifest, CoarseScenes, coarse_masks, coarsen
from sum.data.demo import pretrain_scene
from sum.data.records import ImageRecord, Manifest, MaskRecord, encode_mask, write_manifest
from sum.errors import DataError, StorageError
from sum.models.checkpoint import load_segmenter
from sum.settings import Config
from sum.stages import pretrain
from sum.storage import sha256_file
from tests.stages.label_world import WEIGHTS, configure, kill, make_project

OPTIM = {"steps": 3, "lr": 1e-3, "images_per_batch": 2, "masks_per_image": 2, "checkpoint_every": 1}
SMALL = {
    "scenes": 4,
    "output": "out.safetensors",
    "manifest": None,
    "start": None,
    "single_round_steps": 1,
    "optim": OPTIM,
    "rounds": {"rounds": 2, "loss_side": 32},
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return configure(tmp_path, pretrain=SMALL)


def with_settings(config: Config, **changes: object) -> Config:
    return replace(config, pretrain=replace(config.pretrain, **changes))  # type: ignore[arg-type]


def photo_manifest(folder: Path, mask: np.ndarray) -> Manifest:
    """One photo with one train mask."""
    height, width = mask.shape
    path = folder / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    image = ImageRecord("h/0", "h", str(path), sha256_file(path), height, width, "part", "train", "MIT")
    row = MaskRecord("h/0#0", "h/0", "h", "part", "train", int(mask.sum()), 0, 0, 1, 1, encode_mask(mask), "", "")
    return Manifest([image], [row])


def test_weights_are_trained_and_a_second_run_has_nothing_to_do(config: Config) -> None:
    assert pretrain.run(config) == Path("out.safetensors")
    first = Path("out.safetensors").read_bytes()
    model = load_segmenter("out.safetensors", backbone="tiny")
    assert model.task_prompt.abs().max() == 0
    Path("out.safetensors").unlink()
    pretrain.run(config)
    assert Path("out.safetensors").read_bytes() == first


@pytest.mark.slow  # imports torch once more
def test_a_killed_run_goes_on_and_gives_the_same(config: Config, tmp_path: Path) -> None:
    pretrain.run(config)
    whole = Path("out.safetensors").read_bytes()
    for path in Path("work/pretrain").rglob("checkpoint-*"):
        path.unlink()
    Path("out.safetensors").unlink()
    kill(tmp_path, stage="pretrain", function="train_rounds", call=3)
    assert not Path("out.safetensors").exists()
    assert len(list(Path("work/pretrain").rglob("checkpoint-*"))) == 2
    pretrain.run(config)
    assert Path("out.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_other_start_weights_or_another_manifest_are_another_training(config: Config, tmp_path: Path) -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[10:40, 10:50] = True
    write_manifest(Path("data/manifest"), *(getattr(photo_manifest(tmp_path, mask), n) for n in ("images", "masks")))
    config = with_settings(config, start=str(WEIGHTS), manifest="data/manifest")
    pretrain.run(config)
    first = Path("out.safetensors").read_bytes()
    mask[10:25] = False
    write_manifest(Path("data/manifest"), *(getattr(photo_manifest(tmp_path, mask), n) for n in ("images", "masks")))
    pretrain.run(config)
    second = Path("out.safetensors").read_bytes()
    assert second != first
    WEIGHTS.write_bytes(first)
    pretrain.run(config)
    assert Path("out.safetensors").read_bytes() not in (first, second)
    assert len(list(Path("work/pretrain").iterdir())) == 3


def test_a_manifest_without_train_masks_is_refused(config: Config) -> None:
    with pytest.raises(DataError, match=r"pretrain\.manifest: data/manifest has no mask of split 'train'"):
        pretrain.run(with_settings(config, manifest="data/manifest"))


@pytest.mark.slow
def test_start_weights_in_a_bucket_are_fetched(config: Config, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with pytest.raises(StorageError, match=r"s3://bucket/tiny\.safetensors"):
        pretrain.run(with_settings(config, start="s3://bucket/tiny.safetensors"))


def test_scenes_are_coarse_and_mirrored(tmp_path: Path) -> None:
    made = CoarseScenes.made(tmp_path, count=2, seed=5, coarsen=5, side=128, loss_side=64)
    scene = pretrain_scene(1, seed=5, side=128)
    wanted = coarse_masks(scene, size=5)
    assert all(mask.sum() >= MIN_AREA for mask in wanted)
    seen = set()
    for number in range(12):
        sample = made.sample(1, masks=10**3, rng=np.random.default_rng(number))
        image = sample.image.permute(1, 2, 0).numpy()
        flipped = not np.array_equal(image, scene.image)
        assert np.array_equal(image[:, ::-1] if flipped else image, scene.image)
        seen.add(flipped)
        areas = sorted(int(mask.sum()) for mask in sample.mask)
        halves = sorted(int(mask.sum()) // 4 for mask in wanted)
        assert len(areas) == len(halves)
        assert np.abs(np.subtract(areas, halves)).max() < 60  # the same masks at half the side
    assert seen == {False, True}


def test_masks_of_photos_are_coarsened_in_proportion(tmp_path: Path) -> None:
    mask = np.zeros((400, 400), dtype=bool)
    mask[100:300, 100:300] = True
    mask[40:46, 20:380] = True  # 2 px of the 128 px frame: lost
    source = CoarseManifest(photo_manifest(tmp_path, mask), coarsen=5, side=128, loss_side=128)
    sample = source.sample(0, masks=8, rng=np.random.default_rng(0))
    assert not sample.mask[0, :28].any()
    assert sample.mask[0, 40:88, 40:88].all()


@pytest.mark.parametrize("line", [(slice(7, 9), slice(100, 300)), (slice(5, 25), slice(9, 10))])
def test_a_mask_that_vanishes_in_the_model_frame_keeps_a_pixel(tmp_path: Path, line: tuple[slice, slice]) -> None:
    mask = np.zeros((480, 640), dtype=bool)
    mask[line] = True
    source = CoarseManifest(photo_manifest(tmp_path, mask), coarsen=5, side=128, loss_side=64)
    sample = source.sample(0, masks=8, rng=np.random.default_rng(0))
    assert sample.mask.any()
    assert torch.isfinite(sample.point).all()


def test_coarsen_of_a_scene_is_what_its_masks_are() -> None:
    scene = pretrain_scene(0, seed=5, side=128)
    assert np.array_equal(coarse_masks(scene, size=5)[0], coarsen(scene.salient, size=5))
