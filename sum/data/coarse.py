"""Images with coarse masks, for pre-training `tiny`: what SAM would have learnt from careless annotations."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from sum.core.geometry import to_frame
from sum.data.batches import Sample, masks_to_frame
from sum.data.demo import Scene, pretrain_scene
from sum.data.frames import load_frame
from sum.data.records import Manifest
from sum.data.samples import decoded, human_sample
from sum.progress import track
from sum.storage import write_atomic

log = logging.getLogger(__name__)
MIN_AREA = 24  # px of a 128 frame; a smaller mask has no shape left at the 64 x 64 of the low-resolution logits


@dataclass(frozen=True)
class CoarseScenes:
    """Demo scenes of the pre-training range, drawn once, mirrored at every other visit.

    images `[n, S, S, 3]` uint8; masks: packed bits of all masks `[m, S * S / 8]` uint8; first `[n + 1]`: masks of
    scene i are first[i] .. first[i + 1] - 1; areas `[m]`, px.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    first: NDArray[np.int64]
    loss_side: int
    areas: NDArray[np.int64]

    @classmethod
    def made(cls, folder: Path, *, count: int, seed: int, coarsen: int, side: int, loss_side: int) -> CoarseScenes:
        """Read the scenes of `folder`, or draw and keep them there."""
        path = folder / f"scenes-{count}-{seed}-{coarsen}-{side}.safetensors"
        if not path.is_file():
            images, masks, first = [], [], [0]
            for index in track(range(count), title="draw scenes", unit="scene"):
                scene = pretrain_scene(index, seed=seed, side=side)
                rows = coarse_masks(scene, size=coarsen)
                images.append(scene.image)
                masks += [np.packbits(row) for row in rows]
                first.append(len(masks))
            tensors = {"images": np.stack(images), "masks": np.stack(masks), "first": np.array(first)}
            write_atomic(path, save({name: torch.from_numpy(value) for name, value in tensors.items()}))
        found = {name: value.numpy() for name, value in load_file(path).items()}
        areas = np.bitwise_count(found["masks"]).sum(1, dtype=np.int64)
        return cls(found["images"], found["masks"], found["first"], loss_side, areas)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, *, masks: int, rng: np.random.Generator) -> Sample:
        """Scene `index`, seen anew, with `masks` of its masks."""
        image = self.images[index]
        side = image.shape[0]
        low, high = int(self.first[index]), int(self.first[index + 1])
        share = np.sqrt(
            self.areas[low:high]
        )  # parts are many and small: drawn evenly they would be most of the training
        rows = low + rng.choice(high - low, size=min(masks, high - low), replace=False, p=share / share.sum())
        chosen = np.unpackbits(self.masks[rows], axis=1, count=side * side).reshape(-1, side, side).astype(bool)
        image, chosen = mirror(image, chosen, rng=rng)
        sample = human_sample(image, chosen, hw=(side, side), loss_side=self.loss_side, task=0, rng=rng)
        names = tuple(f"scene {index}#{row - low}" for row in rows.tolist())
        return replace(sample, image_id=f"scene {index}", mask_ids=names)


class CoarseManifest:
    """The human masks of a manifest, coarsened; size scales with the image as on the demo's 128 px."""

    def __init__(self, manifest: Manifest, *, coarsen: int, side: int, loss_side: int) -> None:
        """manifest: images with at least one mask each."""
        self.masks = manifest.masks_of()
        self.images = [image for image in manifest.images if self.masks[image.image_id]]
        self.coarsen, self.side, self.loss_side = coarsen, side, loss_side

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, *, masks: int, rng: np.random.Generator) -> Sample:
        """Image `index` with at most `masks` of its masks."""
        record = self.images[index]
        frame, inner = load_frame(record, side=self.side)
        found = self.masks[record.image_id]
        chosen = [found[k] for k in rng.permutation(len(found))[:masks]]
        full = decoded([row.rle for row in chosen], record)
        small = masks_to_frame(full, loss_side=self.side)[:, : inner[0], : inner[1]].numpy()  # never empty
        size = max(2, round(self.coarsen * self.side / 128))
        rough = np.stack([kept if (kept := coarsen(row, size=size)).sum() >= MIN_AREA else row for row in small])
        padded = to_frame(torch.from_numpy(rough), self.side).numpy()
        image, turned = frame, padded
        if inner[0] == inner[1] == self.side:
            image, turned = mirror(frame, padded, rng=rng)
        sample = human_sample(image, turned, hw=inner, loss_side=self.loss_side, task=0, rng=rng)
        return replace(sample, image_id=record.image_id, mask_ids=tuple(row.mask_id for row in chosen))


def coarsen(mask: np.ndarray, *, size: int) -> np.ndarray:
    """The mask as a careless annotator would draw it: what is thinner than `size` pixels goes, small holes close.

    mask: `[H, W]` bool. Returns the same; it may be empty.
    """
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    rough = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    rough = cv2.morphologyEx(rough, cv2.MORPH_OPEN, kernel).astype(np.float32)
    return cv2.GaussianBlur(rough, (0, 0), size / 3, borderType=cv2.BORDER_REPLICATE) > 0.5


def coarse_masks(scene: Scene, *, size: int) -> list[NDArray[np.bool_]]:
    """All masks of a scene at all three granularities, coarsened; those that vanish go. Parts lose less."""
    rows = [coarsen(scene.salient, size=size), *(coarsen(m, size=size) for m in scene.entities)]
    rows += [coarsen(m, size=max(2, size - 2)) for m in scene.parts]
    return [row for row in rows if row.sum() >= MIN_AREA]


def mirror(
    image: NDArray[np.uint8], masks: NDArray[np.bool_], *, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Swap left and right every other time: image `[S, S, 3]` and masks `[K, S, S]`. Up stays up, as in photos."""
    if rng.integers(2):
        image, masks = image[:, ::-1], masks[:, :, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(masks)
