"""Automatic mask generation: the masks SAM finds in an image when asked at every point of a grid, filtered.

The records equal those of segment_anything's SamAutomaticMaskGenerator, in its order. On the way three things differ:
the decoder's arithmetic has another order (`point_decoder`: equal to rounding); outputs of a low predicted IoU are
dropped before they are drawn or upsampled; the others are upsampled where they are only (`sieve`). Two filters are
this project's own: max_area_share and min_area. Points of several images, and of the crops of one, share batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything.utils.amg import build_all_layer_point_grids
from torch import Tensor

from sum.core.geometry import points_to_model, resized_hw, to_frame
from sum.models.candidates import Candidates, GeneratedMask, halved
from sum.models.crops import Crop, at_home, crops_of
from sum.models.halving import Halving
from sum.models.point_decoder import OneOutputDecoder, PointDecoder, runs_of
from sum.models.regions import tidy
from sum.models.segmenter import Segmenter
from sum.models.sieve import WINDOWED, GeneratorSettings, Precision, Sieve

PAPER_SIDE = 1024  # px of the frame in which areas of params.yaml are given


@dataclass(frozen=True, slots=True)
class Batches:
    """How many views (images, or crops of them) and how many prompts fit a device, remembered over images."""

    views: Halving
    prompts: Halving

    @classmethod
    def of(cls, settings: GeneratorSettings) -> Batches:
        """As large as the settings ask for."""
        return cls(Halving(settings.images_per_batch, "images"), Halving(settings.points_per_batch))


@dataclass(frozen=True, slots=True)
class _View:
    """A crop of image `number`, the points to ask at `[P, 2]`, px of the crop, and what becomes of the answers."""

    number: int
    crop: Crop
    points: NDArray[np.float64]
    sieve: Sieve


def generate(
    model: Segmenter,
    image: NDArray[np.uint8],
    *,
    settings: GeneratorSettings,
    embedding: Tensor | None = None,
    batches: Batches | None = None,
) -> list[GeneratedMask]:
    """All masks of one image `[H, W, 3]` uint8 RGB, as `generate_all`; embedding: `[1, C, h, w]`."""
    return generate_all(model, [image], settings=settings, embeddings=embedding, batches=batches)[0]


@torch.inference_mode()
def generate_all(
    model: Segmenter,
    images: Sequence[NDArray[np.uint8]],
    *,
    settings: GeneratorSettings,
    embeddings: Tensor | None = None,
    batches: Batches | None = None,
) -> list[list[GeneratedMask]]:
    """All masks of each image `[H, W, 3]` uint8 RGB.

    Best predicted IoU first; with crop layers those of smaller crops come first, with a minimum region those that it
    did not change. embeddings `[B, C, h, w]`: what `embed` gives for the images, if that is at hand; batches: how much
    fits, if that shall be remembered over calls. Raises ValueError on another shape or type, torch.OutOfMemoryError
    when an image itself, or a single prompt, does not fit.
    """
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image is {image.dtype} {image.shape}, wants uint8 (H, W, 3)")
    batches = batches or Batches.of(settings)
    views = [view for number, image in enumerate(images) for view in _views(model, number, image, settings=settings)]
    found = [list[tuple[Crop, Candidates]]() for _ in images]
    kind = OneOutputDecoder if model.single_output else PointDecoder

    def ask(part: slice) -> list[list[Candidates]]:
        group = views[part]
        encoded = _encode(model, group, images, embeddings, settings=settings, batch=batches.views)
        decoder = kind(model, encoded, autocast=_autocast(encoded.device, settings.precision))
        return _ask(model, decoder, group, batch=batches.prompts)

    for view, parts in zip(views, batches.views.over(len(views), ask), strict=True):
        if sum(map(len, parts)):
            of_view = Candidates.join(parts)
            kept = of_view.pick(of_view.distinct(of_view.iou, threshold=settings.box_nms_thresh))
            found[view.number].append((view.crop, kept))
    return [_finish(model, parts, settings=settings) for parts in found]


def _views(model: Segmenter, number: int, image: NDArray[np.uint8], *, settings: GeneratorSettings) -> Iterator[_View]:
    """Where SAM looks at an image: all of it, and its crops."""
    hw = (image.shape[0], image.shape[1])
    sides = settings.points_per_side, settings.crop_n_layers, settings.crop_n_points_downscale_factor
    grids = build_all_layer_point_grids(*sides)
    for crop in crops_of(hw, layers=settings.crop_n_layers, overlap=settings.crop_overlap_ratio):
        points = grids[crop.layer] * (crop.hw[1], crop.hw[0])
        yield _View(number, crop, points, Sieve(model, crop=crop, settings=settings))


def _encode(
    model: Segmenter,
    views: Sequence[_View],
    images: Sequence[NDArray[np.uint8]],
    embeddings: Tensor | None,
    *,
    settings: GeneratorSettings,
    batch: Halving,
) -> Tensor:
    """Embeddings `[V, C, h, w]`; those at hand are not computed again."""

    def at_hand(view: _View) -> Tensor | None:
        return embeddings[view.number : view.number + 1] if embeddings is not None and view.crop.is_whole else None

    missing = [view for view in views if at_hand(view) is None]
    frames = [to_model(view.crop.of(images[view.number]), side=model.side) for view in missing]
    sizes = [view.crop.hw for view in missing]
    made = iter(embed_all(model, frames, hw=sizes, precision=settings.precision, batch=batch))
    return torch.cat([next(made) if (known := at_hand(view)) is None else known for view in views])


def _ask(
    model: Segmenter, decoder: PointDecoder | OneOutputDecoder, views: Sequence[_View], *, batch: Halving
) -> list[list[Candidates]]:
    """What passes of the answers in each view, in the order of its points."""
    device = model.task_prompt.device
    where = [number for number, view in enumerate(views) for _ in view.points]
    points = np.concatenate([view.points for view in views])
    placed = [points_to_model(view.points, hw=view.crop.hw, side=model.side) for view in views]
    xy = torch.from_numpy(np.concatenate(placed)).float().to(device)
    floor = views[0].sieve.floor  # the same for all

    def ask(part: slice) -> list[tuple[int, Candidates]]:
        answers = list[tuple[int, Candidates]]()
        chunk = decoder.near if device.type in WINDOWED else part.stop - part.start
        for out in decoder.ask(xy[part], floor=floor, chunk=chunk, views=where[part]):
            of_each = (out.point.cpu().numpy() + part.start).tolist()
            for number, start, end in runs_of([where[point] for point in of_each]):
                run = slice(start, end)
                sifted = views[number].sieve.sift(out.logits[run], out.iou[run], points[of_each[run]])
                answers += [(number, candidates) for candidates in sifted]
        return answers

    found = [list[Candidates]() for _ in views]
    for number, candidates in batch.over(len(points), ask):
        found[number].append(candidates)
    return found


def _finish(
    model: Segmenter, found: Sequence[tuple[Crop, Candidates]], *, settings: GeneratorSettings
) -> list[GeneratedMask]:
    """The masks of one image from what each of its views found."""
    if not found:
        return []
    hw = found[0][0].image_hw
    parts = [
        kept if crop.is_whole else replace(kept, logits=halved(at_home(kept.logits, crop, side=model.side)))
        for crop, kept in found
    ]
    masks = Candidates.join(parts)
    if len(crops_of(hw, layers=settings.crop_n_layers, overlap=settings.crop_overlap_ratio)) > 1:
        areas = [crop.hw[0] * crop.hw[1] for crop, kept in found for _ in range(len(kept))]
        masks = masks.pick(masks.distinct(1 / torch.tensor(areas), threshold=settings.crop_nms_thresh))
    if settings.min_mask_region_area > 0:
        overlap = max(settings.box_nms_thresh, settings.crop_nms_thresh)
        masks = tidy(masks, hw=hw, least=settings.min_mask_region_area, box_nms_thresh=overlap)
    large = [n for n, a in enumerate(masks.area.tolist()) if a and area_at_paper_side(a, hw) >= settings.min_area]
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
def embed_all(
    model: Segmenter,
    frames: Sequence[Tensor],
    *,
    hw: Sequence[tuple[int, int]],
    precision: Precision,
    batch: Halving,
) -> list[Tensor]:
    """Embeddings, each `[1, C, h, w]` float32, of images of sizes hw that are `frames` in the model frame (`to_model`).

    batch: images at once; together they differ from one by one by rounding.
    """
    device = model.task_prompt.device

    def encode(part: slice) -> list[Tensor]:
        inner = torch.tensor([resized_hw(*size, model.side) for size in hw[part]], device=device)
        with _autocast(device, precision)():
            return list(model.encode_fast(torch.stack(list(frames[part])).to(device), inner).float()[:, None])

    return batch.over(len(frames), encode)


def _autocast(device: torch.device, precision: Precision) -> Callable[[], torch.autocast]:
    return partial(torch.autocast, device.type, torch.bfloat16, enabled=precision == "bf16")
