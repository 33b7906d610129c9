"""One prompt a mask, HQ-SAM's way: exact boxes, points on what is certain, masks that are wrong at their edge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from sum.core.losses import LossWeights
from sum.data.batches import TrainBatch
from sum.models.archs import ArchSpec
from sum.models.parts import select_parts
from sum.models.segmenter import PAD, Prompts, Segmenter
from sum.one_shot import KINDS, POINTS, SURE, OneShot, ask, noisy, one_shot_prompts
from sum.rounds import Rounds, train_rounds
from tests.models.test_parts import batch, small

SIDE, LOW = 64, 32


def of(part: TrainBatch, seeds: Tensor | None = None) -> OneShot:
    seeds = torch.arange(len(part.mask)) if seeds is None else seeds
    return one_shot_prompts(part, side=SIDE, low_side=LOW, seeds=seeds)


def many(count: int) -> TrainBatch:
    """`count` masks of one image: a square of 12 x 10 px of a 32 px frame, of which the left half is certain."""
    mask = torch.zeros(count, 1, 32, 32)
    mask[:, 0, 6:16, 8:20] = 1
    certainty = torch.zeros(count, 1, 32, 32)
    certainty[..., :14] = 1
    one = batch()
    index = torch.zeros(count, dtype=torch.int64)
    return replace(
        one, image_index=index, mask=mask, certainty=certainty, point=torch.full((count, 2), 25.0), task=index
    )


def test_the_three_kinds_have_equal_odds_and_hang_on_the_seed() -> None:
    part = many(900)
    found = of(part)
    counts = [found.kind.count(number) for number in range(len(KINDS))]
    assert sum(counts) == 900
    assert all(abs(count - 300) < 4 * (900 * 2 / 9) ** 0.5 for count in counts)  # four sd
    back = of(part, torch.arange(900).flip(0))
    assert list(back.kind) == list(reversed(found.kind))
    assert torch.equal(back.points.flip(0), found.points)
    assert torch.equal(back.logits.flip(0), found.logits)


def test_a_box_is_the_mask_s_own() -> None:
    found = of(many(2))
    assert torch.equal(found.boxes, torch.tensor([[16.0, 12.0, 39.0, 31.0]] * 2))  # px 8..19, 6..15, twice as large


def test_points_lie_on_the_mask_where_it_is_certain_and_anywhere_on_it() -> None:
    found = of(many(200))
    xy = ((found.points + 0.5) / 2 - 0.5).reshape(-1, 2).long()
    assert found.points.shape == (200, POINTS, 2)
    assert set(xy[:, 0].tolist()) == set(range(8, 14))  # of 8..19 only what is certain
    assert set(xy[:, 1].tolist()) == set(range(6, 16))
    counts = np.bincount(xy[:, 0].numpy())[8:14]
    assert counts.min() > 2000 / 6 - 4 * (2000 * 5 / 36) ** 0.5  # evenly


def test_without_a_certain_pixel_the_mask_s_own_point_is_taken() -> None:
    part = many(3)
    found = of(replace(part, certainty=torch.zeros_like(part.certainty)))
    assert torch.equal(found.points, part.point[:, None].expand(-1, POINTS, -1))


def test_a_noisy_mask_differs_near_the_boundary_only() -> None:
    size = 64
    mask = torch.zeros(1, 1, size, size)
    mask[0, 0, 10:50, 12:52] = 1
    noise = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    wrong = (noisy(mask, noise=noise) != mask)[0, 0].numpy()
    inside = mask[0, 0].numpy() > 0
    away = np.where(inside, distance_transform_edt(inside), distance_transform_edt(~inside))
    assert 0.05 < wrong[away <= 4].mean() < 0.5
    assert not wrong[away > 12].any()  # what an eighth of the size cannot show
    assert torch.equal(noisy(mask, noise=torch.zeros_like(noise)), mask)
    flat = torch.ones(1, 1, size, size)
    assert torch.equal(noisy(flat, noise=noise), flat)


def test_the_mask_prompt_is_as_sure_as_sam() -> None:
    found = of(many(4))
    assert set(found.logits.unique().tolist()) == {-SURE, SURE}
    assert found.logits.shape == (4, 1, LOW, LOW)


def test_each_kind_is_asked_as_sam_takes_it_alone() -> None:
    """Mixed in one call against one mask after the other."""
    model, part = small(), many(7)
    found = replace(of(part), kind=[0, 2, 1, 1, 0, 2, 1])
    index = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    with torch.no_grad():
        embedding = model.encode(part.image, part.hw)
        said = ask(model, embedding, index, found, multimask=True, task=torch.arange(7) % 4)
        for n, kind in enumerate(found.kind):
            alone = {
                "box": Prompts.from_boxes(found.boxes[[n]]),
                "points": Prompts.from_points(found.points[[n]], torch.ones(1, POINTS, dtype=torch.int64)),
                "mask": Prompts(torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.int64), found.logits[[n]]),
            }[KINDS[kind]]
            want = model.decode(embedding, index[[n]], alone, multimask=True, task=torch.tensor([n % 4]))
            torch.testing.assert_close(said.logits[n], want.logits[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(said.iou[n], want.iou[0], atol=1e-5, rtol=1e-5)
    rows, prompts = found.of_kind(1)
    assert rows == [2, 3, 6]
    assert prompts.label[:, -1].tolist() == [PAD] * 3


def test_a_mask_alone_is_what_sam_makes_of_a_mask_prompt() -> None:
    model, part = small(), many(1)
    logits = of(part).logits
    sparse, dense = model.sam.prompt_encoder(points=None, boxes=None, masks=logits)
    with torch.no_grad():
        embedding = model.encode(part.image[:1], part.hw[:1])
        want, _ = model.sam.mask_decoder(
            image_embeddings=embedding, image_pe=model.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True,
        )  # fmt: skip
        none = torch.zeros(1, 0, 2)
        said = model.decode(embedding, torch.tensor([0]), Prompts(none, none[..., 0].long(), logits), multimask=True)
    torch.testing.assert_close(said.logits, want, atol=1e-5, rtol=1e-5)


def test_masks_in_turns_are_prompted_alike_and_add_up_to_the_same_gradient() -> None:
    from sum.models.mask_chunk import MaskChunk

    part = replace(batch(), seed=torch.tensor([11, 12, 13]))
    grads = []
    for size in (None, 1):
        model: Segmenter = select_parts(small(), spec=ArchSpec("hq"), task_prompt=True, seed=0)
        train_rounds(
            model, part, rounds=Rounds(count=1, one_shot=True, weights=LossWeights(iou=0.0)),
            generator=torch.Generator(), backward=Tensor.backward, chunk=MaskChunk(size),
        )  # fmt: skip
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, want in grads[0].items():
        torch.testing.assert_close(grads[1][name], want, rtol=1e-3, atol=1e-5 * float(want.abs().max()) + 1e-7)


def test_there_is_one_round() -> None:
    with pytest.raises(ValueError, match="one-shot prompts are of one round, got 7"):
        Rounds(one_shot=True)
