"""Batches are functions of seed and step: ratio, order, sharing between processes, and what a Sample becomes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sum.core.geometry import resized_hw
from sum.data.batches import ImageSource, Mixture, Sample, TrainBatch, collate, image_part, masks_to_frame
from sum.data.records import ImageRecord, Manifest, MaskRecord, encode_mask
from sum.data.samples import HumanImages
from sum.errors import DataError
from sum.rounds import valid_pixels


class Numbers:
    """`size` images whose pixels are their number; image i has i % 3 + 1 masks."""

    def __init__(self, size: int, role: int) -> None:
        self.size, self.role = size, role

    def __len__(self) -> int:
        return self.size

    def sample(self, index: int, *, masks: int, rng: np.random.Generator) -> Sample:
        count = min(masks, index % 3 + 1)
        return Sample(
            image=torch.full((3, 8, 8), index, dtype=torch.uint8),
            hw=torch.tensor([8, 8]),
            mask=torch.ones(count, 8, 8, dtype=torch.bool),
            certainty=torch.ones(count, 8, 8),
            point=torch.full((count, 2), float(rng.integers(1000))),
            task=self.role,
            image_id=f"{self.role}/{index}",
            mask_ids=tuple(f"{self.role}/{index}#{k}" for k in range(count)),
        )


def same_batch(a: TrainBatch, b: TrainBatch) -> bool:
    """In every tensor and name."""
    pairs = [(getattr(a, name), getattr(b, name)) for name in TrainBatch.__slots__]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def mixture(shares: tuple[int, int] = (1, 1), **options: int) -> Mixture:
    sources: list[ImageSource] = [Numbers(7, 1), Numbers(5, 0)]
    return Mixture(sources, shares, images_per_batch=options.pop("images", 6), masks_per_image=2, seed=3, **options)


@pytest.mark.parametrize(("shares", "images"), [((1, 1), 6), ((2, 1), 6), ((2, 1), 4), ((3, 1), 5)])
def test_the_ratio_is_exact_over_time(shares: tuple[int, int], images: int) -> None:
    steps = shares[0] + shares[1]
    chosen = Counter(source for t in range(steps) for source, _ in mixture(shares, images=images).slots(t))
    assert chosen[0] * shares[1] == chosen[1] * shares[0]


def test_every_epoch_shows_every_image_once_in_a_new_order() -> None:
    drawn = [index for t in range(14) for source, index in mixture().slots(t) if source == 0]  # 42 = 6 epochs of 7
    epochs = [drawn[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_batch_depends_on_the_step_alone() -> None:
    first = list(mixture().batches(start=0, stop=5, workers=0))
    late = list(mixture().batches(start=3, stop=5, workers=0))
    for a, b in zip(first[3:], late, strict=True):
        assert same_batch(a, b)


class Broken(Numbers):
    """A source whose files have gone."""

    def sample(self, index: int, *, masks: int, rng: np.random.Generator) -> Sample:
        raise DataError(f"photo-{index}.jpg: the image is missing")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_photo_is_one_clear_error_from_a_worker_too(workers: int) -> None:
    broken = Mixture([Broken(3, 1)], (1,), images_per_batch=2, masks_per_image=2, seed=3)
    with pytest.raises(DataError) as caught:
        list(broken.batches(start=0, stop=2, workers=workers))
    assert re.fullmatch(r"photo-\d\.jpg: the image is missing", str(caught.value))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_the_same_batches(workers: int) -> None:
    found = mixture().batches(start=0, stop=4, workers=workers)
    for a, b in zip(mixture().batches(start=0, stop=4, workers=0), found, strict=True):
        assert same_batch(a, b)


def test_a_photo_that_changed_since_ingest_is_refused(tmp_path: Path) -> None:
    images = human_images(tmp_path)
    Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is 40 x 30 pixels, the manifest says 40 x 60"):
        images.sample(0, masks=30, rng=np.random.default_rng(0))


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_processes_share_each_batch_and_no_image_comes_twice_in_an_epoch(ranks: int) -> None:
    """Over many ends of epochs, of 7 and of 5 images: process r has places r, r + ranks, ... of the one batch."""
    seen: list[list[int]] = [[], []]
    for step in range(12):
        whole, parts = mixture().batch(step), [mixture(rank=r, ranks=ranks).batch(step) for r in range(ranks)]
        assert {len(part.image) for part in parts} == {6 // ranks}  # nobody waits for one who has nothing to do
        for place in range(6):
            part, row = parts[place % ranks], place // ranks
            assert torch.equal(part.image[row], whole.image[place])
            own, all_of = part.image_index == row, whole.image_index == place
            for name in ("mask", "certainty", "point", "task", "seed"):
                assert torch.equal(getattr(part, name)[own], getattr(whole, name)[all_of]), name
            role = 1 - int(whole.task[all_of][0])  # of `mixture`: its first source has task 1
            seen[role].append(int(part.image[row, 0, 0, 0]))
    for role, size in enumerate((7, 5)):
        epochs = [seen[role][start : start + size] for start in range(0, len(seen[role]), size)]
        assert len(epochs) > 5
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs[:-1])


def test_every_mask_of_every_step_has_a_seed_of_its_own() -> None:
    seeds = torch.cat([mixture().batch(step).seed for step in range(50)])
    assert len(seeds.unique()) == len(seeds)
    assert 0.4 < float((seeds > 2**62).float().mean()) < 0.6


def test_collate_keeps_masks_with_their_image() -> None:
    batch = collate([Numbers(7, 2).sample(i, masks=9, rng=np.random.default_rng(0)) for i in (2, 0, 1)])
    assert batch.image_index.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.task.tolist() == [2] * 6
    assert batch.image_ids == ("2/2", "2/0", "2/1")
    assert batch.mask_ids == ("2/2#0", "2/2#1", "2/2#2", "2/0#0", "2/1#0", "2/1#1")
    assert batch.masks(slice(2, 4)).mask_ids == batch.mask_ids[2:4]
    assert same_batch(batch.to(torch.device("cpu")), batch)


def test_a_batch_that_does_not_fit_together_is_refused() -> None:
    batch = mixture().batch(0)
    parts = {name: getattr(batch, name) for name in TrainBatch.__slots__}
    with pytest.raises(ValueError, match=r"TrainBatch.point has shape \(1, 2\), wants \(\d+, 2\)"):
        TrainBatch(**parts | {"point": parts["point"][:1]})
    with pytest.raises(ValueError, match=r"TrainBatch.image_ids has 1 names, wants 6 or none"):
        TrainBatch(**parts | {"image_ids": ("a",)})


def test_a_mask_too_small_for_the_loss_side_keeps_one_pixel_in_the_right_place() -> None:
    mask = np.zeros((1, 512, 256), dtype=bool)
    mask[0, 300, 200] = True
    small = masks_to_frame(mask, loss_side=64)
    assert small.nonzero().tolist() == [[0, 37, 25]]  # 300 / 8, 200 / 8


@pytest.mark.parametrize("hw", [(96, 128), (128, 50), (128, 128), (127, 51), (1, 128)])
def test_image_part_is_one_on_whole_pixels_of_the_image_and_zero_on_the_padding(hw: tuple[int, int]) -> None:
    part = image_part(hw, side=128, loss_side=64)
    rows, columns = max(1, hw[0] // 2), hw[1] // 2
    assert part[:rows, :columns].min() == 1
    assert part.sum() == rows * columns


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([(1024, 256), (1024, 1024), (128, 64), (1024, 512)]))
@settings(max_examples=60, deadline=None)
def test_no_pixel_of_the_image_lies_beyond_its_masks(height: int, width: int, sides: tuple[int, int]) -> None:
    """An object on the border of a photo would be taught not to reach it: 333 x 500 at 1024 and 256, for one."""
    side, loss_side = sides
    hw = resized_hw(height, width, side)
    part = image_part(hw, side=side, loss_side=loss_side)
    rows, columns = resized_hw(height, width, loss_side)  # where masks lie, see masks_to_frame
    assert part[rows:].sum() == 0 == part[:, columns:].sum()
    assert part.sum() >= max(1, rows - 1) * max(1, columns - 1)  # nor is more than a border pixel lost
    frame, first = torch.zeros(1, 3, side, side, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    mask = torch.zeros(1, 1, loss_side, loss_side, dtype=torch.bool)
    batch = TrainBatch(frame, torch.tensor([hw]), first, mask, mask, torch.zeros(1, 2), first)
    assert torch.equal(valid_pixels(batch)[0, 0], part > 0)


MASK = np.zeros((60, 40), dtype=bool)
MASK[10:50, 5:15] = True


def human_images(tmp_path: Path) -> HumanImages:
    """One photo of 60 x 40 with MASK."""
    Image.fromarray(np.full((60, 40, 3), 9, dtype=np.uint8)).save(tmp_path / "a.png")
    image = ImageRecord("set/a", "set", str(tmp_path / "a.png"), "", 60, 40, "entity", "train", "x")
    row = MaskRecord("set/a#0", "set/a", "set", "entity", "train", 400, 5, 10, 14, 49, encode_mask(MASK), "", "")
    return HumanImages(Manifest([image], [row]), side=120, loss_side=60, tasks={"entity": 2})


def test_human_images_are_fully_certain_and_their_points_lie_on_the_mask(tmp_path: Path) -> None:
    sample = human_images(tmp_path).sample(0, masks=30, rng=np.random.default_rng(0))
    assert sample.hw.tolist() == [120, 80]
    assert torch.equal(sample.mask[0, :, :40], torch.from_numpy(MASK))
    assert sample.certainty[0, :, :40].min() == 1
    assert sample.certainty[0, :, 40:].max() == 0
    x, y = sample.point[0].tolist()
    assert MASK[int(y * 60 / 120), int(x * 40 / 80)]
    assert sample.task == 2
    assert (sample.image_id, sample.mask_ids) == ("set/a", ("set/a#0",))
