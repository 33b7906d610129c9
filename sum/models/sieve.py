"""What becomes of the decoder's outputs: which are kept as candidates, and where they are in the image.

An output is upsampled only where it is (on a CPU: `enlarge`), or in pieces of bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor

from sum.core.geometry import logits_to_image, mask_to_box, resized_hw
from sum.models.candidates import Candidates, encode, halved
from sum.models.crops import Crop
from sum.models.enlarge import Cut, Enlarger
from sum.models.segmenter import Segmenter

CHUNK_PIXELS = 1 << 24  # upsampled logits held at once: 64 MB, whatever the image and points_per_batch
WINDOWED = frozenset({"cpu"})  # devices where one candidate after the other, each in its box, is fastest

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
    images_per_batch: int = 1  # images, or crops of them, whose points share batches and whose encoder call is one
    precision: Precision = "fp32"  # of encoder and decoder; with bf16 other masks are found


class Sieve:
    """The filters of one crop: which outputs of the decoder become candidates, and where they are in the image."""

    def __init__(self, model: Segmenter, *, crop: Crop, settings: GeneratorSettings) -> None:
        """crop: of the image, or `Crop.whole`."""
        self._model, self._crop, self._settings = model, crop, settings
        self._enlarger = Enlarger(hw=crop.hw, side=model.side, low=model.low_side)
        self._largest = settings.max_area_share * crop.image_hw[0] * crop.image_hw[1]  # px

    @property
    def floor(self) -> float | None:
        """The predicted IoU above which outputs are worth drawing; None: all are."""
        return self._settings.pred_iou_thresh if self._settings.pred_iou_thresh > 0 else None

    def sift(self, logits: Tensor, iou: Tensor, points: NDArray[np.float64]) -> Iterator[Candidates]:
        """Of `[K, L, L]` logits, with their predicted IoU `[K]` and points `[K, 2]`, px of the crop: the good ones.

        Good are the stable ones that are not the whole image and that the crop does not cut off; in their order.
        """
        placed = points + self._crop.box[:2]  # original frame
        if logits.device.type in WINDOWED:
            yield self.in_boxes(logits, iou, placed)
            return
        height, width = self._crop.image_hw
        step = max(1, CHUNK_PIXELS // max(height * width, self._model.side**2))
        for start in range(0, len(placed), step):
            part = slice(start, start + step)
            yield self.in_frames(logits[part], iou[part], placed[part])

    def in_boxes(self, logits: Tensor, iou: Tensor, points: NDArray[np.float64]) -> Candidates:
        """The good ones of `[N, L, L]`, each looked at in its box: best on a CPU. points `[N, 2]`: original frame."""
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
