"""What the tests of the generator share: a decoder that sees drawn objects, and segment_anything's own records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator
from torch import Tensor

from sum.models.backbones import build_tiny
from sum.models.candidates import GeneratedMask
from sum.models.point_decoder import Outputs, PointDecoder
from sum.models.segmenter import Prediction, Prompts, Segmenter
from sum.models.sieve import GeneratorSettings

SIZES = [(48, 64), (75, 50), (64, 64), (90, 41)]
EVERYTHING = GeneratorSettings(
    points_per_side=5,
    points_per_batch=10,  # 25 points: the last batch is not full
    pred_iou_thresh=0.0,
    stability_thresh=0.0,
    max_area_share=2.0,
    box_nms_thresh=1.0,
    min_area=0.0,
)


def photo(hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, (hw[1], hw[0]), interpolation=cv2.INTER_CUBIC)


def blobs(xy: Tensor, *, side: int, low: int) -> tuple[Tensor, Tensor]:
    """For points `[N, 2]` in the model frame: logits `[N, 3, low, low]` of three smooth blobs, and ties of scores."""
    at = (torch.arange(low) + 0.5) * side / low
    radius = torch.tensor([0.12, 0.22, 0.6]) * side
    centre = (xy / (side / 4)).round() * (side / 4)  # neighbouring points find the same object
    far = (
        (at[None, :, None] - centre[:, 1, None, None]) ** 2 + (at[None, None, :] - centre[:, 0, None, None]) ** 2
    ).sqrt()
    steep = torch.tensor([1.0, 0.5, 0.2])
    logits = (radius[None, :, None, None] - far[:, None]) * steep[None, :, None, None]
    scores = ((xy.sum(1)[:, None] + torch.arange(3)) % 4) / 4 + 0.1
    return logits, scores


Draw = Callable[..., tuple[Tensor, Tensor]]


class Blobs(Segmenter):
    """A Segmenter whose decoder sees round objects, or what `draw` draws."""

    draw: Draw = staticmethod(blobs)

    def decode(
        self, embedding: Tensor, image_index: Tensor, prompts: Prompts, *, multimask: bool, task: Tensor | None = None
    ) -> Prediction:
        return Prediction(*self.draw(prompts.xy[:, 0], side=self.side, low=self.low_side))


class Plain(PointDecoder):
    """Points through Segmenter.decode, all three outputs at once: what PointDecoder must equal."""

    def __init__(self, model: Segmenter, embedding: Tensor) -> None:
        self.model, self.embedding, self._images = model, embedding, [embedding]

    def ask(
        self, xy: Tensor, *, floor: float | None, chunk: int, views: Sequence[int] | None = None
    ) -> Iterator[Outputs]:
        index = torch.tensor(views or [0] * len(xy))
        prompts = Prompts.from_points(xy[:, None], torch.ones(len(xy), 1, dtype=torch.int64))
        answer = self.model.decode(self.embedding, index, prompts, multimask=True)
        good = answer.iou > (-math.inf if floor is None else floor)
        yield Outputs(answer.logits[good], answer.iou[good], torch.arange(len(xy))[:, None].expand_as(good)[good])


def reference(model: Segmenter, image: np.ndarray, settings: GeneratorSettings) -> list[dict]:
    """What SamAutomaticMaskGenerator says under the same settings."""
    official = SamAutomaticMaskGenerator(
        model.sam,
        points_per_side=settings.points_per_side,
        points_per_batch=settings.points_per_batch,
        pred_iou_thresh=settings.pred_iou_thresh,
        stability_score_thresh=settings.stability_thresh,
        stability_score_offset=settings.stability_offset,
        box_nms_thresh=settings.box_nms_thresh,
        crop_n_layers=settings.crop_n_layers,
        crop_overlap_ratio=settings.crop_overlap_ratio,
        crop_n_points_downscale_factor=settings.crop_n_points_downscale_factor,
        crop_nms_thresh=settings.crop_nms_thresh,
        min_mask_region_area=settings.min_mask_region_area,
        output_mode="coco_rle",
    )
    if isinstance(model, Blobs):
        predictor = official.predictor

        def predict(points: Tensor, labels: Tensor, **_: object) -> tuple[Tensor, Tensor, None]:
            logits, scores = model.draw(points[:, 0].float(), side=model.side, low=model.low_side)
            return model.sam.postprocess_masks(logits, predictor.input_size, predictor.original_size), scores, None

        predictor.predict_torch = predict
    return official.generate(image)


def assert_same(own: list[GeneratedMask], official: list[dict], *, hw: tuple[int, int], stray: int = 0) -> None:
    """The same records in the same order; stray: pixels of a mask that may fall on the other side of 0 by rounding."""
    assert len(own) == len(official)
    for mask, record in zip(own, official, strict=True):
        assert [list(mask.point)] == record["point_coords"]
        assert mask.predicted_iou == pytest.approx(record["predicted_iou"], abs=1e-6)
        if stray and mask.rle != record["segmentation"]["counts"]:
            assert (pixels(mask.rle, hw) != coco.decode(record["segmentation"])).sum() <= stray
            continue
        x0, y0, x1, y1 = mask.box
        assert [x0, y0, x1 - x0, y1 - y0] == record["bbox"]
        assert mask.rle == record["segmentation"]["counts"]
        assert mask.area == record["area"]
        assert mask.stability == pytest.approx(record["stability_score"], abs=1e-6, nan_ok=True)


def pixels(rle: str, hw: tuple[int, int]) -> np.ndarray:
    return coco.decode({"size": list(hw), "counts": rle})


def build_blobs() -> Blobs:
    """A small one; only its encoder has weights that matter to nobody."""
    torch.manual_seed(0)
    return Blobs(build_tiny(side=64, channels=32).eval(), backbone="tiny")


def decoder_of(model: Segmenter, embedding: Tensor, **options: object) -> PointDecoder:
    """In the place of PointDecoder: what is drawn answers for itself."""
    return Plain(model, embedding) if isinstance(model, Blobs) else PointDecoder(model, embedding, **options)
