"""Crop layers, small regions, precision, memory: the generator's other options, against segment_anything's records."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from segment_anything.utils.amg import remove_small_regions
from torch import Tensor

from sum.config import load_config
from sum.core.geometry import logits_to_image, resized_hw
from sum.data.demo_files import set_scene
from sum.models import generator, sieve
from sum.models.agreement import partners
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import load_segmenter
from sum.models.crops import OUTSIDE, Crop, at_home, crops_of
from sum.models.generator import Batches, embed_all, generate, to_model
from sum.models.halving import Halving
from sum.models.point_decoder import Outputs
from sum.models.regions import remove_small
from sum.models.segmenter import Segmenter
from sum.models.sieve import GeneratorSettings
from tests.models.generating import (
    EVERYTHING,
    Blobs,
    Plain,
    assert_same,
    blobs,
    build_blobs,
    decoder_of,
    photo,
    reference,
)

PROJECT = Path(__file__).parents[2]
CROPS = replace(EVERYTHING, points_per_side=4, crop_n_layers=1, crop_nms_thresh=0.6, box_nms_thresh=0.8)


@pytest.fixture(autouse=True)
def blobs_answer_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "PointDecoder", decoder_of)


def ragged(xy: Tensor, *, side: int, low: int) -> tuple[Tensor, Tensor]:
    """Blobs with holes and islands."""
    logits, scores = blobs(xy, side=side, low=low)
    at = torch.arange(low, dtype=torch.float32)
    return logits + 4 * torch.sin(at / 1.3)[:, None] * torch.sin(at / 1.7), scores


def tied(xy: Tensor, *, side: int, low: int) -> tuple[Tensor, Tensor]:
    """Blobs of one score."""
    logits, scores = blobs(xy, side=side, low=low)
    return logits, torch.full_like(scores, 0.9)


def everywhere(xy: Tensor, *, side: int, low: int) -> tuple[Tensor, Tensor]:
    """Masks that fill whatever is looked at."""
    logits, scores = blobs(xy, side=side, low=low)
    return logits.abs() + 2, scores


def nowhere(xy: Tensor, *, side: int, low: int) -> tuple[Tensor, Tensor]:
    """Empty masks."""
    logits, scores = blobs(xy, side=side, low=low)
    return -logits.abs() - 2, scores


def world(draw: object) -> Blobs:
    model = build_blobs()
    model.draw = draw
    return model


@pytest.mark.parametrize(
    ("hw", "draw"),
    [
        ((160, 200), ragged),
        ((64, 64), everywhere),
        pytest.param((160, 200), blobs, marks=pytest.mark.slow),
        pytest.param((160, 200), tied, marks=pytest.mark.slow),
        pytest.param((190, 100), ragged, marks=pytest.mark.slow),
        pytest.param((190, 100), blobs, marks=pytest.mark.slow),
        pytest.param((64, 64), ragged, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        {"crop_n_layers": 1},
        {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "crop_overlap_ratio": 0.5, "stability_thresh": 0.5},
        {"crop_n_layers": 1, "stability_thresh": 0.7, "stability_offset": 0.5, "pred_iou_thresh": 0.3},
        {"min_mask_region_area": 60},
        {"crop_n_layers": 1, "min_mask_region_area": 200, "crop_nms_thresh": 0.9},
        {"min_mask_region_area": 5000},  # more than 64 x 64: the whole image becomes every mask
    ],
    ids="-".join,
)
def test_options_give_the_official_records(hw: tuple[int, int], draw: object, options: dict[str, float]) -> None:
    model, settings = world(draw), replace(CROPS, **{"crop_n_layers": 0, **options})
    own = generate(model, photo(hw), settings=settings)
    official = [record for record in reference(model, photo(hw), settings) if record["area"]]
    assert own
    assert_same(own, official, hw=hw)
    if settings.crop_n_layers and draw is blobs and hw != (64, 64):
        assert any(record["crop_box"] != [0, 0, hw[1], hw[0]] for record in official)  # crops found something


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("region", [0, 50])
def test_empty_masks_are_no_labels(layers: int, region: int) -> None:
    settings = replace(CROPS, crop_n_layers=layers, min_mask_region_area=region)
    assert generate(world(nowhere), photo((160, 200)), settings=settings) == []
    assert not any(record["area"] for record in reference(world(nowhere), photo((160, 200)), settings))


def test_nothing_in_any_crop_is_an_empty_list() -> None:
    """There segment_anything stops with an IndexError."""
    settings = replace(CROPS, pred_iou_thresh=9.0)
    assert generate(world(blobs), photo((160, 200)), settings=settings) == []
    with pytest.raises(IndexError):
        reference(world(blobs), photo((160, 200)), settings)


def test_crops_without_a_pixel_are_left_out() -> None:
    crops = crops_of((10, 10), layers=3, overlap=0.3)
    assert len(crops) < 1 + 4 + 16 + 64
    assert all(min(crop.hw) > 0 for crop in crops)
    assert generate(
        world(blobs), photo((10, 10)), settings=replace(CROPS, points_per_side=1, crop_n_layers=3, stability_thresh=0.1)
    )


def test_both_ways_of_enlarging_agree_in_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    want = generate(world(ragged), photo((160, 200)), settings=CROPS)
    monkeypatch.setattr(sieve, "WINDOWED", frozenset())
    found = generate(world(ragged), photo((160, 200)), settings=CROPS)
    names = ("rle", "area", "box", "point", "predicted_iou", "stability")
    assert [[getattr(m, name) for name in names] for m in found] == [[getattr(m, n) for n in names] for m in want]
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("least", [1, 2, 9, 60, 3000, 10_000])
def test_small_regions_go_as_in_the_reference(least: int) -> None:
    chance = np.random.default_rng(0)
    for size in (1, 2, 5, 9):
        coarse = chance.random((60, 45)).astype(np.float32)
        for share in (0.1, 0.5, 0.8, 2.0, -1.0):  # of pixels that are set
            mask = cv2.resize(cv2.blur(coarse, (size, size)), (70, 91)) < share
            filled, first = remove_small_regions(mask, least, mode="holes")
            want, second = remove_small_regions(filled, least, mode="islands")
            found = remove_small(mask, least=least)
            assert (found is not None) == (first or second)
            assert np.array_equal(mask if found is None else found, want)


def plane(hw: tuple[int, int], crop: Crop, *, side: int, low: int) -> np.ndarray:
    """A linear field over the image, at the low-resolution pixels of a crop: `[low, low]`."""
    inner = resized_hw(*crop.hw, side)
    centres = (np.arange(low) + 0.5) * side / low
    x = crop.box[0] + centres * crop.hw[1] / inner[1]
    y = crop.box[1] + centres * crop.hw[0] / inner[0]
    return (4 * x[None, :] / hw[1] - 3 * y[:, None] / hw[0]).astype(np.float32)


@pytest.mark.parametrize("hw", [(160, 200), (300, 120)])
def test_logits_come_home_from_crops(hw: tuple[int, int]) -> None:
    """A linear field, exactly but for the rim of the crop; beyond it the mask is surely not."""
    whole, *crops = crops_of(hw, layers=2, overlap=0.3)
    truth = torch.from_numpy(plane(hw, whole, side=64, low=32))
    for crop in crops:
        x0, y0, x1, y1 = crop.box
        local = torch.from_numpy(plane(hw, crop, side=64, low=32))
        home = at_home(local[None].half(), crop, side=64)[0]
        step = [2 * size / inner for size, inner in zip(hw, resized_hw(*hw, 64), strict=True)]  # px, low-resolution
        y, x = ((torch.arange(32) + 0.5) * size for size in step)
        row, column = (y - y0 >= step[0]) & (y1 - y >= step[0]), (x - x0 >= step[1]) & (x1 - x >= step[1])
        assert row.any()
        assert column.any()
        assert (home - truth)[row[:, None] & column[None, :]].abs().max() < 0.01  # of float16
        outside = ((y < y0) | (y >= y1))[:, None] | ((x < x0) | (x >= x1))[None, :]
        assert ((home <= OUTSIDE) == outside).all()


def test_the_whole_image_is_its_own_home() -> None:
    logits = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    home = at_home(logits, Crop.whole((64, 48)), side=64)
    assert torch.allclose(home[:, :, :24], logits[:, :, :24], atol=1e-5)
    assert (home[:, :, 24:] == OUTSIDE).all()  # the padding


class Narrow(Plain):
    """Memory for `fits` points."""

    fits = 4

    def ask(
        self, xy: Tensor, *, floor: float | None, chunk: int, views: Sequence[int] | None = None
    ) -> Iterator[Outputs]:
        """As Plain, point by point, until the memory is full."""
        for number in range(len(xy)):
            if number >= self.fits:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
            for out in super().ask(xy[number : number + 1], floor=floor, chunk=chunk):
                yield Outputs(out.logits, out.iou, out.point + number)


def test_out_of_memory_halves_the_batch_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, batches = world(blobs), Batches(Halving(1), Halving(25))
    want = generate(model, photo((48, 64)), settings=EVERYTHING)
    monkeypatch.setattr(generator, "PointDecoder", lambda model, e, **_: Narrow(model, e))
    with caplog.at_level(logging.WARNING):
        found = generate(model, photo((48, 64)), settings=EVERYTHING, batches=batches)
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"Out of memory with {n} prompts at once: going on with {n // 2}." for n in (25, 12, 6)]
    for a, b in zip(found, want, strict=True):
        assert (a.rle, a.point, a.predicted_iou, a.stability) == (b.rle, b.point, b.predicted_iou, b.stability)
        assert np.array_equal(a.logits, b.logits)
    caplog.clear()
    again = generate(model, photo((48, 64)), settings=EVERYTHING, batches=batches)
    assert batches.prompts.size == 3  # remembered
    assert not caplog.records
    assert [m.rle for m in again] == [m.rle for m in want]


def test_a_single_prompt_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Narrow, "fits", 0)
    monkeypatch.setattr(generator, "PointDecoder", lambda model, e, **_: Narrow(model, e))
    with pytest.raises(torch.OutOfMemoryError):
        generate(world(blobs), photo((48, 64)), settings=EVERYTHING)


@pytest.fixture(scope="module")
def tiny() -> Segmenter:
    return load_segmenter(PROJECT / "sum/models/weights/tiny.safetensors", backbone="tiny")


LABELLING = GeneratorSettings(
    points_per_side=6, pred_iou_thresh=0.3, stability_thresh=0.3, max_area_share=2.0, min_area=0.0
)


def scene(index: int, *, side: int = 128) -> np.ndarray:
    return set_scene("unlabelled", index, seeds=load_config(root=PROJECT).demo.seeds, side=side).image


@pytest.mark.parametrize(
    ("scenes", "options"),
    [
        (1, {"min_mask_region_area": 40}),
        (1, {"crop_n_layers": 1, "points_per_side": 3}),
        pytest.param(6, {}, marks=pytest.mark.slow),
        pytest.param(6, {"min_mask_region_area": 100}, marks=pytest.mark.slow),
        pytest.param(6, {"crop_n_layers": 1, "min_mask_region_area": 40}, marks=pytest.mark.slow),
        pytest.param(2, {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, marks=pytest.mark.slow),
    ],
)
def test_trained_weights_give_the_official_records(tiny: Segmenter, scenes: int, options: dict[str, float]) -> None:
    settings, masks = replace(LABELLING, **options), 0
    for index in range(scenes):
        image = scene(index)
        own = generate(tiny, image, settings=settings)
        assert_same(own, reference(tiny, image, settings), hw=image.shape[:2])
        masks += len(own)
    assert masks >= 3 * scenes


def test_bf16_finds_nearly_the_same_masks(tiny: Segmenter) -> None:
    image = scene(0)
    full, half = (generate(tiny, image, settings=replace(LABELLING, precision=name)) for name in ("fp32", "bf16"))
    assert [mask.predicted_iou for mask in full] != [mask.predicted_iou for mask in half]  # it did compute otherwise
    for share in partners(full, half, hw=image.shape[:2], least=0.9):
        assert share.mean() > 0.8
    assert {mask.logits.dtype for mask in half} == {np.dtype(np.float16)}


@pytest.mark.slow
def test_masks_of_crops_keep_their_shape_at_home(tiny: Segmenter) -> None:
    """Cut at 0, the stored logits of a mask seen in a crop give it again, as far as the coarser frame can."""
    image = scene(1, side=384)
    hw, low = (image.shape[0], image.shape[1]), tiny.low_side
    whole = {mask.rle for mask in generate(tiny, image, settings=replace(LABELLING, box_nms_thresh=1.0))}
    masks = generate(tiny, image, settings=replace(LABELLING, crop_n_layers=1))
    large = [mask for mask in masks if mask.rle not in whole and mask.area * (low / max(hw)) ** 2 >= 100]
    assert len(large) >= 2
    for mask in large:
        logits = torch.from_numpy(mask.logits.astype(np.float32))[None, None]
        shown = logits_to_image(logits, resized=resized_hw(*hw, tiny.side), hw=hw, side=tiny.side)[0, 0].numpy() > 0
        truth = coco.decode({"size": list(hw), "counts": mask.rle}).astype(bool)
        assert (shown & truth).sum() / (shown | truth).sum() > 0.85


def test_an_embedding_at_hand_is_of_the_same_image(tiny: Segmenter) -> None:
    image = scene(0)
    want = generate(tiny, image, settings=LABELLING)
    frame = to_model(image, side=tiny.side)
    hw = image.shape[0], image.shape[1]
    (embedding,) = embed_all(tiny, [frame], hw=[hw], precision="fp32", batch=Halving(1))
    found = generate(tiny, image, settings=LABELLING, embedding=embedding)
    assert [m.rle for m in found] == [m.rle for m in want]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vit_b_gives_the_official_records() -> None:
    """Random weights: faint, speckled logits, so rounding may move some of a million pixels over 0."""
    torch.manual_seed(0)
    model = Segmenter(BACKBONES["vit_b"].build().eval(), backbone="vit_b")
    settings = replace(EVERYTHING, points_per_side=2, stability_offset=0.001, min_mask_region_area=20)
    image = photo((130, 170))
    own = generate(model, image, settings=settings)
    official = [record for record in reference(model, image, settings) if record["area"]]
    assert_same(own, official, hw=image.shape[:2], stray=20)
    assert len(own) >= 6
