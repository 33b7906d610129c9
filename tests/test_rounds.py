"""The interactive rounds: what is prompted when, what is trained, and the laws of certainty."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sum.core.losses import LossWeights, dice_loss, focal_loss, mask_losses
from sum.data.batches import TrainBatch
from sum.models.backbones import BACKBONES, build_tiny
from sum.models.segmenter import BOX_FIRST, BOX_SECOND, PAD, POSITIVE, Prediction, Prompts, Segmenter
from sum.rounds import Rounds, correct, first_prompts, round_loss, train_rounds, valid_pixels


def square_batch(count: int = 6, *, loss_side: int = 64) -> TrainBatch:
    mask = torch.zeros(count, 1, loss_side, loss_side)
    for k in range(count):
        mask[k, 0, 8 + k : 30 + k, 12 : 40 + k] = 1
    valid = torch.zeros(1, 1, loss_side, loss_side)
    valid[..., : loss_side * 3 // 4, :] = 1
    return TrainBatch(
        image=torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8),
        hw=torch.tensor([[96, 128], [96, 128]]),
        image_index=torch.arange(count) % 2,
        mask=mask,
        certainty=valid.expand(count, -1, -1, -1).clone(),
        point=torch.full((count, 2), 30.0),
        task=torch.full((count,), 2),
    )


class Recorder(Segmenter):
    """A Segmenter that keeps what its decoder is asked."""

    def __init__(self, *, side: int = 128) -> None:
        super().__init__(build_tiny(side=side, channels=side // 2), backbone="tiny")
        self.asked: list[tuple[Prompts, bool, Tensor | None]] = []
        self.answers: list[Prediction] = []

    def decode(
        self, embedding: Tensor, image_index: Tensor, prompts: Prompts, *, multimask: bool, task: Tensor | None = None
    ) -> Prediction:
        self.asked.append((prompts, multimask, task))
        self.answers.append(super().decode(embedding, image_index, prompts, multimask=multimask, task=task))
        return self.answers[-1]


def play(rounds: Rounds, seed: int = 0) -> Recorder:
    torch.manual_seed(0)
    model = Recorder()
    train_rounds(
        model,
        square_batch(),
        rounds=rounds,
        generator=torch.Generator().manual_seed(seed),
        backward=lambda loss: loss.backward(),
    )
    return model


def test_seven_rounds_follow_the_paper() -> None:
    model = play(Rounds())
    assert len(model.asked) == 7
    assert [multimask for _, multimask, _ in model.asked] == [True] + [False] * 6
    assert [task is not None for _, _, task in model.asked] == [True] + [False] * 6
    assert [prompts.xy.shape[1] for prompts, _, _ in model.asked] == [
        2,
        3,
        4,
        5,
        6,
        7,
        7,
    ]  # the last round adds no point
    assert model.asked[0][0].logits is None
    for (prompts, _, _), before in zip(model.asked[2:], model.answers[1:], strict=False):
        assert prompts.logits is not None
        assert torch.equal(prompts.logits, before.logits)
        assert not prompts.logits.requires_grad


@pytest.mark.parametrize(
    ("task_prompt", "wanted"), [("off", [False] * 3), ("all", [True] * 3), ("first", [True, False, False])]
)
def test_task_prompt_rounds(task_prompt: str, wanted: list[bool]) -> None:
    model = play(Rounds(count=3, task_prompt=task_prompt))  # type: ignore[arg-type]
    assert [task is not None for _, _, task in model.asked] == wanted


def test_gradients_equal_one_backward_through_all_rounds() -> None:
    """The rounds release their graphs one by one; the same prompts asked again in one graph give the same gradients."""
    rounds = Rounds(count=3)
    stepwise = play(rounds)
    torch.manual_seed(0)
    whole, batch = Segmenter(BACKBONES["tiny"].build(), backbone="tiny"), square_batch()
    embedding = whole.encode(batch.image, batch.hw)
    total = torch.zeros(())
    for prompts, multimask, task in stepwise.asked:
        answer = whole.decode(embedding, batch.image_index, prompts, multimask=multimask, task=task)
        total = total + round_loss(answer, batch, rounds=rounds).total / rounds.count
    total.backward()
    compared = set()
    for (name, p), (_, q) in zip(stepwise.named_parameters(), whole.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)
            compared.add(name.split(".")[1] if "." in name else name)
    assert compared == {"image_encoder", "prompt_encoder", "mask_decoder", "task_prompt"}


def test_every_image_counts_the_same_however_many_masks_it_has() -> None:
    """One mask of a human image beside four pseudo-labels of another: the loss is the mean of the two images' own."""
    batch = replace(square_batch(5), image_index=torch.tensor([0, 1, 1, 1, 1]))
    answer = Prediction(torch.randn(5, 1, 64, 64), torch.rand(5, 1))
    both = round_loss(answer, batch, rounds=Rounds()).total
    alone = []
    for rows in (slice(0, 1), slice(1, 5)):
        part = {name: getattr(batch, name)[rows] for name in ("mask", "certainty", "point", "task")}
        own = replace(
            batch,
            image=batch.image[:1],
            hw=batch.hw[:1],
            image_index=torch.zeros(len(part["point"]), dtype=torch.int64),
            **part,
        )
        alone.append(round_loss(Prediction(answer.logits[rows], answer.iou[rows]), own, rounds=Rounds()).total)
    torch.testing.assert_close(both, torch.stack(alone).mean())


def test_first_prompts_are_boxes_and_points_at_the_wanted_odds() -> None:
    batch = square_batch(6)
    many = replace(
        batch,
        image_index=batch.image_index.repeat(200),
        **{
            name: getattr(batch, name).repeat(200, *[1] * (getattr(batch, name).ndim - 1))
            for name in ("mask", "certainty", "point", "task")
        },
    )
    prompts = first_prompts(many, side=128, rounds=Rounds(), seeds=torch.arange(1200))
    boxed = prompts.label[:, 0] == BOX_FIRST
    assert 0.45 < boxed.float().mean() < 0.55  # 1,200 fair coins: sd 0.014
    assert (prompts.label[boxed] == torch.tensor([BOX_FIRST, BOX_SECOND])).all()
    assert (prompts.label[~boxed] == torch.tensor([POSITIVE, PAD])).all()
    xy = (prompts.xy[~boxed, 0] / 2).long()
    assert (many.mask[~boxed, 0][torch.arange(len(xy)), xy[:, 1], xy[:, 0]] == 1).all()
    noise = (
        prompts.xy[boxed].view(-1, 4)
        - torch.tensor([24.0, 16.0, 79.0, 59.0])
        - torch.tensor([0.0, 2, 2, 2]) * (torch.arange(1200) % 6)[boxed, None]
    )
    assert noise.abs().max() <= 20 * 128 / 1024 + 1e-4


def test_points_never_fall_on_zero_certainty_and_the_backup_is_used_where_nothing_is_certain() -> None:
    batch = square_batch()
    certainty = batch.certainty.clone()
    certainty[:, :, :, :30] = 0
    certainty[3] = 0
    batch = replace(batch, certainty=certainty)
    generator = torch.Generator().manual_seed(0)
    for turn in range(20):
        seeds = torch.arange(6) + 6 * turn
        prompts = first_prompts(batch, side=128, rounds=Rounds(box_odds=0.0), seeds=seeds)
        prompts = correct(
            prompts,
            torch.full_like(batch.mask, -1.0),
            batch,
            logits=torch.zeros(6, 1, 64, 64),
            side=128,
            chance=torch.rand(6, generator=generator, dtype=torch.float64),
        )
        for point in (prompts.xy[:, 0], prompts.xy[:, 1]):
            assert (point[[0, 1, 2, 4, 5], 0] >= 60).all()
            assert point[3].tolist() == [30.0, 30.0]


def test_correction_labels_follow_the_target() -> None:
    batch = square_batch()
    everywhere = torch.full_like(batch.mask, 1.0)
    start = first_prompts(batch, side=128, rounds=Rounds(box_odds=1.0), seeds=torch.arange(6))
    for fine, label in ((everywhere, 0), (-everywhere, 1)):
        chance = torch.linspace(0, 0.9, 6, dtype=torch.float64)
        prompts = correct(start, fine, batch, logits=torch.zeros(6, 1, 64, 64), side=128, chance=chance)
        assert (prompts.label[:, 0] == label).all()


def test_only_the_best_of_three_is_trained() -> None:
    batch, logits = square_batch(), torch.randn(6, 3, 64, 64, requires_grad=True)
    scores = torch.rand(6, 3, requires_grad=True)
    found = round_loss(Prediction(logits, scores), batch, rounds=Rounds())
    found.total.backward()
    wanted = mask_losses(logits.detach(), batch.mask, batch.certainty, LossWeights()).argmin(1)
    assert logits.grad is not None
    assert scores.grad is not None
    trained = logits.grad.abs().amax((2, 3)) > 0
    assert torch.equal(trained, torch.nn.functional.one_hot(wanted, 3).bool())
    assert torch.equal(scores.grad != 0, trained)
    assert torch.equal(found.best.logits[:, 0], logits[torch.arange(6), wanted])


def test_the_parts_of_the_loss_are_those_of_the_plain_formulas() -> None:
    batch, weights = square_batch(), LossWeights(focal=3.0, dice=2.0, iou=0.5)
    logits, scores = torch.randn(6, 1, 64, 64), torch.rand(6, 1)
    found = round_loss(Prediction(logits, scores), batch, rounds=Rounds(weights=weights))
    label = (batch.mask, batch.certainty)
    masks = 3 * focal_loss(logits, *label) + 2 * dice_loss(logits, *label)
    share = 1 / (torch.bincount(batch.image_index)[batch.image_index] * len(batch.image))
    quality = 0.5 * (scores[:, 0] - found.iou) ** 2
    parts = found.parts(share)
    torch.testing.assert_close(parts["loss_mask"], (share * masks).sum())
    torch.testing.assert_close(parts["loss_iou"], (share * quality).sum())
    torch.testing.assert_close(parts["mask_losses"], masks + quality)
    torch.testing.assert_close(parts["loss_mask"] + parts["loss_iou"], parts["loss"])


def test_the_iou_target_is_cut_at_logit_zero_and_ignores_padding() -> None:
    batch = square_batch(1)
    logits = torch.where(batch.mask > 0, 0.2, -0.2)  # below probability 0.55: a cut at 0.5 logits would find nothing
    logits[..., 48:, :] = 9.0  # padding
    assert round_loss(Prediction(logits, torch.zeros(1, 1)), batch, rounds=Rounds()).iou.tolist() == [1.0]
    assert valid_pixels(batch)[..., 48:, :].sum() == 0


def test_uncertain_pixels_give_no_gradient() -> None:
    batch = square_batch()
    certainty = batch.certainty.clone()
    certainty[..., 10:20, 10:20] = 0
    logits = torch.randn(6, 1, 64, 64, requires_grad=True)
    answer = Prediction(logits, torch.zeros(6, 1))
    round_loss(answer, replace(batch, certainty=certainty), rounds=Rounds()).total.backward()
    assert logits.grad is not None
    assert logits.grad[..., 10:20, 10:20].abs().max() == 0
    assert logits.grad[..., :10, :].abs().max() > 0


def test_permuting_the_masks_permutes_the_results_of_a_round() -> None:
    batch, order = square_batch(), torch.tensor([4, 0, 5, 2, 1, 3])
    answer = Prediction(torch.randn(6, 3, 64, 64), torch.rand(6, 3))
    parts = {name: getattr(batch, name)[order] for name in ("image_index", "mask", "certainty", "point", "task")}
    found = round_loss(answer, batch, rounds=Rounds())
    moved = round_loss(Prediction(answer.logits[order], answer.iou[order]), replace(batch, **parts), rounds=Rounds())
    torch.testing.assert_close(moved.total, found.total)
    assert torch.equal(moved.best.logits, found.best.logits[order])
    for name in ("fine", "iou", "mask", "quality"):
        assert torch.equal(getattr(moved, name), getattr(found, name)[order])
