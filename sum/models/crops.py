"""Crop layers of automatic mask generation: where SAM looks closer, what of a crop is dropped, and its logits at home.

The crops are segment_anything's. A mask found in a crop has logits in the crop's model frame; everything later works in
the model frame of the whole image, so they are resampled into it (`at_home`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.amg import generate_crop_boxes
from torch import Tensor

from sum.core.geometry import points_to_model, resized_hw

NEAR_EDGE = 20  # px, of segment_anything: a mask so near to the crop's edge may go on beyond it
OUTSIDE = -10.0  # logits where a crop did not look: probability 0 in 8 bits


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of an image of image_hw; the whole image is layer 0."""

    box: tuple[int, int, int, int]  # x0, y0, x1, y1; ends outside
    image_hw: tuple[int, int]
    layer: int = 0

    @classmethod
    def whole(cls, hw: tuple[int, int]) -> Crop:
        """All of an image."""
        return cls((0, 0, hw[1], hw[0]), hw)

    @property
    def hw(self) -> tuple[int, int]:
        """(height, width) of the crop."""
        x0, y0, x1, y1 = self.box
        return y1 - y0, x1 - x0

    @property
    def is_whole(self) -> bool:
        """Whether it is the whole image."""
        return self.hw == self.image_hw

    def of(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Its part of the image `[H, W, 3]`."""
        x0, y0, x1, y1 = self.box
        return image[y0:y1, x0:x1]

    def cuts_off(self, box: Tensor) -> Tensor:
        """Which masks may go on beyond the crop: their box (`[N, 4]` xyxy, original frame) is near one of its edges.

        An edge near the image's own does not count. The crop's far edges lie one pixel outside, as in segment_anything.
        """
        crop = torch.tensor(self.box, device=box.device)
        image = torch.tensor((0, 0, self.image_hw[1], self.image_hw[0]), device=box.device)
        near, at_image = ((box - edges).abs() <= NEAR_EDGE for edges in (crop, image))
        return (near & ~at_image).any(1)


def crops_of(hw: tuple[int, int], *, layers: int, overlap: float) -> list[Crop]:
    """The whole image, then (2 ** layer) ** 2 crops a layer; overlap: of the first layer's, share of the short side.

    A crop without a pixel, as a small image has in a late layer, is left out: segment_anything fails there.
    """
    boxes, numbers = generate_crop_boxes(hw, layers, overlap)
    crops = [Crop((x0, y0, x1, y1), hw, layer) for (x0, y0, x1, y1), layer in zip(boxes, numbers, strict=True)]
    return [crop for crop in crops if min(crop.hw) > 0]


def at_home(logits: Tensor, crop: Crop, *, side: int) -> Tensor:
    """Logits `[N, L, L]` of the crop's model frame -> `[N, L, L]` float32 in that of the whole image; side: S.

    Each pixel is read bilinearly at its centre (averages would shrink small masks): exact where logits are linear.
    Beyond the crop stands the mask's lowest logit, but no more than OUTSIDE. The image's frame is coarser than the
    crop's: cut at 0, masks of `tiny` have 0.88 IoU with what they were (median), of 100 low-resolution px or more 0.89.
    """
    low = logits.shape[-1]
    rows, columns = (_weights(crop, axis, side=side, low=low).to(logits.device) for axis in (1, 0))
    values = logits.float()
    inside = rows @ values @ columns.T
    seen = (rows.sum(1) > 0)[:, None] & (columns.sum(1) > 0)[None, :]
    beyond = values.flatten(1).amin(1).clamp(max=OUTSIDE)
    return torch.where(seen, inside, beyond[:, None, None])


def _weights(crop: Crop, axis: int, *, side: int, low: int) -> Tensor:
    """`[L, L]`: how much low-resolution pixels of the crop count for those of the image; rows add up to 1, or 0 beyond.

    axis: 0 along x, 1 along y.
    """
    step = side / low  # px of the model frame
    centres = (torch.arange(low, dtype=torch.float64) + 0.5) * step
    scales = [
        float(points_to_model(np.ones(2), hw=hw, side=side)[axis]) for hw in (crop.image_hw, crop.hw)
    ]  # model px of one original px: of the image, of the crop
    at = (centres / scales[0] - crop.box[axis]) * scales[1]  # in the crop's model frame
    there = (at >= 0) & (at < crop.hw[1 - axis] * scales[1])
    real = centres < resized_hw(*crop.hw, side)[1 - axis]  # the rest is padding
    real[0] = True  # of a crop thinner than a low-resolution pixel
    last = int(real.sum()) - 1
    at = at.clamp(float(centres[0]), float(centres[last]))  # as interpolation does in the outermost half pixel
    weights = (1 - (at[:, None] - centres[None, :]).abs() / step).clamp(min=0) * real
    weights = weights / weights.sum(1, keepdim=True)
    return (weights * there[:, None]).float()
