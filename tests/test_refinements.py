"""Trials of held-out masks: rows against pixels counted by hand, chunks and subsets that change nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sum import refinements
from sum.data.demo import make_scene
from sum.data.records import ImageRecord, Manifest, MaskRecord, encode_mask
from sum.models.checkpoint import load_segmenter
from sum.models.refiner import Refiner
from sum.models.segmenter import Segmenter
from sum.refinements import Trial, images_of, mask_row, picture, pixel_rows, trials
from sum.storage import sha256_file

WEIGHTS = Path(__file__).parents[1] / "sum/models/weights/tiny.safetensors"


@pytest.fixture(scope="module")
def models() -> tuple[Segmenter, Refiner, Refiner]:
    base = load_segmenter(WEIGHTS, backbone="tiny").requires_grad_(False)
    first, second = Refiner(base).eval(), Refiner(base).eval()
    with torch.no_grad():
        for refiner, step in ((first, 0.01), (second, 0.03)):
            generator = torch.Generator().manual_seed(1)
            for value in refiner.parameters():
                value.add_(step * torch.randn(value.shape, generator=generator))
    return base, first, second


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("scenes")
    images, masks = [], []
    for number in range(3):
        scene = make_scene(number, side=96)
        height = 96 if number else 64
        path = folder / f"{number}.png"
        Image.fromarray(scene.image[:height]).save(path)
        place = {"image_id": f"a/{number}", "dataset": "a", "task": "entity", "split": "train"}
        size = {"height": height, "width": 96}
        images.append(ImageRecord(path=str(path), sha256=sha256_file(path), licence="", **size, **place))
        for k, mask in enumerate(m[:height] for m in scene.entities if m[:height].any()):
            box = {"x0": 0, "y0": 0, "x1": 0, "y1": 0}
            about = {"area": int(mask.sum()), "rle": encode_mask(mask), "category": "", "source": ""}
            masks.append(MaskRecord(mask_id=f"a/{number}#{k}", **place, **box, **about))
    return Manifest(images, masks)


def asked(models: tuple[Segmenter, Refiner, Refiner], manifest: Manifest, **changes: object) -> list[Trial]:
    base, refiner, other = models
    options = {"others": {"decoder": other}, "filters": (0.0, 0.0), "seed": 3, **changes}
    return list(trials(refiner, base, manifest, **options))  # type: ignore[arg-type]


def test_every_mask_is_asked_and_its_truth_is_its_own(models, manifest) -> None:
    found = asked(models, manifest)
    assert [trial.mask.mask_id for trial in found] == [mask.mask_id for mask in manifest.masks]
    for trial in found:
        x, y = trial.point
        assert trial.truth[y, x]  # the click lies on the truth
        assert trial.valid.sum() == (128 * 128 if trial.mask.image_id != "a/0" else 128 * 85)
        assert not (trial.sam & ~trial.valid).any()
    methods = {"refinement", "confidence", "none", "discrepancy_decoders"}
    assert set(found[0].uncertainty) == methods  # there is no student to compare with


def test_filters_leave_masks_out(models, manifest) -> None:
    assert 0 < len(asked(models, manifest, filters=(0.6, 0.4))) < len(manifest.masks)


def test_a_part_of_the_images_gives_what_all_gave(models, manifest) -> None:
    whole = {trial.mask.mask_id: trial for trial in asked(models, manifest)}
    part = asked(models, images_of(manifest, {"a/1"}))
    assert part
    for trial in part:
        same = whole[trial.mask.mask_id]
        assert trial.point == same.point
        assert np.array_equal(trial.refined, same.refined)
        for name, codes in trial.uncertainty.items():
            assert np.array_equal(codes, same.uncertainty[name])


def test_rows_are_counts_of_the_planes(models, manifest) -> None:
    trial = asked(models, images_of(manifest, {"a/0"}))[0]
    row = mask_row(trial)
    assert row["iou_sam"] == (trial.sam & trial.truth).sum() / (trial.sam | trial.truth).sum()
    rows = {(r["region"], r["kind"], r["method"]): r for r in pixel_rows(trial)}
    assert len(rows) == 2 * (4 + 2)
    codes = trial.uncertainty["refinement"]
    wrong = np.zeros(256, dtype=int)
    for y, x in np.argwhere(trial.valid & (trial.sam != trial.truth)):
        wrong[codes[y, x]] += 1
    assert rows["image", "uncertainty", "refinement"]["wrong"] == wrong.tolist()
    set_pixels = rows["image", "probability", "sam"]["right"]
    assert sum(set_pixels) == trial.truth.sum()
    ys, xs = np.nonzero(trial.sam | trial.truth)
    gap = int(np.ceil(0.1 * max(np.ptp(ys), np.ptp(xs))))
    inside = np.zeros_like(trial.valid)
    inside[max(0, ys.min() - gap) : ys.max() + gap + 1, max(0, xs.min() - gap) : xs.max() + gap + 1] = True
    counted = rows["box", "uncertainty", "none"]
    assert sum(counted["wrong"]) + sum(counted["right"]) == (inside & trial.valid).sum()


def test_the_uncertainty_is_what_training_reads(models, manifest) -> None:
    """Bytes at SAM's low resolution, enlarged bilinearly by another library."""
    import cv2

    refiner = models[1]
    seen: list[torch.Tensor] = []
    hook = refiner.register_forward_hook(
        lambda module, given, kwargs, answer: seen.extend([kwargs["sam_logits"], answer]), with_kwargs=True
    )
    trial = asked(models, images_of(manifest, {"a/1"}))[0]
    hook.remove()
    sam, refined = (np.round(255 / (1 + np.exp(-seen[k][0, 0].double().numpy()))) for k in (0, 1))
    low = np.abs(sam - refined).astype(np.float32)  # of the codes, as the store has it
    wanted = cv2.resize(low, (128, 128), interpolation=cv2.INTER_LINEAR)
    assert np.abs(trial.uncertainty["refinement"].astype(float) - wanted).max() <= 0.51


def test_pictures_are_five_tiles(models, manifest) -> None:
    trial = asked(models, manifest)[0]
    shown = picture(trial, method="refinement")
    assert shown.dtype == np.uint8
    assert shown.shape[1] > 4 * shown.shape[0]
    empty = replace(trial, sam=np.zeros_like(trial.sam), refined=np.zeros_like(trial.refined))
    assert picture(empty, method="confidence").shape[2] == 3


def test_an_empty_mask_has_no_box() -> None:
    assert not refinements._around(np.zeros((4, 4), dtype=bool)).any()
