"""The generator against segment_anything's own, record by record; what it adds; the empty result."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from sum.core.geometry import resized_hw
from sum.models import generator, sieve
from sum.models.backbones import build_tiny
from sum.models.crops import Crop
from sum.models.enlarge import Cut, Enlarger
from sum.models.generator import area_at_paper_side, generate
from sum.models.segmenter import Prediction, Prompts, Segmenter
from sum.models.sieve import Sieve
from tests.models.generating import (
    EVERYTHING,
    SIZES,
    Blobs,
    assert_same,
    blobs,
    build_blobs,
    decoder_of,
    photo,
    pixels,
    reference,
)


@pytest.fixture(scope="module")
def noisy() -> Segmenter:
    """A tiny SAM of random weights: its masks are speckled, its scores all differ."""
    torch.manual_seed(3)
    sam = build_tiny(side=64, channels=32).eval()
    with torch.no_grad():
        for value in sam.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return Segmenter(sam, backbone="tiny")


@pytest.fixture(autouse=True)
def blobs_answer_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "PointDecoder", decoder_of)


@pytest.fixture(scope="module")
def smooth() -> Blobs:
    return build_blobs()


def middle(values: list[float]) -> float:
    return float(np.quantile([value for value in values if not math.isnan(value)], 0.4))


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize(
    ("kind", "offset", "stray"),
    [
        ("noisy", 0.01, 2),  # the whole network; random weights give faint logits, so rounding may move a pixel
        ("smooth", 1.0, 0),  # everything behind the decoder, exactly
    ],
)
def test_the_records_are_the_official_ones(
    kind: str, offset: float, stray: int, hw: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    model, image = request.getfixturevalue(kind), photo(hw)
    every = replace(EVERYTHING, stability_offset=offset)
    all_masks = reference(model, image, every)
    settings = replace(
        every,
        pred_iou_thresh=middle([record["predicted_iou"] for record in all_masks]),
        stability_thresh=middle([record["stability_score"] for record in all_masks]),
    )
    everything, filtered = generate(model, image, settings=every), generate(model, image, settings=settings)
    not_empty = [record for record in all_masks if record["area"]]  # an empty mask is no label
    assert_same(everything, not_empty, hw=hw, stray=stray)
    assert 0 < len(filtered) < len(everything)
    assert_same(filtered, reference(model, image, settings), hw=hw, stray=stray)


@pytest.mark.parametrize("hw", SIZES)
def test_ties_and_overlaps_are_settled_as_officially(smooth: Blobs, hw: tuple[int, int]) -> None:
    settings = replace(EVERYTHING, points_per_side=8, stability_thresh=0.6, box_nms_thresh=0.5)
    own, official = generate(smooth, photo(hw), settings=settings), reference(smooth, photo(hw), settings)
    scores = [mask.predicted_iou for mask in own]
    assert len(set(scores)) < len(scores) < 8 * 8 * 3  # ties there are, and NMS had work to do
    assert_same(own, official, hw=hw)


@pytest.mark.parametrize(("field", "value"), [("pred_iou_thresh", 9.0), ("stability_thresh", 1.1)])
def test_nothing_found(noisy: Segmenter, field: str, value: float) -> None:
    settings = replace(EVERYTHING, **{field: value})
    assert generate(noisy, photo((48, 64)), settings=settings) == []
    assert reference(noisy, photo((48, 64)), settings) == []


@pytest.mark.parametrize("per_batch", [1, 7, 25, 1000])
def test_batches_and_chunks_change_nothing(smooth: Blobs, per_batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    want = [mask.rle for mask in generate(smooth, photo((48, 64)), settings=EVERYTHING)]
    monkeypatch.setattr(sieve, "CHUNK_PIXELS", 5 * 64 * 64)
    monkeypatch.setattr(sieve, "WINDOWED", frozenset())
    found = generate(smooth, photo((48, 64)), settings=replace(EVERYTHING, points_per_batch=per_batch))
    assert [mask.rle for mask in found] == want


def test_only_what_passed_the_predicted_iou_is_upsampled(smooth: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def spy(self: Enlarger, logits: Tensor, **options: float) -> Cut:
        asked.append(logits)
        return real(self, logits, **options)

    real = Enlarger.cut
    monkeypatch.setattr(Enlarger, "cut", spy)
    generate(smooth, photo((64, 64)), settings=replace(EVERYTHING, pred_iou_thresh=0.7))
    assert 0 < len(asked) < 75


@pytest.mark.parametrize("hw", SIZES)
def test_both_ways_of_enlarging_give_the_same_candidates(noisy: Segmenter, hw: tuple[int, int]) -> None:
    """On a CPU each candidate inside its box, elsewhere all of them at full size."""
    logits = torch.randn(20, noisy.low_side, noisy.low_side, generator=torch.Generator().manual_seed(1))
    logits += torch.linspace(-4, 4, 20)[:, None, None]
    iou, points = torch.arange(20.0), np.arange(40.0).reshape(20, 2)
    settings = replace(EVERYTHING, stability_thresh=0.2, stability_offset=0.3, max_area_share=0.6)
    filters = Sieve(noisy, crop=Crop.whole(hw), settings=settings)
    ours, dense = filters.in_boxes(logits, iou, points), filters.in_frames(logits, iou, points)
    assert 0 < len(ours.rle) < 20
    assert ours.rle == dense.rle
    assert np.array_equal(ours.point, dense.point)
    for name in ("iou", "stability", "box", "area", "logits"):
        assert torch.equal(getattr(ours, name), getattr(dense, name)), name


def test_logits_are_those_of_the_mask(smooth: Blobs) -> None:
    hw = (75, 50)
    for mask in generate(smooth, photo(hw), settings=EVERYTHING):
        height, width = resized_hw(*hw, smooth.side)
        assert mask.logits.shape == (smooth.low_side, smooth.low_side)
        assert mask.logits.dtype == np.float16
        frame = cv2.resize(mask.logits.astype(np.float32), (smooth.side, smooth.side))[:height, :width]
        coarse = cv2.resize(frame, (hw[1], hw[0])) > 0
        assert (coarse == pixels(mask.rle, hw)).mean() > 0.99


def test_wild_logits_stay_finite(smooth: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(_: Tensor, index: Tensor, prompts: Prompts, **options: object) -> Prediction:
        logits, scores = blobs(prompts.xy[:, 0], side=smooth.side, low=smooth.low_side)
        return Prediction(logits * 1e6, scores)

    monkeypatch.setattr(smooth, "decode", decode)
    masks = generate(smooth, photo((64, 64)), settings=EVERYTHING)
    assert masks
    assert all(np.isfinite(mask.logits).all() for mask in masks)


def test_whole_image_masks_go_before_nms(smooth: Blobs) -> None:
    found = generate(smooth, photo((64, 64)), settings=EVERYTHING)
    areas = [mask.area for mask in found]
    limit = max(areas)
    rest = generate(smooth, photo((64, 64)), settings=replace(EVERYTHING, max_area_share=limit / 64**2))
    assert [mask.area for mask in rest] == [area for area in areas if area < limit]


@pytest.mark.parametrize(
    ("area", "hw", "want"),
    [
        (100, (1024, 768), 100.0),  # the paper's side
        (100, (512, 256), 400.0),  # half of it
        (100, (100, 2048), 25.0),  # the longest side counts
    ],
)
def test_area_at_paper_side(area: int, hw: tuple[int, int], want: float) -> None:
    assert area_at_paper_side(area, hw) == want


def test_small_masks_go_after_nms(smooth: Blobs) -> None:
    settings = replace(EVERYTHING, box_nms_thresh=0.6)
    found = generate(smooth, photo((64, 64)), settings=settings)
    least = float(np.median([area_at_paper_side(mask.area, (64, 64)) for mask in found]))
    rest = generate(smooth, photo((64, 64)), settings=replace(settings, min_area=least))
    assert [mask.rle for mask in rest] == [m.rle for m in found if area_at_paper_side(m.area, (64, 64)) >= least]
    assert 0 < len(rest) < len(found)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 4), np.uint8)]
)
def test_another_kind_of_image_is_refused(noisy: Segmenter, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"wants uint8 \(H, W, 3\)"):
        generate(noisy, image, settings=EVERYTHING)


def test_a_strip_has_masks_too(smooth: Blobs) -> None:
    assert generate(smooth, photo((2, 400)), settings=replace(EVERYTHING, points_per_side=2))
