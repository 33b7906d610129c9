"""A batch in pieces gives the gradient of the whole batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sum.accumulation import even_groups, split_images, train_in_parts
from sum.models.backbones import build_tiny
from sum.models.segmenter import Segmenter
from sum.rounds import Rounds
from tests.models.test_parts import batch

ROUNDS = Rounds(count=4)  # boxes and points drawn by lot


def three_images():
    plain = batch()
    image = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    index = torch.tensor([0, 1, 1, 2, 2, 2])
    parts = {name: getattr(plain, name).repeat(2, *[1] * (getattr(plain, name).ndim - 1)) for name in
             ("mask", "certainty", "point", "task")}  # fmt: skip
    return replace(plain, image=image, hw=torch.full((3, 2), 64), image_index=index, seed=torch.arange(6), **parts)


def gradients(parts: int):
    torch.manual_seed(0)
    model = Segmenter(build_tiny(side=64, channels=32), backbone="tiny")
    log = train_in_parts(
        model, three_images(), parts=parts, rounds=ROUNDS, generator=torch.Generator().manual_seed(0),
        backward=lambda loss: loss.backward(),
    )  # fmt: skip
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, log


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_pieces_add_up_to_the_whole_batch(parts: int) -> None:
    (whole, log), (pieces, own) = gradients(1), gradients(parts)
    assert whole.keys() == pieces.keys()
    for name, want in whole.items():
        torch.testing.assert_close(pieces[name], want, rtol=1e-3, atol=2e-6, msg=name)
    assert own.keys() == log.keys()
    assert float(own["mask_chunk"]) == pytest.approx({2: 3, 3: 2, 9: 2}[parts])  # masks of a piece, in the mean
    for name in ("loss", "loss_mask", "loss_iou", "iou_first", "iou_last", "out_of_memory", "mask_losses"):
        torch.testing.assert_close(own[name], log[name].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("parts", "images"), [(1, [3]), (2, [2, 1]), (3, [1, 1, 1]), (7, [1, 1, 1])])
def test_every_image_and_mask_is_in_one_piece(parts: int, images: list[int]) -> None:
    plain = three_images()
    named = replace(plain, image_ids=tuple("abc"), mask_ids=tuple("abcdef"))
    rows, pieces = zip(*split_images(named, even_groups(3, parts)), strict=True)
    assert [len(piece.image) for piece in pieces] == images
    assert torch.equal(torch.cat([piece.image for piece in pieces]), plain.image)
    assert torch.equal(torch.cat([piece.mask for piece in pieces]), plain.mask)
    assert [n for own in rows for n in own] == [*range(6)]
    assert "".join(name for piece in pieces for name in piece.image_ids) == "abc"
    assert "".join(name for piece in pieces for name in piece.mask_ids) == "abcdef"
    assert all(piece.image_index[0] == 0 and piece.image_index[-1] == len(piece.image) - 1 for piece in pieces)
