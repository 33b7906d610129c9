"""Training batches: which images and masks make step t, as a pure function of the seed and t.

Because nothing is drawn from a running generator, a resumed run sees exactly the batches an uninterrupted one would
have seen, and every process of a multi-GPU run can work out its own share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sum.core.geometry import resize_mask, resized_hw, to_frame
from sum.errors import SumError


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """The photos from which V images of a batch, students' views, were mixed, as they are; for a teacher."""

    rows: tuple[int, ...]  # V: which images of the batch
    image: Tensor  # [2 V, 3, S, S] uint8: of each the photo itself, and the one of which it shows a rectangle
    hw: Tensor  # [2 V, 2] int64, the part of the frame that is image
    index: Tensor  # [N] int64: which of these photos a mask is of; 0 for masks of other images
    visible: Tensor  # [N, 1, L, L] bool: where the student's view shows that photo

    def masks(self, part: slice) -> Views:
        """The same photos with some of the masks."""
        return replace(self, index=self.index[part], visible=self.visible[part])

    def of_images(self, images: Sequence[int], masks: Sequence[int]) -> Views | None:
        """What is left with some of the batch's images and masks; None without a student's view among them."""
        kept = [number for number, row in enumerate(self.rows) if row in images]
        if not kept:
            return None
        photos = [2 * number + which for number in kept for which in range(2)]
        place = torch.zeros(len(self.image), dtype=torch.int64)
        place[photos] = torch.arange(len(photos))
        return Views(
            rows=tuple(images.index(self.rows[number]) for number in kept),
            image=self.image[photos],
            hw=self.hw[photos],
            index=place.to(self.index.device)[self.index[masks]],
            visible=self.visible[masks],
        )

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Views:
        """The same on another device."""
        found = {name: getattr(self, name) for name in ("image", "hw", "index", "visible")}
        return Views(self.rows, **{name: value.to(device, non_blocking=non_blocking) for name, value in found.items()})


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and the K masks of it that are trained in this step; S: model side, L: loss side."""

    image: Tensor  # [3, S, S] uint8, padded below and right
    hw: Tensor  # [2] int64, the part of the frame that is image
    mask: Tensor  # [K, L, L] bool
    certainty: Tensor  # [K, L, L] float, 1 sure .. 0 unknown; 0 on padding
    point: Tensor  # [K, 2] float xy, model frame: a point of the mask, used where no other can be drawn
    task: int  # row of the task prompt
    image_id: str = ""
    mask_ids: tuple[str, ...] = ()  # K names, or none
    views: Views | None = None  # of this one image, where it is a student's view


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """B images and their N masks, flat: mask n belongs to image `image_index[n]`."""

    image: Tensor  # [B, 3, S, S] uint8
    hw: Tensor  # [B, 2] int64, the part of the frame that is image
    image_index: Tensor  # [N] int64
    mask: Tensor  # [N, 1, L, L] bool
    certainty: Tensor  # [N, 1, L, L] float, 1 sure .. 0 unknown; 1 on every image pixel of a human mask, 0 on padding
    point: Tensor  # [N, 2] float xy, model frame
    task: Tensor  # [N] int64, rows of the task prompt
    seed: Tensor | None = None  # [N] int64, of what is drawn for a mask in its rounds; None: the step decides
    image_ids: tuple[str, ...] = ()  # B names, or none: what messages call an image
    mask_ids: tuple[str, ...] = ()  # N names, or none
    views: Views | None = None  # where some of the images are students' views

    def __post_init__(self) -> None:
        count, loss_side = len(self.image_index), self.mask.shape[-1]
        wanted = {
            "mask": (count, 1, loss_side, loss_side),
            "certainty": (count, 1, loss_side, loss_side),
            "point": (count, 2),
            "task": (count,),
            "hw": (len(self.image), 2),
        }
        if self.seed is not None:
            wanted["seed"] = (count,)
        for name, shape in wanted.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ValueError(f"TrainBatch.{name} has shape {found}, wants {shape} to match image_index and mask")
        for name, names, many in (("image_ids", self.image_ids, len(self.image)), ("mask_ids", self.mask_ids, count)):
            if len(names) not in (0, many):
                raise ValueError(f"TrainBatch.{name} has {len(names)} names, wants {many} or none")

    def masks(self, part: slice) -> TrainBatch:
        """The same images with some of the masks."""
        kept = ("image_index", "mask", "certainty", "point", "task", "mask_ids")
        seed = None if self.seed is None else self.seed[part]
        views = None if self.views is None else self.views.masks(part)
        return replace(self, seed=seed, views=views, **{name: getattr(self, name)[part] for name in kept})

    def of_images(self, images: Sequence[int], masks: Sequence[int]) -> TrainBatch:
        """Some of the images, in this order; masks: the rows of all their masks."""
        place = torch.zeros(len(self.image), dtype=torch.int64)
        place[list(images)] = torch.arange(len(images))
        of_masks = {name: getattr(self, name)[masks] for name in ("mask", "certainty", "point", "task")}
        return TrainBatch(
            image=self.image[images],
            hw=self.hw[images],
            image_index=place.to(self.image_index.device)[self.image_index[masks]],
            **of_masks,
            seed=None if self.seed is None else self.seed[masks],
            image_ids=tuple(self.image_ids[row] for row in images if self.image_ids),
            mask_ids=tuple(self.mask_ids[row] for row in masks if self.mask_ids),
            views=None if self.views is None else self.views.of_images(images, masks),
        )

    def to(self, device: torch.device) -> TrainBatch:
        """The same batch on another device."""
        values = {name: getattr(self, name) for name in self.__slots__}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor | Views)}
        return TrainBatch(**values | {name: value.to(device, non_blocking=True) for name, value in tensors.items()})


class ImageSource(Protocol):
    """Images of one role (human or unlabelled), by number."""

    def __len__(self) -> int: ...

    def sample(self, index: int, *, masks: int, rng: np.random.Generator) -> Sample:
        """Image `index` with at most `masks` of its masks, drawn by `rng`."""
        ...


def collate(samples: Sequence[Sample]) -> TrainBatch:
    """Stack images, concatenate masks."""
    counts = torch.tensor([len(s.mask) for s in samples])
    return TrainBatch(
        image=torch.stack([s.image for s in samples]),
        hw=torch.stack([s.hw for s in samples]),
        image_index=torch.repeat_interleave(torch.arange(len(samples)), counts),
        mask=torch.cat([s.mask for s in samples])[:, None],
        certainty=torch.cat([s.certainty for s in samples])[:, None],
        point=torch.cat([s.point for s in samples]),
        task=torch.repeat_interleave(torch.tensor([s.task for s in samples]), counts),
        image_ids=tuple(s.image_id for s in samples),
        mask_ids=tuple(name for s in samples for name in s.mask_ids or ("",) * len(s.mask)),
        views=_collate_views(samples),
    )


def _collate_views(samples: Sequence[Sample]) -> Views | None:
    """The views of those samples that have them; a mask of another image is visible everywhere."""
    found = [(row, sample.views) for row, sample in enumerate(samples) if sample.views is not None]
    if not found:
        return None
    before = {row: 2 * number for number, (row, _) in enumerate(found)}
    return Views(
        rows=tuple(before),
        image=torch.cat([views.image for _, views in found]),
        hw=torch.cat([views.hw for _, views in found]),
        index=torch.cat(
            [
                torch.zeros(len(s.mask), dtype=torch.int64) if s.views is None else s.views.index + before[row]
                for row, s in enumerate(samples)
            ]
        ),
        visible=torch.cat([torch.ones_like(s.mask)[:, None] if s.views is None else s.views.visible for s in samples]),
    )


def masks_to_frame(masks: NDArray[np.bool_], *, loss_side: int) -> Tensor:
    """bool `[K, H, W]`, original frame -> bool `[K, L, L]`, model frame at L pixels.

    A mask too small to survive keeps the pixel nearest to its first one: an empty target would ask for nothing.
    """
    height, width = masks.shape[-2:]
    inner = resized_hw(height, width, loss_side)
    small = resize_mask(torch.from_numpy(masks), hw_out=inner)
    for k in (~small.flatten(1).any(1)).nonzero().flatten().tolist():
        rows, columns = masks[k].nonzero()
        if len(rows):
            small[k, int(rows[0]) * inner[0] // height, int(columns[0]) * inner[1] // width] = True
    return to_frame(small, loss_side)


def image_part(hw: tuple[int, int], *, side: int, loss_side: int) -> Tensor:
    """float `[L, L]`: 1 where all of a pixel is image, 0 on padding. hw: size of the image in the frame of `side`.

    A border pixel that is image in part is left out: masks are rounded to the nearest size and may end before it, and
    it would be taught as background. Rounded down, the image never ends after its masks. One pixel always is left.
    """
    part = torch.zeros(loss_side, loss_side)
    part[: max(1, hw[0] * loss_side // side), : max(1, hw[1] * loss_side // side)] = 1
    return part


@dataclass(frozen=True)
class Mixture(Dataset["TrainBatch | SumError"]):
    """The batch of step t: roles take turns in the wanted ratio, each walks through its images anew every epoch.

    sources and shares go together: shares (2, 1) puts two images of the first source beside one of the second.
    rank of ranks: this process and how many share the batch.
    """

    sources: Sequence[ImageSource]
    shares: Sequence[int]
    images_per_batch: int
    masks_per_image: int
    seed: int
    rank: int = 0
    ranks: int = 1

    def slots(self, step: int) -> list[tuple[int, int]]:
        """(source, image) of every image of the whole batch of `step`."""
        turn = np.repeat(np.arange(len(self.shares)), self.shares)
        chosen = []
        for slot in range(step * self.images_per_batch, (step + 1) * self.images_per_batch):
            source = int(turn[slot % len(turn)])
            drawn = slot // len(turn) * self.shares[source] + int((turn[: slot % len(turn)] == source).sum())
            epoch, place = divmod(drawn, len(self.sources[source]))
            order = _shuffled(len(self.sources[source]), seed=(self.seed, source, epoch))
            chosen.append((source, int(order[place])))
        return chosen

    def __getitem__(self, step: int) -> TrainBatch | SumError:
        """This process's part of the batch of `step`, or why there is none: raised here, a worker's traceback would
        bury the message.
        """
        try:
            return self.batch(step)
        except SumError as error:
            return error

    def batch(self, step: int) -> TrainBatch:
        """This process's part of the batch of `step`. Raises DataError and StorageError of the images' readers."""
        samples, seeds = [], []
        for place, (source, index) in enumerate(self.slots(step)):
            if place % self.ranks == self.rank:
                rng = np.random.default_rng([self.seed, step, place])
                samples.append(self.sources[source].sample(index, masks=self.masks_per_image, rng=rng))
                seeds.append(rng.integers(2**63, size=len(samples[-1].mask)))
        return replace(collate(samples), seed=torch.from_numpy(np.concatenate(seeds)))

    def batches(self, *, start: int, stop: int, workers: int) -> Iterator[TrainBatch]:
        """Batches of the steps start .. stop - 1, read ahead by `workers` processes. Errors as `batch`."""
        steps = range(start, stop)
        loader = DataLoader(self, batch_size=None, sampler=steps, num_workers=workers)
        for found in loader:
            if isinstance(found, SumError):
                raise found
            yield found


@lru_cache(maxsize=16)
def _shuffled(count: int, *, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """The order of an epoch; kept, because every slot of every step asks for it: 8 ms for 250,000 images."""
    return np.random.default_rng(list(seed)).permutation(count)
