"""Training images by number: human masks of the manifest, pseudo-labels with their certainty; both become a Sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sum.core.clicks import farthest_point
from sum.core.geometry import points_to_model
from sum.core.uncertainty import UNCERTAINTY, logits_of, map_codes
from sum.data.batches import Sample, image_part, masks_to_frame
from sum.data.frames import load_frame, to_planes
from sum.data.labels import Codes, LabelStore
from sum.data.records import ImageRecord, Manifest, decode_mask
from sum.data.targets import rles_to_frame


class HumanImages:
    """Images with human masks: certainty 1 on every pixel of the image."""

    def __init__(self, manifest: Manifest, *, side: int, loss_side: int, tasks: dict[str, int]) -> None:
        """manifest: the images to train on, each with at least one mask; tasks: task name -> row of the task prompt."""
        found = manifest.masks_of()
        self._images = [image for image in manifest.images if found[image.image_id]]
        self._masks = found
        self._side, self._loss_side, self._tasks = side, loss_side, tasks

    def __len__(self) -> int:
        return len(self._images)

    def sample(self, index: int, *, masks: int, rng: np.random.Generator) -> Sample:
        """Image `index` with at most `masks` of its masks."""
        image = self._images[index]
        rows = self._masks[image.image_id]
        chosen = [rows[k] for k in rng.permutation(len(rows))[:masks]]
        frame, inner = load_frame(image, side=self._side)
        rles = [row.rle for row in chosen]
        target = rles_to_frame(rles, hw=(image.height, image.width), loss_side=self._loss_side)
        sample = target_sample(frame, target, hw=inner, task=self._tasks[image.task], rng=rng)
        return replace(sample, image_id=image.image_id, mask_ids=tuple(row.mask_id for row in chosen))


class PseudoImages:
    """Images with pseudo-labels: SAM's masks or the refined ones, and certainty 1 - u."""

    def __init__(
        self,
        manifest: Manifest,
        store: LabelStore,
        *,
        side: int,
        loss_side: int,
        labels: Literal["sam", "refined"] = "sam",
        doubt: Literal["stored", "confidence", "none"] = "stored",
    ) -> None:
        """manifest: the unlabelled images; those in which SAM found nothing are left out (`empty` counts them).

        labels: the masks to learn. doubt: u is that of the store (0 in a store without maps), derived from SAM's own
        output, or 0. A mask that is too small for a map keeps SAM's mask and u = 0 in every case.
        """
        self._images = [image for image in manifest.images if image.image_id in store and store.count(image.image_id)]
        self.empty = len(manifest.images) - len(self._images)
        self._store, self._side, self._loss_side = store, side, loss_side
        self._labels, self._doubt = labels, DOUBTS[doubt]

    def __len__(self) -> int:
        return len(self._images)

    def sample(self, index: int, *, masks: int, rng: np.random.Generator) -> Sample:
        """Image `index` with at most `masks` of its masks; the backup point is the one that generated the mask."""
        image = self._images[index]
        order = rng.permutation(self._store.count(image.image_id))[:masks].tolist()
        rows = self._store.masks(image.image_id, order)
        frame, inner = load_frame(image, side=self._side)
        part = image_part(inner, side=self._side, loss_side=self._loss_side)
        maps = self._doubt(self._store, image.image_id, order).astype(np.float32) / np.float32(255)
        hw = (image.height, image.width)
        target = rles_to_frame([row.rle for row in rows], hw=hw, loss_side=self._loss_side)
        points = np.array([row.point for row in rows])
        xy = torch.from_numpy(np.asarray(points_to_model(points, hw=hw, side=self._side))).float()
        if self._labels == "refined":
            refined = refined_masks(self._store, image.image_id, order, inside=part > 0)
            target, xy = replaced(target, xy, refined, side=self._side)
        return Sample(
            image=to_planes(frame),
            hw=torch.tensor(inner),
            mask=target,
            certainty=(1 - enlarge(maps, side=self._loss_side)) * part,
            point=xy,
            task=0,
            image_id=image.image_id,
            mask_ids=tuple(f"{image.image_id} pseudo-label {k}" for k in order),
        )


def refined_masks(store: LabelStore, image_id: str, order: list[int], *, inside: Tensor) -> Tensor:
    """Where the refined probability is above 0.5: bool `[K, L, L]`, model frame; empty for masks without a map.

    inside: bool `[L, L]`, the part of the frame that is image. Logits are enlarged, as SAM enlarges its own.
    """
    logits = logits_of(torch.from_numpy(store.refined(image_id, order))).numpy()
    known = torch.from_numpy(store.has_map(image_id)[order])
    return (enlarge(logits, side=inside.shape[-1]) > 0) & inside & known[:, None, None]


def replaced(target: Tensor, xy: Tensor, other: Tensor, *, side: int) -> tuple[Tensor, Tensor]:
    """Masks `[K, L, L]` and a point `[K, 2]` of each (model frame of `side`), `other` masks where these have pixels.

    A point that does not lie on the new mask moves to the pixel deepest inside it: it is used as a positive prompt.
    """
    target, xy, scale = target.clone(), xy.clone(), side / target.shape[-1]
    for k in other.flatten(1).any(1).nonzero().flatten().tolist():
        target[k] = other[k]
        x, y = ((xy[k] + 0.5) / scale).floor().long().tolist()
        on_it = min(x, y) >= 0 and max(x, y) < target.shape[-1] and bool(other[k, y, x])
        deepest = None if on_it else farthest_point(other[k].numpy())
        if deepest is not None:
            xy[k] = (torch.tensor(deepest) + 0.5) * scale - 0.5
    return target, xy


def _stored(store: LabelStore, image_id: str, order: list[int]) -> Codes:
    return store.uncertainty(image_id, order)


def _of_sam_alone(store: LabelStore, image_id: str, order: list[int]) -> Codes:
    """The confidence method of SAM's stored probabilities, as stage uncertainty would store it."""
    codes: Codes = _confidence()[store.sam(image_id, order)]
    codes[~store.has_map(image_id)[order]] = 0
    return codes


def _nothing(store: LabelStore, image_id: str, order: list[int]) -> Codes:
    return np.zeros((len(order), store.side, store.side), dtype=np.uint8)


@cache
def _confidence() -> Codes:
    """u of each of the 256 codes of a probability."""
    sam = torch.arange(256, dtype=torch.uint8)
    codes: Codes = map_codes(UNCERTAINTY["confidence"], sam, sam).numpy()
    return codes


DOUBTS: Mapping[str, Callable[[LabelStore, str, list[int]], Codes]] = {
    "stored": _stored,
    "confidence": _of_sam_alone,
    "none": _nothing,
}


def human_sample(
    frame: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    *,
    hw: tuple[int, int],
    loss_side: int,
    task: int,
    rng: np.random.Generator,
) -> Sample:
    """A frame `[S, S, 3]` and masks of full certainty as a Sample.

    masks: bool `[K, H, W]` over the image or over the whole frame, at any size; hw: size of the image in the frame.
    The backup point of each mask is drawn from it.
    """
    target = masks_to_frame(masks, loss_side=loss_side)
    return target_sample(frame, target, hw=hw, task=task, rng=rng)


def target_sample(
    frame: NDArray[np.uint8], target: Tensor, *, hw: tuple[int, int], task: int, rng: np.random.Generator
) -> Sample:
    """The same for masks that are in the model frame already: bool `[K, L, L]`, none of them empty."""
    side, loss_side = frame.shape[0], target.shape[-1]
    points = []
    for row in target.numpy():
        spots = np.flatnonzero(row)
        y, x = divmod(int(spots[int(rng.integers(len(spots)))]), loss_side)
        points.append(((x + 0.5) * side / loss_side - 0.5, (y + 0.5) * side / loss_side - 0.5))
    return Sample(
        image=to_planes(frame),
        hw=torch.tensor(hw),
        mask=target,
        certainty=image_part(hw, side=side, loss_side=loss_side).expand(len(target), -1, -1),
        point=torch.tensor(points),
        task=task,
    )


def decoded(rles: Sequence[str], image: ImageRecord) -> NDArray[np.bool_]:
    """RLEs of an image -> bool `[K, H, W]`, original frame."""
    return np.stack([decode_mask(rle, height=image.height, width=image.width) for rle in rles])


def enlarge(maps: NDArray[np.float32], *, side: int) -> Tensor:
    """Low-resolution maps `[K, L, L]` over the padded frame -> `[K, side, side]`, bilinear as SAM enlarges logits."""
    out = torch.empty(len(maps), side, side)
    for plane, place in zip(maps, out, strict=True):
        place.copy_(torch.from_numpy(cv2.resize(plane, (side, side), interpolation=cv2.INTER_LINEAR)))
    return out
