"""Automatic mask generation: one image -> the masks SAM finds when asked at every point of a grid, filtered.

The records equal those of segment_anything's SamAutomaticMaskGenerator, in its order. On the way three things differ:
the decoder's arithmetic has another order (`point_decoder`: equal to rounding); outputs of a low predicted IoU are
dropped before they are drawn or upsampled; the others are upsampled only where they are (on a CPU: `enlarge`), or in
pieces of bounded memory. Two filters are this project's own: max_area_share and min_area.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from segment_anything.utils.amg import build_all_layer_point_grids, calculate_stability_score
from torch import Tensor

from sum.core.geometry import logits_to_image, mask_to_box, points_to_model, resized_hw, to_frame
from sum.models.candidates import Candidates, GeneratedMask, encode, halved
from sum.models.crops import Crop, at_home, crops_of
from sum.models.enlarge import Cut, Enlarger
from sum.models.halving import PromptBatch
from sum.models.point_decoder import PointDecoder
from sum.models.regions import tidy
from sum.models.segmenter import Segmenter

CHUNK_PIXELS = 1 << 24  # upsampled logits held at once: 64 MB, whatever the image and points_per_batch
WINDOWED = frozenset({"cpu"})  # devices where one candidate after the other, each in its box, is fastest
PAPER_SIDE = 1024  # px of the frame in which areas of params.yaml are given


Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorSettings:
    """What is asked and what is kept; the defaults are the paper's (Appendix B.1)."""

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_thresh: float = 0.95
    stability_offset: float = 1.0  # logits
    max_area_share: float = 0.95  # of the image; a mask as large or larger is dropped before NMS
    box_nms_thresh: float = 0.7
    min_area: float = 100.0  # px at a 1024 frame; a smaller mask is dropped at the end, as in the official loader
    crop_n_layers: int = 0  # layer i looks at (2 ** i) ** 2 crops of the image once more
    crop_overlap_ratio: float = 512 / 1500  # of the image's short side, in the first layer
    crop_n_points_downscale_factor: int = 1  # layer i has points_per_side / factor ** i points a side
    crop_nms_thresh: float = 0.7  # between crops; masks of smaller crops win
    min_mask_region_area: float = 0.0  # px of the original; smaller holes and islands are removed; 0: none
    precision: Precision = "fp32"  # of encoder and decoder; with bf16 other masks are found


@torch.inference_mode()
def generate(
    model: Segmenter,
    image: NDArray[np.uint8],
    *,
    settings: GeneratorSettings,
    embedding: Tensor | None = None,
    batch: PromptBatch | None = None,
) -> list[GeneratedMask]:
    """All masks of one image `[H, W, 3]` uint8 RGB.

    Best predicted IoU first; with crop layers those of smaller crops come first, with a minimum region those that it
    did not change. embedding: what `embed` gives for the image, if that is at hand; batch: how many prompts fit, if
    that shall be remembered over images. Raises ValueError on another shape or type, torch.OutOfMemoryError when the
    image itself, or a single prompt, does not fit.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}, wants uint8 (H, W, 3)")
    hw = (image.shape[0], image.shape[1])
    batch = batch or PromptBatch(settings.points_per_batch)
    crops = crops_of(hw, layers=settings.crop_n_layers, overlap=settings.crop_overlap_ratio)
    found, areas = list[Candidates](), list[int]()
    for crop in crops:
        own = embedding if crop.is_whole else None
        if own is None:
            frame = to_model(crop.of(image), side=model.side)
            own = embed(model, frame, hw=crop.hw, precision=settings.precision)
        for part in _of_crop(model, own, crop, settings=settings, batch=batch):
            found.append(part)
            areas += [crop.hw[0] * crop.hw[1]] * len(part)
    if not found:
        return []
    masks = Candidates.join(found)
    if len(crops) > 1:
        masks = masks.pick(masks.distinct(1 / torch.tensor(areas), threshold=settings.crop_nms_thresh))
    if settings.min_mask_region_area > 0:
        overlap = max(settings.box_nms_thresh, settings.crop_nms_thresh)
        masks = tidy(masks, hw=hw, least=settings.min_mask_region_area, box_nms_thresh=overlap)
    areas = masks.area.tolist()
    large = [n for n, area in enumerate(areas) if area and area_at_paper_side(area, hw) >= settings.min_area]
    return masks.pick(torch.tensor(large, dtype=torch.int64)).records()  # an empty mask is no label


def area_at_paper_side(area: float, hw: tuple[int, int]) -> float:
    """Pixels that a mask of `area` px in an image of hw would have if the image's longest side were 1024."""
    return area * (PAPER_SIDE / max(hw)) ** 2


def to_model(image: NDArray[np.uint8], *, side: int) -> Tensor:
    """`[H, W, 3]` uint8 -> `[3, S, S]` uint8 in the model frame, resized as SamPredictor does, padded with zeros."""
    height, width = resized_hw(image.shape[0], image.shape[1], side)
    small = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    planes = torch.from_numpy(small).permute(2, 0, 1).contiguous()  # as SamPredictor: another layout rounds differently
    return to_frame(planes, side)


@torch.inference_mode()
def embed(model: Segmenter, frame: Tensor, *, hw: tuple[int, int], precision: Precision) -> Tensor:
    """Image embedding `[1, C, h, w]` float32 of an image of size hw that is `frame` in the model frame (`to_model`)."""
    device = model.task_prompt.device
    inner = torch.tensor([resized_hw(*hw, model.side)], device=device)
    with _autocast(device, precision)():
        return model.encode(frame[None].to(device), inner).float()


def _autocast(device: torch.device, precision: Precision) -> Callable[[], torch.autocast]:
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16")


def _of_crop(
    model: Segmenter, embedding: Tensor, crop: Crop, *, settings: GeneratorSettings, batch: PromptBatch
) -> Iterator[Candidates]:
    """What is found in one crop, if anything, after NMS within it; embedding: of the crop."""
    decoder = PointDecoder(model, embedding, autocast=_autocast(embedding.device, settings.precision))
    sieve = Sieve(model, crop=crop, settings=settings)
    sides = settings.points_per_side, settings.crop_n_layers, settings.crop_n_points_downscale_factor
    grid = build_all_layer_point_grids(*sides)[crop.layer] * (crop.hw[1], crop.hw[0])
    parts = batch.over(grid, lambda points: list(sieve.ask(decoder, points)))
    if sum(map(len, parts)):
        found = Candidates.join(parts)
        kept = found.pick(found.distinct(found.iou, threshold=settings.box_nms_thresh))
        yield kept if crop.is_whole else replace(kept, logits=halved(at_home(kept.logits, crop, side=model.side)))


class Sieve:
    """The filters of one crop: which outputs of the decoder become candidates, and where they are in the image."""

    def __init__(self, model: Segmenter, *, crop: Crop, settings: GeneratorSettings) -> None:
        """crop: of the image, or `Crop.whole`."""
        self._model, self._crop, self._settings = model, crop, settings
        self._enlarger = Enlarger(hw=crop.hw, side=model.side, low=model.low_side)
        self._largest = settings.max_area_share * crop.image_hw[0] * crop.image_hw[1]  # px

    def ask(self, decoder: PointDecoder, points: NDArray[np.float64]) -> Iterator[Candidates]:
        """Ask at `points` `[P, 2]`, px of the crop; yield the outputs that pass, in the order of the points."""
        xy = points_to_model(points, hw=self._crop.hw, side=self._model.side)
        asked = torch.from_numpy(xy).float().to(self._model.task_prompt.device)
        windowed = asked.device.type in WINDOWED
        height, width = self._crop.image_hw
        step = max(1, CHUNK_PIXELS // max(height * width, self._model.side**2))
        floor = self._settings.pred_iou_thresh if self._settings.pred_iou_thresh > 0 else None
        placed = points + self._crop.box[:2]  # original frame
        for out in decoder.ask(asked, floor=floor, chunk=decoder.near if windowed else len(asked)):
            of_each = placed[out.point.cpu().numpy()]
            if windowed:
                yield self.in_boxes(out.logits, out.iou, of_each)
                continue
            for start in range(0, len(of_each), step):
                part = slice(start, start + step)
                yield self.in_frames(out.logits[part], out.iou[part], of_each[part])

    def in_boxes(self, logits: Tensor, iou: Tensor, points: NDArray[np.float64]) -> Candidates:
        """The good ones of `[N, L, L]`, each looked at in its box: best on a CPU.

        Good are the stable ones that are not the whole image and that the crop does not cut off. points `[N, 2]`,
        original frame, go with them.
        """
        kept, cuts = list[int](), list[Cut]()
        threshold, offset = self._model.sam.mask_threshold, self._settings.stability_offset
        x0, y0 = self._crop.box[:2]
        for number, plane in enumerate(logits):
            cut = self._enlarger.cut(plane, at=threshold, offset=offset)
            stable = self._settings.stability_thresh <= 0 or cut.stability >= self._settings.stability_thresh
            if stable and cut.above[1] < self._largest:
                kept.append(number)
                cuts.append(replace(cut, y=cut.y + y0, x=cut.x + x0))
        boxes = torch.tensor([cut.box for cut in cuts], dtype=torch.int64).reshape(-1, 4)
        inside = (~self._crop.cuts_off(boxes)).nonzero()[:, 0].tolist()
        kept, cuts = [kept[n] for n in inside], [cuts[n] for n in inside]
        return Candidates(
            iou=iou[kept],
            stability=torch.tensor([cut.stability for cut in cuts]),
            box=boxes[inside],
            area=torch.tensor([cut.above[1] for cut in cuts], dtype=torch.int64),
            point=points[kept],
            logits=halved(logits[kept]),
            rle=[cut.rle(self._crop.image_hw) for cut in cuts],
        )

    def in_frames(self, logits: Tensor, iou: Tensor, points: NDArray[np.float64]) -> Candidates:
        """The same, all at the original size at once: best elsewhere."""
        resized = resized_hw(*self._crop.hw, self._model.side)
        full = logits_to_image(logits[:, None], resized=resized, hw=self._crop.hw, side=self._model.side)[:, 0]
        threshold = self._model.sam.mask_threshold
        stability = calculate_stability_score(full, threshold, self._settings.stability_offset)
        masks = full > threshold
        area = masks.flatten(1).sum(1)
        good = area < self._largest
        if self._settings.stability_thresh > 0:
            good &= stability >= self._settings.stability_thresh
        x0, y0, x1, y1 = self._crop.box
        height, width = self._crop.image_hw
        box = mask_to_box(masks) + torch.tensor((x0, y0, x0, y0), device=masks.device) * (area > 0)[:, None]
        good &= ~self._crop.cuts_off(box)
        return Candidates(
            iou=iou[good],
            stability=stability[good],
            box=box[good],
            area=area[good],
            point=points[good.cpu().numpy()],
            logits=halved(logits[good]).cpu(),
            rle=encode(F.pad(masks[good], (x0, width - x1, y0, height - y1))),
        )
