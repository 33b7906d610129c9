"""Several images at once: encoder calls and batches are shared, the masks are those of one image after the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sum.config import load_config
from sum.data.demo_files import set_scene
from sum.models import generator
from sum.models.checkpoint import load_segmenter
from sum.models.generator import Batches, generate, generate_all
from sum.models.halving import Halving
from sum.models.point_decoder import PointDecoder
from sum.models.segmenter import Segmenter
from sum.models.sieve import GeneratorSettings
from tests.models.generating import EVERYTHING, Blobs, build_blobs, decoder_of, photo

PROJECT = Path(__file__).parents[2]
LABELLING = GeneratorSettings(points_per_side=4, points_per_batch=40, pred_iou_thresh=0.3, stability_thresh=0.3)
SIZES = [(48, 64), (64, 64), (70, 40), (20, 60)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Blobs:
    monkeypatch.setattr(generator, "PointDecoder", decoder_of)
    return build_blobs()


@pytest.mark.parametrize("together", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (4, 9))])
@pytest.mark.parametrize("options", [{}, {"crop_n_layers": 1}, {"min_mask_region_area": 30, "min_area": 400}])
def test_drawn_masks_are_the_same_to_the_last_bit(drawn: Blobs, together: int, options: dict[str, int]) -> None:
    settings = replace(EVERYTHING, points_per_batch=33, **options)
    images = [photo(hw) for hw in SIZES]
    found = generate_all(drawn, images, settings=replace(settings, images_per_batch=together))
    for image, masks in zip(images, found, strict=True):
        want = generate(drawn, image, settings=settings)
        assert [(m.rle, m.point, m.predicted_iou, m.stability) for m in masks] == [
            (m.rle, m.point, m.predicted_iou, m.stability) for m in want
        ]
        assert all(np.array_equal(a.logits, b.logits) for a, b in zip(masks, want, strict=True))
    assert sum(map(len, found)) > 20


def test_trained_weights_find_the_same_masks_with_fewer_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_segmenter(PROJECT / "sum/models/weights/tiny.safetensors", backbone="tiny")
    seeds = load_config(root=PROJECT).demo.seeds
    images = [set_scene("unlabelled", n, seeds=seeds, side=128).image for n in range(5)]
    encoded, asked = list[int](), list[tuple[int, int]]()
    encode, ask = Segmenter.encode_fast, PointDecoder.ask

    def encoding(self: Segmenter, frames: Tensor, hw: Tensor) -> Tensor:
        encoded.append(len(frames))
        return encode(self, frames, hw)

    def asking(self: PointDecoder, xy: Tensor, *, views: Sequence[int], **options: object) -> object:
        asked.append((len(xy), len(set(views))))
        return ask(self, xy, views=views, **options)  # type: ignore[arg-type]

    want = [generate(model, image, settings=LABELLING) for image in images]
    monkeypatch.setattr(Segmenter, "encode_fast", encoding)
    monkeypatch.setattr(PointDecoder, "ask", asking)
    found = generate_all(model, images, settings=replace(LABELLING, images_per_batch=3))
    assert encoded == [3, 2]
    assert asked == [(40, 3), (8, 1), (32, 2)]  # 16 points an image
    assert [[m.rle for m in masks] for masks in found] == [[m.rle for m in masks] for masks in want]
    assert sum(map(len, found)) >= 10
    pairs = [(a, b) for ours, theirs in zip(found, want, strict=True) for a, b in zip(ours, theirs, strict=True)]
    assert max(abs(a.predicted_iou - b.predicted_iou) for a, b in pairs) < 1e-5


@pytest.mark.slow
def test_trained_weights_on_other_sizes_and_crops() -> None:
    """The decoder itself, photos of other shapes, one of them black, crops and batches that end within a view."""
    model = load_segmenter(PROJECT / "sum/models/weights/tiny.safetensors", backbone="tiny")
    seeds = load_config(root=PROJECT).demo.seeds
    scenes = [set_scene("unlabelled", n, seeds=seeds, side=128).image for n in range(3)]
    images = [scenes[0], np.zeros((40, 90, 3), np.uint8), scenes[1][:, :70].copy(), scenes[2][20:60].copy()]
    settings = replace(LABELLING, crop_n_layers=1, points_per_batch=7, min_area=0.0)
    found = generate_all(model, images, settings=replace(settings, images_per_batch=6))
    want = [generate(model, image, settings=settings) for image in images]
    assert [[m.rle for m in masks] for masks in found] == [[m.rle for m in masks] for masks in want]
    assert min(len(found[n]) for n in (0, 2)) >= 1


class NarrowDecoder(PointDecoder):
    """Memory for one view."""

    def __init__(self, model: Segmenter, embedding: Tensor, **options: object) -> None:
        if len(embedding) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        super().__init__(model, embedding, **options)  # type: ignore[arg-type]


def test_views_that_do_not_fit_the_decoder_together_go_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_segmenter(PROJECT / "sum/models/weights/tiny.safetensors", backbone="tiny")
    seeds = load_config(root=PROJECT).demo.seeds
    images = [set_scene("unlabelled", n, seeds=seeds, side=128).image for n in range(3)]
    want = [generate(model, image, settings=LABELLING) for image in images]
    monkeypatch.setattr(generator, "PointDecoder", NarrowDecoder)
    with caplog.at_level(logging.WARNING):
        found = generate_all(model, images, settings=replace(LABELLING, images_per_batch=3))
    assert "Out of memory with 3 images at once: going on with 1." in caplog.text
    assert [[m.rle for m in masks] for masks in found] == [[m.rle for m in masks] for masks in want]


class NarrowEncoder(nn.Module):
    """Memory for two images."""

    img_size = 64

    def forward(self, frames: Tensor) -> Tensor:
        if len(frames) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return torch.zeros(len(frames), 32, 4, 4)


def test_images_that_do_not_fit_together_are_encoded_in_halves(
    drawn: Blobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(EVERYTHING, images_per_batch=4)
    images = [photo(hw) for hw in SIZES]
    want = generate_all(drawn, images, settings=settings)
    monkeypatch.setattr(drawn.sam, "image_encoder", NarrowEncoder())
    batches = Batches.of(settings)
    with caplog.at_level(logging.WARNING):
        found = generate_all(drawn, images, settings=settings, batches=batches)
    assert [record.getMessage() for record in caplog.records] == [
        "Out of memory with 4 images at once: going on with 2."
    ]
    assert batches.views.size == 2
    assert [[m.rle for m in masks] for masks in found] == [[m.rle for m in masks] for masks in want]


def test_a_machine_without_memory_halves_too() -> None:
    """What torch's allocator really says, here of more than any machine has."""

    def ask(part: slice) -> list[int]:
        if part.stop - part.start > 1:
            torch.empty(1 << 50)
        return list(range(part.start, part.stop))

    batch = Halving(8)
    assert batch.over(5, ask) == [0, 1, 2, 3, 4]
    assert batch.size == 1


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def ask(part: slice) -> list[int]:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Halving(8).over(5, ask)
