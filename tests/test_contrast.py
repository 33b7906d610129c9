"""U2PL's term: what is reliable, what pushes away, what the bank keeps; and its gradient beside that of the rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sum.accumulation import train_in_parts
from sum.contrast import ContrastOptions, KeyBank, PixelContrast, regions
from sum.core.chance import uniform
from sum.data.batches import TrainBatch
from sum.engine import Loop, LoopOptions
from sum.errors import CheckpointError
from sum.methods import METHODS
from sum.models.backbones import build_tiny
from sum.models.mask_chunk import MaskChunk
from sum.models.segmenter import Segmenter
from sum.rounds import Rounds, image_shares
from sum.semi_supervised import rounds_of
from tests.core.test_contrast import by_loops
from tests.models.test_parts import small
from tests.test_accumulation import three_images
from tests.test_engine import OPTIONS as OPTIONS_OF_LOOP

OPTIONS = ContrastOptions(anchors=6, negatives=5, keys=2, bank=8)


def bank(channels: int = 32) -> KeyBank:
    return KeyBank(4, size=OPTIONS.bank, channels=channels, device=torch.device("cpu"))


def doubtful() -> TrainBatch:
    """Six masks of three images, 32 px on a grid of 8: some have no certain position of the object."""
    plain = three_images()
    certainty = torch.ones(6, 1, 32, 32)
    certainty[0] = 0.1
    certainty[1, ..., :12] = 0.3
    hw = torch.tensor([[64, 64], [64, 64], [48, 64]])
    certainty[3:, :, 24:] = 0
    return replace(plain, certainty=certainty, hw=hw, task=torch.tensor([0, 1, 1, 0, 0, 0]))


def test_regions_are_told_cell_by_cell() -> None:
    batch = doubtful()
    anchor, background = regions(batch, grid=(8, 8), theta=0.6)
    for n in range(6):
        height = int(batch.hw[batch.image_index[n], 0]) // 2
        for cell in range(64):
            rows, columns = slice(4 * (cell // 8), 4 * (cell // 8) + 4), slice(4 * (cell % 8), 4 * (cell % 8) + 4)
            cover = float(batch.mask[n, 0, rows, columns].float().mean())
            sure = float(batch.certainty[n, 0, rows, columns].mean())
            assert bool(anchor[n, cell]) == (cover > 0.5 and sure > 0.6)
            assert bool(background[n, cell]) == (cover == 0 and 4 * (cell // 8) + 4 <= height)
    assert not anchor[0].any()
    assert anchor[1:].any(1).all()
    assert background[0].any()


def test_a_bank_is_first_in_first_out_and_bounded() -> None:
    kept, lists = bank(channels=1), {row: list[float]() for row in range(4)}
    for step in range(9):
        keys = torch.arange(6.0).view(3, 2, 1) + 10 * step
        task, good = torch.tensor([step % 2, 1, 2]), torch.tensor([True, step % 3 > 0, True])
        kept.put(keys, task, good)
        for own, row, fit in zip(keys, task.tolist(), good.tolist(), strict=True):
            lists[row] = (lists[row] + own.flatten().tolist() * fit)[-OPTIONS.bank :]
        stored, there = kept.of_tasks(torch.arange(4))
        for row, wanted in lists.items():
            assert sorted(stored[row, there[row], 0].tolist()) == wanted
    assert kept.keys.shape == (4, 8, 1)
    assert there.sum(1).tolist() == [8, 8, 8, 0]


def loss_by_loops(embedding: Tensor, batch: TrainBatch, seeds: Tensor, stored: dict[int, Tensor]) -> list[float]:
    """Each mask's loss: who may be drawn is listed, and the same chances draw from the lists."""
    anchor, background = regions(batch, grid=(8, 8), theta=OPTIONS.theta)
    flat = embedding.detach().flatten(2).transpose(1, 2)
    chances = uniform(seeds, start=1 << 12, count=OPTIONS.anchors * (1 + OPTIONS.negatives))
    found = []
    for n, image in enumerate(batch.image_index.tolist()):
        inside, outside = flat[image][anchor[n]], flat[image][background[n]]
        keys = torch.cat([outside, stored.get(int(batch.task[n]), outside[:0])])
        if not len(inside) or not len(keys):
            found.append(0.0)
            continue
        first, rest = chances[n, : OPTIONS.anchors], chances[n, OPTIONS.anchors :]
        anchors = inside[[int(c * len(inside)) for c in first.tolist()]]
        index = torch.tensor([int(c * len(keys)) for c in rest.tolist()]).view(1, OPTIONS.anchors, -1)
        found += by_loops(anchors[None], inside.mean(0)[None], keys[None], index, OPTIONS.temperature)
    return found


def test_the_term_is_the_loss_of_each_mask_by_its_share() -> None:
    batch, kept = doubtful(), bank()
    g = torch.Generator().manual_seed(0)
    stored = {0: torch.randn(4, 32, generator=g), 1: torch.randn(2, 32, generator=g)}
    kept.put(stored[0].view(2, 2, 32), torch.tensor([0, 0]), torch.tensor([True, True]))
    kept.put(stored[1].view(1, 2, 32), torch.tensor([1]), torch.tensor([True]))
    embedding = torch.randn(3, 32, 8, 8, generator=g, requires_grad=True)
    seeds, share = torch.arange(6) + 40, image_shares(batch.image_index, images=3)
    term = PixelContrast(kept, options=replace(OPTIONS, weight=0.7))
    total = term.loss(embedding, batch, seeds=seeds, share=share)
    wanted = torch.tensor(loss_by_loops(embedding, batch, seeds, stored))
    assert wanted[0] == 0
    assert (wanted[1:] > 0).all()
    torch.testing.assert_close(total.detach(), 0.7 * (share * wanted).sum(), rtol=1e-5, atol=1e-6)
    total.backward()
    assert embedding.grad is not None
    anchor, _ = regions(batch, grid=(8, 8), theta=OPTIONS.theta)
    drawn = torch.zeros(3, 64, dtype=torch.bool)
    for n, image in enumerate(batch.image_index.tolist()):
        drawn[image] |= anchor[n]
    assert not embedding.grad.flatten(2).abs().sum(1)[~drawn].any()  # keys are constants


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_image_leaves_keys_that_are_not_of_its_first_mask_in_the_order_of_the_batch(ranks: int) -> None:
    """With two processes the second has the same images here, and all come in turn."""
    batch, kept = doubtful(), bank()
    embedding = torch.randn(3, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    term = PixelContrast(kept, options=OPTIONS, ranks=ranks, gather=lambda own: torch.cat([own] * ranks))
    seeds = torch.arange(6)
    term.remember(embedding, batch, seeds=seeds)
    assert not kept.count.any()
    term.end_step()
    assert kept.count.tolist() == [ranks * 4, ranks * 2, 0, 0]
    _, background = regions(batch, grid=(8, 8), theta=OPTIONS.theta)
    flat = embedding.flatten(2).transpose(1, 2)
    first = [0, 1, 3]  # of the three images
    expected = {0: [0, 2], 1: [1]}
    for row, images in expected.items():
        order = [image for image in images for _ in range(ranks)]
        for place, image in enumerate(order):
            for key in kept.keys[row, 2 * place : 2 * place + 2]:
                allowed = flat[image][background[first[image]]]
                assert (allowed == key).all(1).any()


def gradients(parts: int, chunk: int | None, options: ContrastOptions | None) -> tuple[Segmenter, dict, KeyBank]:
    torch.manual_seed(0)
    model, kept = Segmenter(build_tiny(side=64, channels=32), backbone="tiny"), bank()
    terms = (PixelContrast(kept, options=options),) if options else ()
    log = train_in_parts(
        model, doubtful(), parts=parts, rounds=Rounds(count=2, terms=terms), generator=torch.Generator().manual_seed(0),
        backward=lambda loss: loss.backward(), chunk=MaskChunk(chunk),
    )  # fmt: skip
    return model, log, kept


def test_its_gradient_joins_that_of_the_rounds() -> None:
    """The encoder's gradient is the rounds' own plus that of the term alone, made here by one backward pass."""
    (both, log, _), (plain, own, _) = gradients(1, None, OPTIONS), gradients(1, None, None)
    batch = doubtful()
    torch.manual_seed(0)
    alone = Segmenter(build_tiny(side=64, channels=32), backbone="tiny")
    share = image_shares(batch.image_index, images=3)
    term = PixelContrast(bank(), options=OPTIONS)
    loss = term.loss(alone.encode(batch.image, batch.hw), batch, seeds=torch.arange(6), share=share)
    loss.backward()
    assert float(log["loss_contrast"]) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert float(log["loss"]) == pytest.approx(float(own["loss"] + loss.detach()), rel=1e-5)
    for (name, p), (_, q), (_, r) in zip(
        both.named_parameters(), plain.named_parameters(), alone.named_parameters(), strict=True
    ):
        if p.grad is not None and q.grad is not None:
            wanted = q.grad if r.grad is None else q.grad + r.grad
            torch.testing.assert_close(p.grad, wanted, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("parts", "chunk"), [(1, 2), (2, 1)])
def test_pieces_and_turns_learn_and_remember_the_same(parts: int, chunk: int | None) -> None:
    (whole, log, kept), (pieces, own, other) = gradients(1, None, OPTIONS), gradients(parts, chunk, OPTIONS)
    for (name, p), (_, q) in zip(whole.named_parameters(), pieces.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None and q.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=2e-6, msg=name)
    assert torch.equal(kept.count, other.count)
    torch.testing.assert_close(kept.keys, other.keys, rtol=1e-5, atol=1e-6)
    for name in ("loss", "loss_contrast"):
        torch.testing.assert_close(own[name], log[name], rtol=1e-5, atol=1e-6)


def test_keys_that_are_not_finite_stay_out() -> None:
    batch, kept = doubtful(), bank()
    embedding = torch.zeros(3, 32, 8, 8)
    embedding[0] = float("nan")
    term = PixelContrast(kept, options=OPTIONS)
    term.remember(embedding, batch, seeds=torch.arange(6))
    term.end_step()
    assert kept.count.tolist() == [2, 2, 0, 0]  # of images 1 and 2
    assert bool(kept.keys.isfinite().all())


def test_the_bank_comes_back_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    def loop() -> tuple[Loop, PixelContrast]:
        made = Loop(small(), options=LoopOptions(**OPTIONS_OF_LOOP), folder=tmp_path)  # type: ignore[arg-type]
        (term,) = rounds_of(METHODS["u2pl"], Rounds(), made).terms
        assert isinstance(term, PixelContrast)
        return made, term

    first, term = loop()
    term.remember(torch.randn(3, 32, 8, 8), doubtful(), seeds=torch.arange(6))
    term.end_step()
    first.step = 3
    first.save()
    second, other = loop()
    assert not other.bank.count.any()
    second.resume()
    for name, value in term.bank.tensors.items():
        assert torch.equal(other.bank.tensors[name], value)
    assert other.bank.count.tolist() == [32, 16, 0, 0]
    without = Loop(small(), options=LoopOptions(**OPTIONS_OF_LOOP), folder=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"'more\.bank\.(keys|count)' is not as this model has it"):
        without.resume()
