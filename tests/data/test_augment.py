"""Augmentation: image, masks, certainty and points move as one; what is drawn is a function of seed, step and place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sum.data.augment import Augmented, Move, draw_move, moved
from sum.data.batches import Mixture, Sample, image_part
from tests.data.test_batches import same_batch

SIDE = 32


def sample(hw: tuple[int, int] = (24, 32), *, loss_side: int = SIDE, seed: int = 0) -> Sample:
    """A smooth picture; its red plane, its first mask and its certainty show the same disc."""
    rows, columns = torch.meshgrid(torch.arange(loss_side) + 0.5, torch.arange(loss_side) + 0.5, indexing="ij")
    ratio = loss_side / SIDE
    disc = (rows - 10 * ratio) ** 2 + (columns - 9 * ratio) ** 2 < (6 * ratio) ** 2
    corner = (rows < 4 * ratio) & (columns > (hw[1] - 3) * ratio) & (columns < hw[1] * ratio)
    part = image_part(hw, side=SIDE, loss_side=loss_side)
    image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    rng = torch.Generator().manual_seed(seed)
    image[:, : hw[0], : hw[1]] = torch.randint(1, 256, (3, *hw), generator=rng, dtype=torch.uint8)
    if loss_side == SIDE:
        image[0] = disc * 255
    return Sample(
        image=image,
        hw=torch.tensor(hw),
        mask=torch.stack([disc, corner]) & (part > 0),
        certainty=torch.stack([disc.float(), torch.ones_like(part)]) * part,
        point=torch.tensor([[8.5, 9.5], [hw[1] - 1.5, 1.5]]),
        task=2,
        image_id=f"set/{seed}",
        mask_ids=("disc", "corner"),
    )


@pytest.mark.parametrize("hw", [(24, 32), (32, 20)])
def test_a_flip_is_the_mirror_image_of_everything(hw: tuple[int, int]) -> None:
    plain = sample(hw)
    found = moved(plain, Move(-1, hw[1], 1, 0, hw))
    for name in ("image", "mask", "certainty"):
        want = getattr(plain, name).clone()
        want[..., : hw[1]] = want[..., : hw[1]].flip(-1)
        assert torch.equal(getattr(found, name), want), name
    assert found.point.tolist() == [[hw[1] - 1 - x, y] for x, y in plain.point.tolist()]
    assert (found.hw.tolist(), found.task) == ([*hw], 2)
    again = moved(found, Move(-1, hw[1], 1, 0, hw))
    for name in ("image", "mask", "certainty", "point"):
        assert torch.equal(getattr(again, name), getattr(plain, name)), name


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("loss_side", [SIDE, 2 * SIDE])
def test_all_planes_move_alike_and_padding_stays_empty(seed: int, loss_side: int) -> None:
    plain = sample(loss_side=loss_side)
    move = draw_move((24, 32), side=SIDE, flip=0.5, scale=(0.5, 2.0), rng=np.random.default_rng(seed))
    found = moved(plain, move)
    rows, columns = np.mgrid[:loss_side, :loss_side] + 0.5
    x = (columns * SIDE / loss_side - move.bx) / move.ax  # where a pixel comes from
    y = (rows * SIDE / loss_side - move.by) / move.ay
    height, width = move.hw
    inside = (columns < width * loss_side / SIDE) & (rows < height * loss_side / SIDE)
    reach = np.hypot(y - 10, x - 9)
    sure = np.abs(reach - 6) > 1.5  # the disc's edge is in doubt by a pixel
    disc = (reach < 6) & inside
    assert np.array_equal(found.mask[0].numpy()[sure], disc[sure])
    assert np.abs(found.certainty[0].numpy() - disc)[sure].max() < 0.05
    if loss_side == SIDE:
        assert np.array_equal((found.image[0] > 127).numpy()[sure], disc[sure])
        assert (found.image[1:, :height, :width] > 0).all()  # no dark edge
    assert not found.image[:, height:].any()
    assert not found.image[:, :, width:].any()
    assert not found.certainty[:, ~torch.from_numpy(inside)].any()
    for mask, (x0, y0) in zip(found.mask, ((found.point + 0.5) * loss_side / SIDE).long().tolist(), strict=True):
        assert mask[y0, x0]


def test_masks_cut_off_are_dropped_and_a_sample_without_any_stays() -> None:
    plain = sample()
    enlarged = moved(plain, Move(2, 0, 2, 0, (SIDE, SIDE)))  # the upper left quarter: the corner mask is beyond
    assert len(enlarged.mask) == len(enlarged.certainty) == len(enlarged.point) == 1
    assert (enlarged.image_id, enlarged.mask_ids) == ("set/0", ("disc",))
    beyond = moved(plain, Move(2, -32, 2, -16, (SIDE, SIDE)))
    assert len(beyond.mask) == 2 or beyond is plain
    only = Sample(plain.image, plain.hw, plain.mask[1:], plain.certainty[1:], plain.point[1:], 2, mask_ids=("corner",))
    other = moved(replace(plain, mask_ids=()), Move(2, 0, 2, 0, (SIDE, SIDE)))
    assert other.mask_ids == ()
    assert moved(only, Move(2, 0, 2, 0, (SIDE, SIDE))) is only
    assert moved(plain, Move(1, 0, 1, 0, (24, 32))) is plain


def test_a_point_beyond_the_frame_comes_back_onto_its_mask() -> None:
    plain = sample()
    found = moved(plain, Move(2, 0, 2, -28, (20, SIDE)))  # the disc's lower end, its middle is cut off
    assert len(found.mask) == 1
    x, y = found.point[0].long().tolist()
    assert 0 <= y < 20
    assert found.mask[0, y, x]


def test_moves_follow_their_odds_and_factors() -> None:
    rng = np.random.default_rng(0)
    moves = [draw_move((24, 32), side=SIDE, flip=0.25, scale=(0.5, 2.0), rng=rng) for _ in range(2000)]
    assert abs(np.mean([move.ax < 0 for move in moves]) - 0.25) < 0.04  # sd 0.0097
    factors = np.array([abs(move.ax) for move in moves])
    assert factors.min() >= 0.5
    assert factors.max() <= 2
    assert abs(np.mean(factors < 1) - 0.5) < 0.05  # even in the logarithm
    assert all(move.hw[0] <= SIDE and move.hw[1] <= SIDE for move in moves)
    still = [draw_move((24, 32), side=SIDE, flip=0.0, scale=(1.0, 1.0), rng=rng) for _ in range(3)]
    assert still == [Move(1, 0, 1, 0, (24, 32))] * 3


class Pictures:
    """Five samples; the masks are drawn by the generator as in the real sources."""

    def __len__(self) -> int:
        return 5

    def sample(self, index: int, *, masks: int, rng: np.random.Generator) -> Sample:
        plain = sample(seed=index)
        order = rng.permutation(2)[:masks].tolist()
        return Sample(plain.image, plain.hw, plain.mask[order], plain.certainty[order], plain.point[order], plain.task)


def test_a_step_is_augmented_the_same_whenever_it_is_asked_and_by_whom() -> None:
    source = Augmented(source=Pictures(), flip=0.5, scale=(0.5, 1.5))
    assert len(source) == 5
    straight = list(Mixture([source], [1], 4, 2, 7).batches(start=0, stop=4, workers=0))
    resumed = list(Mixture([source], [1], 4, 2, 7).batches(start=2, stop=4, workers=0))
    for wanted, found in zip(straight[2:], resumed, strict=True):
        assert same_batch(wanted, found)
    shares = [Mixture([source], [1], 4, 2, 7, rank, 2).batch(3) for rank in range(2)]
    assert torch.equal(torch.stack([shares[0].image[0], shares[1].image[0]]), straight[3].image[:2])
    assert len({batch.hw.tolist()[0][0] for batch in straight}) > 1
