"""Where things lie: the original frame, the model frame (longest side = S, padded below and right) and back.

The sizes and scales are segment-anything's to the last digit, so that its weights see what they were trained on.
Points are `(x, y)` pixel indices, boxes `(x0, y0, x1, y1)` with both ends inside, sizes `(height, width)`.
"""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Points = TypeVar("Points", Tensor, NDArray[np.floating])


def resized_hw(height: int, width: int, side: int) -> tuple[int, int]:
    """Size with the longest side equal to `side`, as segment_anything's ResizeLongestSide.get_preprocess_shape.

    Unlike it, never 0 pixels: a 1 x 5000 strip becomes 1 x 1024.
    """
    scale = side * 1.0 / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def points_to_model(xy: Points, *, hw: tuple[int, int], side: int) -> Points:
    """Original frame -> model frame. xy: `[..., 2]`, tensor or array; hw: the original size. Floats out."""
    scale_x, scale_y = _scale(hw, side)
    return xy * _pair(xy, scale_x, scale_y)


def points_to_image(xy: Points, *, hw: tuple[int, int], side: int) -> Points:
    """Model frame -> original frame, the inverse of `points_to_model`. xy: `[..., 2]`; hw: the original size."""
    scale_x, scale_y = _scale(hw, side)
    return xy / _pair(xy, scale_x, scale_y)


def boxes_to_model(xyxy: Points, *, hw: tuple[int, int], side: int) -> Points:
    """Original frame -> model frame. xyxy: `[..., 4]`, tensor or array; hw: the original size."""
    corners = xyxy.reshape(*xyxy.shape[:-1], 2, 2)
    return points_to_model(corners, hw=hw, side=side).reshape(xyxy.shape)


def boxes_to_image(xyxy: Points, *, hw: tuple[int, int], side: int) -> Points:
    """Model frame -> original frame, the inverse of `boxes_to_model`. xyxy: `[..., 4]`; hw: the original size."""
    corners = xyxy.reshape(*xyxy.shape[:-1], 2, 2)
    return points_to_image(corners, hw=hw, side=side).reshape(xyxy.shape)


def resize_mask(mask: Tensor, *, hw_out: tuple[int, int]) -> Tensor:
    """Binary masks to another size: a pixel is set when at least half of its area was.

    mask: `[N, 1, H, W]` or `[N, H, W]`, bool or 0/1; returns the same kind and type at `hw_out`. Shrinking averages by
    exact area, so a line half a new pixel wide can stay (antialiased bilinear wants a wider one); else bilinear.
    """
    if mask.shape[-2:] == hw_out:
        return mask
    height, width = hw_out
    planes = (mask.reshape(len(mask), *mask.shape[-2:]) > 0.5).to("cpu", torch.uint8).numpy() * 255
    shrink = height <= mask.shape[-2] and width <= mask.shape[-1]
    how = cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
    out = np.empty((len(planes), height, width), dtype=np.uint8)
    for plane, place in zip(planes, out, strict=True):
        cv2.resize(plane, (width, height), dst=place, interpolation=how)
    half = torch.from_numpy(out) > 127  # 127.5 is rounded to 128
    return half.reshape(*mask.shape[:-2], height, width).to(mask)


def to_frame(image_or_mask: Tensor, side: int) -> Tensor:
    """Pad `[..., h, w]` with zeros below and right to `[..., side, side]`."""
    height, width = image_or_mask.shape[-2:]
    return F.pad(image_or_mask, (0, side - width, 0, side - height))


def valid_frame(hw: Tensor, side: int) -> Tensor:
    """Which pixels of the padded model frame are image. hw: `[B, 2]` resized (height, width) -> bool `[B, 1, S, S]`."""
    at = torch.arange(side, device=hw.device)
    rows, columns = at < hw[:, :1], at < hw[:, 1:]
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def mask_to_box(mask: Tensor) -> Tensor:
    """Tight box of each mask, both ends inside; an empty mask has the box 0, 0, 0, 0.

    mask: bool `[N, H, W]` -> int64 `[N, 4]` xyxy, as segment_anything.utils.amg.batched_mask_to_box.
    """
    rows, columns = mask.any(dim=2), mask.any(dim=1)
    (top, bottom), (left, right) = _ends(rows), _ends(columns)
    return torch.stack((left, top, right, bottom), dim=1) * rows.any(dim=1, keepdim=True)


def logits_to_image(logits: Tensor, *, resized: tuple[int, int], hw: tuple[int, int], side: int) -> Tensor:
    """Low-resolution logits to the original frame, as Sam.postprocess_masks: up to S, crop the padding off, resize.

    logits: `[N, 1, L, L]` over the padded frame of `side`; resized: the image's size in it; hw: the original size.
    Returns `[N, 1, H, W]`, still logits.
    """
    height, width = resized
    frame = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
    return F.interpolate(frame[..., :height, :width], hw, mode="bilinear", align_corners=False)


def _scale(hw: tuple[int, int], side: int) -> tuple[float, float]:
    """Factors (x, y) from the original to the model frame; they differ a little, each size is rounded."""
    height, width = resized_hw(*hw, side)
    return width / hw[1], height / hw[0]


def _pair(like: Points, x: float, y: float) -> Points:
    if isinstance(like, Tensor):
        kind = torch.promote_types(like.dtype, torch.float32)
        return torch.tensor((x, y), dtype=kind, device=like.device)
    return np.array((x, y))


def _ends(hits: Tensor) -> tuple[Tensor, Tensor]:
    """First and last True of each row. bool `[N, K]` -> two int64 `[N]`."""
    return hits.int().argmax(dim=1), hits.shape[1] - 1 - hits.flip(1).int().argmax(dim=1)
