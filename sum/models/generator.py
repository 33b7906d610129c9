"""Automatic mask generation: one image -> the masks SAM finds when asked at every point of a grid, filtered.

The records equal those of segment_anything's SamAutomaticMaskGenerator (crop_n_layers 0, no minimum region). On the way
three things differ: the decoder's arithmetic has another order (`point_decoder`: equal to rounding); outputs of a low
predicted IoU are dropped before they are drawn or upsampled; the others are upsampled only where they are (on a CPU:
`enlarge`), or in pieces of bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from segment_anything.utils.amg import build_point_grid, calculate_stability_score
from torch import Tensor
from torchvision.ops.boxes import batched_nms

from sum.core.geometry import logits_to_image, mask_to_box, points_to_model, resized_hw, to_frame
from sum.models.enlarge import Cut, Enlarger
from sum.models.point_decoder import PointDecoder
from sum.models.segmenter import Segmenter

CHUNK_PIXELS = 1 << 24  # upsampled logits held at once: 64 MB, whatever the image and points_per_batch
WINDOWED = frozenset({"cpu"})  # devices where one candidate after the other, each in its box, is fastest
HALF_LIMIT = 65504.0  # of float16
PAPER_SIDE = 1024  # px of the frame in which areas of params.yaml are given


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
    min_area: float = 100.0  # px at a 1024 frame; a smaller mask is dropped after NMS, as in the official loader


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedMask:
    """One mask of an image H x W; L is the model's low resolution."""

    rle: str  # counts of a COCO compressed RLE, original frame
    area: int  # px, original frame
    box: tuple[int, int, int, int]  # xyxy, both ends inside, original frame
    point: tuple[float, float]  # xy, original frame: where SAM was asked
    predicted_iou: float
    stability: float
    logits: NDArray[np.float16]  # [L, L], model frame


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """N outputs on their way to a label."""

    iou: Tensor  # [N]
    stability: Tensor  # [N]
    box: Tensor  # [N, 4] int64
    area: Tensor  # [N] int64
    point: NDArray[np.float64]  # [N, 2]
    logits: Tensor  # [N, L, L] float16, cpu
    rle: list[str]


@torch.inference_mode()
def generate(
    model: Segmenter, image: NDArray[np.uint8], *, settings: GeneratorSettings, embedding: Tensor | None = None
) -> list[GeneratedMask]:
    """All masks of one image `[H, W, 3]` uint8 RGB, best predicted IoU first. ValueError on another shape or type.

    embedding: what `embed` gives for the image, if that is at hand.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}, wants uint8 (H, W, 3)")
    height, width = image.shape[:2]
    decoder = PointDecoder(model, embed(model, image) if embedding is None else embedding)
    sieve = Sieve(model, hw=(height, width), settings=settings)
    grid = build_point_grid(settings.points_per_side) * (width, height)
    size = settings.points_per_batch
    batches = (grid[start : start + size] for start in range(0, len(grid), size))
    found = [candidates for points in batches for candidates in sieve.ask(decoder, points)]
    return _choose(found, hw=(height, width), settings=settings) if found else []


def area_at_paper_side(area: float, hw: tuple[int, int]) -> float:
    """Pixels that a mask of `area` px in an image of hw would have if the image's longest side were 1024."""
    return area * (PAPER_SIDE / max(hw)) ** 2


@torch.inference_mode()
def embed(model: Segmenter, image: NDArray[np.uint8]) -> Tensor:
    """Image embedding `[1, C, h, w]` of `[H, W, 3]`, resized as SamPredictor does."""
    height, width = resized_hw(image.shape[0], image.shape[1], model.side)
    small = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    planes = torch.from_numpy(small).permute(2, 0, 1).contiguous()  # as SamPredictor: another layout rounds differently
    frame = to_frame(planes, model.side)[None].to(model.task_prompt.device)
    return model.encode(frame, torch.tensor([[height, width]], device=frame.device))


class Sieve:
    """The filters of one image: which outputs of the decoder become candidates, and where they are in the image."""

    def __init__(self, model: Segmenter, *, hw: tuple[int, int], settings: GeneratorSettings) -> None:
        """hw: the image's original size."""
        self._model, self._hw, self._settings = model, hw, settings
        self._enlarger = Enlarger(hw=hw, side=model.side, low=model.low_side)
        self._largest = settings.max_area_share * hw[0] * hw[1]  # px

    def ask(self, decoder: PointDecoder, points: NDArray[np.float64]) -> Iterator[Candidates]:
        """Ask at `points` `[P, 2]`, original frame; yield the outputs that pass, in the order of the points."""
        xy = points_to_model(points, hw=self._hw, side=self._model.side)
        asked = torch.from_numpy(xy).float().to(self._model.task_prompt.device)
        windowed = asked.device.type in WINDOWED
        step = max(1, CHUNK_PIXELS // max(self._hw[0] * self._hw[1], self._model.side**2))
        floor = self._settings.pred_iou_thresh if self._settings.pred_iou_thresh > 0 else None
        for out in decoder.ask(asked, floor=floor, chunk=decoder.near if windowed else len(asked)):
            of_each = points[out.point.cpu().numpy()]
            if windowed:
                yield self.in_boxes(out.logits, out.iou, of_each)
                continue
            for start in range(0, len(of_each), step):
                part = slice(start, start + step)
                yield self.in_frames(out.logits[part], out.iou[part], of_each[part])

    def in_boxes(self, logits: Tensor, iou: Tensor, points: NDArray[np.float64]) -> Candidates:
        """The stable ones of `[N, L, L]` that are not the whole image, each looked at in its box: best on a CPU."""
        kept, cuts = list[int](), list[Cut]()
        threshold, offset = self._model.sam.mask_threshold, self._settings.stability_offset
        for number, plane in enumerate(logits):
            cut = self._enlarger.cut(plane, at=threshold, offset=offset)
            stable = self._settings.stability_thresh <= 0 or cut.stability >= self._settings.stability_thresh
            if stable and cut.above[1] < self._largest:
                kept.append(number)
                cuts.append(cut)
        return Candidates(
            iou=iou[kept],
            stability=torch.tensor([cut.stability for cut in cuts]),
            box=torch.tensor([cut.box for cut in cuts], dtype=torch.int64).reshape(-1, 4),
            area=torch.tensor([cut.above[1] for cut in cuts], dtype=torch.int64),
            point=points[kept],
            logits=logits[kept].clamp(-HALF_LIMIT, HALF_LIMIT).half(),
            rle=[cut.rle(self._hw) for cut in cuts],
        )

    def in_frames(self, logits: Tensor, iou: Tensor, points: NDArray[np.float64]) -> Candidates:
        """The same, all at the original size at once: best elsewhere."""
        resized = resized_hw(*self._hw, self._model.side)
        full = logits_to_image(logits[:, None], resized=resized, hw=self._hw, side=self._model.side)[:, 0]
        threshold = self._model.sam.mask_threshold
        stability = calculate_stability_score(full, threshold, self._settings.stability_offset)
        masks = full > threshold
        area = masks.flatten(1).sum(1)
        good = area < self._largest
        if self._settings.stability_thresh > 0:
            good &= stability >= self._settings.stability_thresh
        masks = masks[good]
        return Candidates(
            iou=iou[good],
            stability=stability[good],
            box=mask_to_box(masks),
            area=area[good],
            point=points[good.cpu().numpy()],
            logits=logits[good].clamp(-HALF_LIMIT, HALF_LIMIT).half().cpu(),
            rle=_encode(masks),
        )


def _encode(masks: Tensor) -> list[str]:
    """bool `[N, H, W]` -> counts of COCO compressed RLEs; pycocotools wants each plane in Fortran order."""
    planes = masks.permute(0, 2, 1).contiguous().cpu().numpy().view(np.uint8)
    return [str(code["counts"], "ascii") for code in coco.encode(planes.transpose(2, 1, 0))]


def _choose(found: list[Candidates], *, hw: tuple[int, int], settings: GeneratorSettings) -> list[GeneratedMask]:
    """Box NMS over all candidates, best predicted IoU first, then the smallest masks go."""
    iou, box = torch.cat([part.iou for part in found]), torch.cat([part.box for part in found])
    kept = batched_nms(box.float(), iou, torch.zeros(len(box), device=box.device), settings.box_nms_thresh).cpu()
    iou, box = iou.cpu(), box.cpu()
    area = torch.cat([part.area for part in found]).cpu()
    stability = torch.cat([part.stability for part in found]).cpu()
    point = np.concatenate([part.point for part in found])
    logits = torch.cat([part.logits for part in found]).numpy()
    rle = [code for part in found for code in part.rle]
    masks = []
    for n in kept.tolist():
        if area[n] > 0 and area_at_paper_side(int(area[n]), hw) >= settings.min_area:  # an empty mask is no label
            x0, y0, x1, y1 = box[n].tolist()
            masks.append(
                GeneratedMask(
                    rle=rle[n],
                    area=int(area[n]),
                    box=(x0, y0, x1, y1),
                    point=(float(point[n, 0]), float(point[n, 1])),
                    predicted_iou=float(iou[n]),
                    stability=float(stability[n]),
                    logits=logits[n].copy(),  # not a view that keeps every candidate alive
                )
            )
    return masks
