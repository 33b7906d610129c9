"""Stage uncertainty in a project of its own: maps, small masks, methods, resuming to the byte, bad inputs."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from sum.data.images import read_image
from sum.data.labels import LabelStore
from sum.data.records import write_manifest
from sum.errors import CheckpointError, ConfigError, DataError, MissingInput
from sum.models.checkpoint import fingerprint, load_segmenter
from sum.models.generator import area_at_paper_side
from sum.models.refiner import Refiner, load_refiner, save_refiner
from sum.models.segmenter import Segmenter as SegmenterType
from sum.stages import pseudo_label, uncertainty
from tests.stages.label_world import SIZES, WEIGHTS, configure, contents, make_project, record

LABELS = Path("data/pseudo_labels")
OUT = Path("data/uncertainty")
REFINER = Path("data/refiner/model.safetensors")
IDS = [f"u/{number}" for number in range(len(SIZES))]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose photos are labelled, with a refiner that is not SAM any more."""
    folder = tmp_path_factory.mktemp("template")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pseudo_label.run(configure(folder))
        refiner = Refiner(load_segmenter(WEIGHTS, backbone="tiny"))
        torch.manual_seed(1)
        with torch.no_grad():
            for value in refiner.parameters():
                value.add_(0.1 * torch.randn_like(value))
        save_refiner(REFINER, refiner, origin=fingerprint(WEIGHTS), about={})
    shutil.rmtree(folder / "work")
    return folder


def probability(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def logits_as_stored(codes: np.ndarray) -> np.ndarray:
    share = np.clip(codes.astype(np.float64) / 255, 1 / 1020, 1019 / 1020)
    return np.log(share / (1 - share))


def refined_by_stock_sam(number: int) -> np.ndarray:
    """`[K, L, L]` logits of segment_anything's own predictor with the refiner's weights and the three prompts."""
    model = load_segmenter(WEIGHTS, backbone="tiny")
    tuned = load_refiner(REFINER, base=model, origin=fingerprint(WEIGHTS)).core.sam
    model.sam.prompt_encoder, model.sam.mask_decoder = tuned.prompt_encoder, tuned.mask_decoder
    predictor = SamPredictor(model.sam)
    predictor.set_image(read_image(record(number).path))
    store = LabelStore(LABELS)
    return np.concatenate(
        [
            predictor.predict(
                point_coords=np.array([mask.point]),
                point_labels=np.array([1]),
                box=np.array(mask.box),
                mask_input=logits_as_stored(store.sam(f"u/{number}", [mask.index])).astype(np.float32),
                multimask_output=False,
            )[2]
            for mask in store.masks(f"u/{number}")
        ]
    )


def test_maps_are_the_distance_to_the_refined_masks(project: Path) -> None:
    assert uncertainty.run(configure(project)) == OUT
    store = LabelStore(LABELS, OUT)
    means = []
    for number in range(len(SIZES)):
        image_id = f"u/{number}"
        refined = probability(refined_by_stock_sam(number))
        np.testing.assert_allclose(store.refined(image_id) / 255, refined, atol=0.5 / 255 + 1e-5)
        want = abs(store.sam(image_id) / 255 - refined)
        np.testing.assert_allclose(store.uncertainty(image_id) / 255, want, atol=0.5 / 255 + 1e-5)
        assert store.has_map(image_id).all()
        means.append(store.uncertainty(image_id).mean(axis=(1, 2)) / 255)
    found = json.loads((OUT / "summary.json").read_text())
    assert (found["images"], found["masks"]) == (5, sum(map(len, means)))
    assert found["masks_with_map"] == found["masks"]
    assert found["mean_uncertainty"] == pytest.approx(np.concatenate(means).mean(), abs=1e-5)
    assert found["mean_uncertainty"] > 0.001


def test_small_masks_get_no_map_but_keep_their_place(project: Path) -> None:
    store = LabelStore(LABELS)
    areas = {
        f"u/{n}": [area_at_paper_side(mask.area, hw) for mask in store.masks(f"u/{n}")] for n, hw in enumerate(SIZES)
    }
    least = float(np.median([area for some in areas.values() for area in some]))
    uncertainty.run(configure(project))
    every = {image_id: LabelStore(LABELS, OUT).uncertainty(image_id) for image_id in areas}
    uncertainty.run(configure(project, uncertainty={"min_refine_area": least}))
    store = LabelStore(LABELS, OUT)
    for image_id, some in areas.items():
        large = np.array(some) >= least
        assert store.has_map(image_id).tolist() == large.tolist()
        maps = store.uncertainty(image_id)
        assert not maps[~large].any()
        assert np.abs(maps[large].astype(int) - every[image_id][large]).max(initial=0) <= 1  # other masks in the batch
        assert np.array_equal(store.refined(image_id)[~large], store.sam(image_id)[~large])
    found = json.loads((OUT / "summary.json").read_text())
    assert 0 < found["masks_with_map"] < found["masks"]


@pytest.mark.parametrize("method", ["none", "confidence"])
def test_methods_of_sam_alone_look_at_no_photo_and_no_refiner(project: Path, method: str) -> None:
    shutil.rmtree("data/raw")
    shutil.rmtree("data/refiner")
    uncertainty.run(configure(project, uncertainty={"method": method}))
    store = LabelStore(LABELS, OUT)
    for image_id in store.image_ids:
        sam = np.clip(store.sam(image_id) / 255, 1 / 1020, 1019 / 1020)
        want = np.zeros_like(sam) if method == "none" else 1 - abs(2 * sam - 1)
        np.testing.assert_allclose(store.uncertainty(image_id) / 255, want, atol=0.51 / 255)


def test_the_encoder_runs_once_an_image_and_only_where_there_is_something_to_refine(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = uncertainty.embeddings_of

    def counted(*arguments: object, **options: object) -> object:
        calls.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(uncertainty, "embeddings_of", counted)
    uncertainty.run(configure(project))
    assert len(calls) == 5
    uncertainty.run(configure(project, uncertainty={"min_refine_area": 1e9}))
    assert len(calls) == 5


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bytes(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(project, whole)
    monkeypatch.chdir(whole)
    uncertainty.run(configure(whole))
    monkeypatch.chdir(project)
    stop_at(4, monkeypatch)  # in the middle of the second shard with images; a SIGKILL is tried on stage pseudo_label
    with pytest.raises(KeyboardInterrupt):
        uncertainty.run(configure(project))
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert not OUT.exists()
    (work,) = Path("work/uncertainty").iterdir()
    first = {path.name: path.stat().st_ino for path in work.glob("*.arrow")}
    assert first  # the empty ones are the same file
    uncertainty.run(configure(project))
    assert {name: (work / name).stat().st_ino for name in first} == first  # not made again
    assert contents(OUT) == contents(whole / OUT)


def stop_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = uncertainty.embeddings_of, []

    def last(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(uncertainty, "embeddings_of", last)


@pytest.mark.parametrize("damage", ["cut", "a byte of the maps"])
def test_a_damaged_shard_of_an_earlier_run_is_made_again(project: Path, damage: str) -> None:
    uncertainty.run(configure(project))
    want = contents(OUT)
    (work,) = Path("work/uncertainty").iterdir()
    largest = max(work.glob("*.arrow"), key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    middle = len(data) // 2
    turned = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    largest.unlink()
    largest.write_bytes(b"ARROW1" if damage == "cut" else turned)
    uncertainty.run(configure(project))
    assert contents(OUT) == want


def test_new_labels_make_new_maps(project: Path) -> None:
    uncertainty.run(configure(project))
    pseudo_label.run(configure(project, pseudo_label={"points_per_side": 1}))
    with pytest.raises(DataError, match=r"made for other labels.*dvc repro uncertainty"):
        LabelStore(LABELS, OUT)
    uncertainty.run(configure(project))
    LabelStore(LABELS, OUT)


def test_images_without_masks_are_kept(project: Path) -> None:
    pseudo_label.run(configure(project, pseudo_label={"pred_iou_thresh": 99.0}))
    uncertainty.run(configure(project))
    store = LabelStore(LABELS, OUT)
    assert len(store) == 5
    assert store.uncertainty("u/0").shape == (0, 64, 64)
    assert json.loads((OUT / "summary.json").read_text())["mean_uncertainty"] is None


@pytest.mark.parametrize(
    ("gone", "maker"),
    [
        ("data/manifest", "ingest"),
        ("data/pseudo_labels", "pseudo_label"),
        ("data/pseudo_labels/summary.json", "pseudo_label"),
        ("data/refiner", "refine"),
    ],
)
def test_a_missing_input_names_its_stage(project: Path, gone: str, maker: str) -> None:
    Path(gone).rename("gone")
    with pytest.raises(MissingInput, match=rf"stage 'uncertainty' reads it, stage '{maker}' writes it"):
        uncertainty.run(configure(project))


@pytest.mark.parametrize(
    ("harm", "why"),
    [(lambda path: path.unlink(), "is missing"), (lambda path: shutil.copy(record(1).path, path), "has changed")],
)
def test_a_lost_photo_is_listed_and_gets_no_maps(project: Path, harm: Callable[[Path], object], why: str) -> None:
    """By policy the stage fails in the end; a photo that is back is looked at again."""
    uncertainty.run(configure(project))
    whole = contents(OUT)
    shutil.rmtree("work")
    photo = Path(record(2).path)
    kept = photo.read_bytes()
    harm(photo)
    with pytest.raises(DataError, match=rf"1 unlabelled images cannot be used[^\n]*\n  .*u/2\.png[^\n]*{why}"):
        uncertainty.run(configure(project, pseudo_label={"on_bad": "fail"}))
    uncertainty.run(configure(project))
    store = LabelStore(LABELS, OUT)
    assert not any(store.has_map("u/2"))
    assert all(any(store.has_map(image_id)) for image_id in IDS if image_id != "u/2")
    assert list(json.loads((OUT / "summary.json").read_text())["photos_lost"]) == ["u/2"]
    photo.write_bytes(kept)
    uncertainty.run(configure(project))
    assert contents(OUT) == whole


def test_an_image_that_left_the_manifest_stops_the_stage(project: Path) -> None:
    write_manifest(Path("data/manifest"), [record(number) for number in range(4)], [])
    with pytest.raises(DataError, match=r"image 'u/4' is not in data/manifest.*dvc repro pseudo_label"):
        uncertainty.run(configure(project))


def test_weights_that_are_no_refiner_are_refused(project: Path) -> None:
    shutil.copy(WEIGHTS, REFINER)
    with pytest.raises(CheckpointError, match="wants a refinement module"):
        uncertainty.run(configure(project))


def test_an_unknown_method_is_answered_with_the_known_ones(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown 'refinment'\. Did you mean 'refinement'"):
        uncertainty.run(configure(project, uncertainty={"method": "refinment"}))


@pytest.mark.slow
def test_maps_made_while_labelling_are_the_stage_s_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the refiner at hand the labelling pass makes the maps, and the encoder runs once an image in all."""
    uncertainty.run(configure(project))
    alone = contents(OUT)
    shutil.rmtree("work", ignore_errors=True)
    shutil.rmtree(OUT)
    encoded, real = [], SegmenterType.encode_fast

    def counted(*arguments: object) -> object:
        encoded.append(1)
        return real(*arguments)

    monkeypatch.setattr(SegmenterType, "encode_fast", counted)
    labels = contents(LABELS)
    pseudo_label.run(configure(project))
    assert contents(LABELS) == labels
    uncertainty.run(configure(project))
    assert len(encoded) == len(SIZES)
    assert contents(OUT) == alone


@pytest.mark.parametrize("stage", [pytest.param("in passing", marks=pytest.mark.slow), "alone"])
def test_masks_of_several_images_are_refined_together(
    project: Path, stage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fewer encoder calls, larger batches, halved when they do not fit; the codes differ by rounding at most."""
    uncertainty.run(configure(project))
    want = {image_id: LabelStore(LABELS, OUT).refined(image_id).astype(int) for image_id in IDS}
    shutil.rmtree("work")
    encoded, refined = list[int](), list[int]()
    encode, refine = SegmenterType.encode_fast, Refiner.forward

    def encoding(self: SegmenterType, frames: torch.Tensor, hw: torch.Tensor) -> torch.Tensor:
        encoded.append(len(frames))
        return encode(self, frames, hw)

    def refining(self: Refiner, embedding: torch.Tensor, index: torch.Tensor, **prompts: torch.Tensor) -> torch.Tensor:
        refined.append(len(index.unique()))
        if len(index) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return refine(self, embedding, index, **prompts)

    monkeypatch.setattr(SegmenterType, "encode_fast", encoding)
    monkeypatch.setattr(Refiner, "forward", refining)
    config = configure(project, pseudo_label={"images_per_batch": 3})
    with caplog.at_level(logging.WARNING):
        if stage == "in passing":
            pseudo_label.run(config)
        else:
            shutil.rmtree("data/uncertainty")
        uncertainty.run(config)
    assert sum(encoded) == len(SIZES)
    assert max(encoded) >= 2
    assert max(refined) >= 2  # images a batch
    assert "masks at once: going on with" in caplog.text
    for image_id, codes in want.items():
        assert abs(LabelStore(LABELS, OUT).refined(image_id).astype(int) - codes).max() <= 1


def test_a_refiner_of_other_weights_makes_no_maps_in_passing(project: Path) -> None:
    refiner = load_refiner(REFINER, base=load_segmenter(WEIGHTS, backbone="tiny"), origin=fingerprint(WEIGHTS))
    save_refiner(REFINER, refiner, origin="0" * 64, about={})
    pseudo_label.run(configure(project))
    assert not Path("work/uncertainty").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "other"), [("discrepancy_teacher", "student"), ("discrepancy_decoders", "decoder")])
def test_a_discrepancy_is_the_distance_of_two_refiners(project: Path, method: str, other: str) -> None:
    """Each of them asked alone as the paper's method gives what is compared."""
    config = configure(project, uncertainty={"method": method}, refine={"discrepancy": ["teacher", "decoders"]})
    with pytest.raises(CheckpointError, match=rf"{other}\.safetensors is missing.*refine\.discrepancy"):
        uncertainty.run(config)
    refined = []
    first = REFINER.read_bytes()
    second = load_refiner(REFINER, base=load_segmenter(WEIGHTS, backbone="tiny"), origin=fingerprint(WEIGHTS))
    with torch.no_grad():
        for value in second.parameters():
            value.add_(0.1 * torch.randn_like(value, generator=None))
    save_refiner(REFINER, second, origin=fingerprint(WEIGHTS), about={})
    for weights in (REFINER.read_bytes(), first):
        REFINER.write_bytes(weights)
        uncertainty.run(configure(project))
        refined.append([LabelStore(LABELS, OUT).refined(image_id).astype(int) for image_id in IDS])
    save_refiner(REFINER.with_name(f"{other}.safetensors"), second, origin=fingerprint(WEIGHTS), about={})
    uncertainty.run(config)
    store = LabelStore(LABELS, OUT)
    for number, (far, near) in enumerate(zip(*refined, strict=True)):
        assert np.array_equal(store.uncertainty(f"u/{number}"), np.abs(near - far))
        assert np.array_equal(store.refined(f"u/{number}"), near)
