"""Training images by number: human masks of the manifest, pseudo-labels with their certainty; both become a Sample."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sum.core.geometry import points_to_model
from sum.data.batches import Sample, image_part, masks_to_frame
from sum.data.frames import load_frame, to_planes
from sum.data.labels import LabelStore
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
        chosen = [rows[k].rle for k in rng.permutation(len(rows))[:masks]]
        frame, inner = load_frame(image, side=self._side)
        target = rles_to_frame(chosen, hw=(image.height, image.width), loss_side=self._loss_side)
        return target_sample(frame, target, hw=inner, task=self._tasks[image.task], rng=rng)


class PseudoImages:
    """Images with pseudo-labels: certainty 1 - u from the uncertainty maps, or 1 where the store has none."""

    def __init__(self, manifest: Manifest, store: LabelStore, *, side: int, loss_side: int) -> None:
        """manifest: the unlabelled images; those in which SAM found nothing are left out (`empty` counts them)."""
        self._images = [image for image in manifest.images if image.image_id in store and store.count(image.image_id)]
        self.empty = len(manifest.images) - len(self._images)
        self._store, self._side, self._loss_side = store, side, loss_side

    def __len__(self) -> int:
        return len(self._images)

    def sample(self, index: int, *, masks: int, rng: np.random.Generator) -> Sample:
        """Image `index` with at most `masks` of its masks; the backup point is the one that generated the mask."""
        image = self._images[index]
        order = rng.permutation(self._store.count(image.image_id))[:masks].tolist()
        rows = self._store.masks(image.image_id, order)
        frame, inner = load_frame(image, side=self._side)
        part = image_part(inner, side=self._side, loss_side=self._loss_side)
        maps = self._store.uncertainty(image.image_id, order).astype(np.float32) / np.float32(255)
        hw = (image.height, image.width)
        target = rles_to_frame([row.rle for row in rows], hw=hw, loss_side=self._loss_side)
        points = np.array([row.point for row in rows])
        return Sample(
            image=to_planes(frame),
            hw=torch.tensor(inner),
            mask=target,
            certainty=(1 - enlarge(maps, side=self._loss_side)) * part,
            point=torch.from_numpy(np.asarray(points_to_model(points, hw=hw, side=self._side))).float(),
            task=0,
        )


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
