"""AugSeg's teacher: the averaged weights, the target it chooses, and what the student loses against it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sum.accumulation import apart, train_in_parts
from sum.core.losses import LossWeights, dice_loss, focal_loss
from sum.data.batches import Mixture, TrainBatch
from sum.data.views import StudentViews
from sum.engine import Loop, LoopOptions
from sum.errors import ConfigError
from sum.methods import METHODS
from sum.models.backbones import build_tiny
from sum.models.segmenter import BOX_FIRST, POSITIVE, Prompts, Segmenter
from sum.rounds import Rounds, train_rounds
from sum.semi_supervised import rounds_of
from sum.teacher import Teacher
from tests.data.test_augment import Pictures
from tests.test_engine import OPTIONS

STEPS = 4
WEIGHTS = LossWeights(iou=0.0)


def model(seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(build_tiny(side=32, channels=16), backbone="tiny")


def batch(step: int = 0) -> TrainBatch:
    """Two human images and two students' views, which take turns."""
    return Mixture([Pictures(), StudentViews(source=Pictures())], [1, 1], 4, 2, 7).batch(step)


def views_only(step: int = 0) -> TrainBatch:
    return Mixture([StudentViews(source=Pictures())], [1], 3, 2, 7).batch(step)


def loop_of(folder: Path, **changes: object) -> Loop:
    options = {**OPTIONS, "steps": STEPS, "lr": 1e-2, "images_per_batch": 4, "decay_steps": 0} | changes
    return Loop(model(), options=LoopOptions(**options), folder=folder)  # type: ignore[arg-type]


def test_the_teacher_is_the_average_after_every_step(tmp_path: Path) -> None:
    loop = loop_of(tmp_path)
    by_hand = {name: value.detach().clone() for name, value in loop.model.named_parameters()}
    rounds = rounds_of(METHODS["augseg"], Rounds(count=2), loop)
    assert rounds.views is not None
    assert rounds.views.relabel is not None
    teacher: Teacher = rounds.views.relabel.__self__  # type: ignore[attr-defined]
    seen = []

    def step(state: Loop, part: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        if state.step:
            decay = min(0.9, state.step / (9 + state.step))  # of the step before
            for name, value in state.model.named_parameters():
                by_hand[name] = decay * by_hand[name] + (1 - decay) * value.detach()
        for name, value in teacher.model.named_parameters():
            torch.testing.assert_close(value, by_hand[name], rtol=1e-5, atol=1e-7, msg=name)
            assert not value.requires_grad
            assert value.data_ptr() == state.average[name].data_ptr()  # no copy
        seen.append(state.step)
        assert isinstance(state.model, Segmenter)
        return train_in_parts(state.model, part, parts=1, rounds=rounds, generator=generator, backward=state.backward)

    loop.run(lambda start: (batch(t) for t in range(start, STEPS)), step, title="test")
    assert seen == list(range(STEPS))
    moved = [name for name, value in model().named_parameters() if not torch.equal(value, by_hand[name])]
    assert moved
    resumed = loop_of(tmp_path)
    other = Teacher(resumed.model, resumed.average, weights=WEIGHTS)  # type: ignore[arg-type]
    resumed.resume()
    for name, value in other.model.named_parameters():
        assert torch.equal(value, loop.average[name])


def test_frozen_weights_are_shared_and_the_student_is_not_the_teacher(tmp_path: Path) -> None:
    student = model()
    student.sam.image_encoder.requires_grad_(False)
    average = {n: p.detach() + 1 for n, p in student.named_parameters() if p.requires_grad}
    teacher = Teacher(student, average, weights=WEIGHTS)
    for name, value in teacher.model.named_parameters():
        wanted = average.get(name, dict(student.named_parameters())[name].detach())
        assert value.data_ptr() == wanted.data_ptr()
    assert all(value.requires_grad for value in student.sam.mask_decoder.parameters())
    assert teacher.model is not student


class Told(Segmenter):
    """A decoder that answers by a table: three masks for each mask of the batch."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(build_tiny(side=32, channels=16), backbone="tiny")
        self.logits, self.asked = logits, list[tuple[Tensor, Prompts, bool]]()

    def __deepcopy__(self, memo: dict[int, object]) -> Told:
        return self

    def decode(self, embedding, image_index, prompts, *, multimask, task=None):  # type: ignore[no-untyped-def,override]
        from sum.models.segmenter import Prediction

        assert task is None
        self.asked.append((image_index, prompts, multimask))
        return Prediction(self.logits, torch.zeros(self.logits.shape[:2]))


def test_the_target_is_the_output_closest_to_the_pseudo_label_cut_to_what_is_seen() -> None:
    part = views_only()
    count, side = len(part.mask), part.mask.shape[-1]
    g = torch.Generator().manual_seed(0)
    logits = F.interpolate(torch.randn(count, 3, 4, 4, generator=g), (16, 16), mode="bilinear") * 4
    logits[0] = -5.0  # nothing is answered
    told = Told(logits)
    teacher = Teacher(told, {}, weights=WEIGHTS)
    prompts = Prompts.from_boxes(torch.rand(count, 4, generator=g))
    found = teacher.relabel(part, prompts)
    ((index, asked, multimask),) = told.asked
    assert part.views is not None
    assert multimask
    assert torch.equal(index, part.views.index)
    assert torch.equal(asked.xy, prompts.xy)
    for n in range(count):
        hw = part.hw[part.image_index[n]].tolist()
        seen = part.views.visible[n, 0].clone()
        seen[hw[0] :], seen[:, hw[1] :] = False, False
        fine = F.interpolate(logits[n : n + 1], (side, side), mode="bilinear", align_corners=False)
        losses = []
        for k in range(3):
            args = fine[:, k : k + 1], part.mask[n : n + 1].float(), seen[None, None].float()
            losses.append(float(20 * focal_loss(*args) + dice_loss(*args)))
        best = (fine[0, int(np.argmin(losses))] > 0) & seen
        wanted = best if best.any() else part.mask[n, 0]
        assert torch.equal(found.mask[n, 0], wanted), n
    assert torch.equal(found.mask[0], part.mask[0])
    assert found.views is None
    for name in ("image", "certainty", "point", "image_index", "seed"):
        assert torch.equal(getattr(found, name), getattr(part, name))
    with pytest.raises(ValueError, match="students' views"):
        teacher.relabel(replace(part, views=None), prompts)


@pytest.mark.parametrize(("method", "labels"), [("augseg", {BOX_FIRST, POSITIVE}), ("augseg_box", {BOX_FIRST})])
def test_the_student_loses_by_the_best_of_three_against_the_teachers_masks(
    tmp_path: Path, method: str, labels: set[int]
) -> None:
    """Both are asked the same; 20 focal + Dice by hand, over every pixel of the image; no loss of the IoU head."""
    loop = loop_of(tmp_path)
    rounds = rounds_of(METHODS[method], Rounds(count=3), loop)
    assert rounds.views is not None
    asked: list[Prompts] = []
    relabelled: list[TrainBatch] = []
    real = rounds.views.relabel
    assert real is not None

    def relabel(part: TrainBatch, prompts: Prompts) -> TrainBatch:
        asked.append(prompts)
        relabelled.append(real(part, prompts))
        return relabelled[-1]

    part, student = views_only(), loop.model
    assert isinstance(student, Segmenter)
    log = train_rounds(
        student, part, rounds=replace(rounds.views, relabel=relabel), generator=torch.Generator(),
        backward=lambda loss: loss.backward(),
    )  # fmt: skip
    assert {int(label) for label in asked[0].label[:, 0]} <= labels
    assert rounds.views.box_odds == (1.0 if labels == {BOX_FIRST} else Rounds().box_odds)
    with torch.no_grad():
        answer = student.decode(student.encode(part.image, part.hw), part.image_index, asked[0], multimask=True).logits
    side, target = part.mask.shape[-1], relabelled[0]
    each = []
    for n in range(len(part.mask)):
        fine = F.interpolate(answer[n : n + 1], (side, side), mode="bilinear", align_corners=False)
        whole = torch.zeros(1, 1, side, side)
        hw = part.hw[part.image_index[n]].tolist()
        whole[..., : hw[0], : hw[1]] = 1
        every = [fine[:, k : k + 1] for k in range(3)]
        label = target.mask[n : n + 1].float()
        each.append(min(float(20 * focal_loss(f, label, whole) + dice_loss(f, label, whole)) for f in every))
    counts = torch.bincount(part.image_index).float()
    wanted = sum(loss / float(counts[i]) for loss, i in zip(each, part.image_index.tolist(), strict=True)) / len(counts)
    assert float(log["loss"]) == pytest.approx(wanted, rel=1e-4)
    assert float(log["loss_iou"]) == 0
    assert all(p.grad is None or not p.grad.any() for p in student.sam.mask_decoder.iou_prediction_head.parameters())


@pytest.mark.parametrize("parts", [1, 2])
def test_human_images_train_as_ever_beside_the_views(tmp_path: Path, parts: int) -> None:
    """The gradient of a mixed batch is that of its human half and of its views, each for its share of the images."""
    loop = loop_of(tmp_path)
    rounds = rounds_of(METHODS["augseg"], Rounds(count=3, task_prompt="off"), loop)
    assert rounds.views is not None
    student, whole = loop.model, batch()
    assert isinstance(student, Segmenter)
    options = {"generator": torch.Generator().manual_seed(0), "backward": lambda loss: loss.backward()}
    log = train_in_parts(student, whole, parts=parts, rounds=rounds, **options)  # type: ignore[arg-type]
    found = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad(set_to_none=True)
    own = []
    for images, how in (([0, 2], replace(rounds, views=None)), ([1, 3], rounds.views)):
        masks = [k for k, row in enumerate(whole.image_index.tolist()) if row in images]
        options["backward"] = lambda loss: (loss / 2).backward()
        own.append(train_rounds(student, whole.of_images(images, masks), rounds=how, **options))  # type: ignore[arg-type]
        assert whole.of_images(images, masks).views is None or how is rounds.views
        losses = torch.zeros(len(whole.mask)).index_copy(0, torch.tensor(masks), own[-1]["mask_losses"])
        torch.testing.assert_close(log["mask_losses"][masks], losses[masks], rtol=1e-4, atol=1e-5)
    for name, p in student.named_parameters():
        assert (p.grad is None) == (name not in found)
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=2e-6, msg=name)
    assert float(log["loss"]) == pytest.approx((float(own[0]["loss"]) + float(own[1]["loss"])) / 2, rel=1e-4)
    assert float(log["loss_consistency"]) == pytest.approx(float(own[1]["loss"]) / 2, rel=1e-4)


def test_groups_are_kept_apart_by_kind() -> None:
    assert apart([[0, 1, 2], [3, 4]], (1, 3, 4)) == [[0, 2], [1], [3, 4]]


def test_a_method_that_cannot_train_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"finetune\.optim\.ema"):
        rounds_of(METHODS["augseg_box"], Rounds(), loop_of(tmp_path, ema=0.0))
    frozen = loop_of(tmp_path)
    frozen.model.sam.image_encoder.requires_grad_(False)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="image encoder"):
        rounds_of(METHODS["u2pl"], Rounds(), frozen)
    assert set(rounds_of(METHODS["u2pl"], Rounds(), loop_of(tmp_path)).terms[0].bank.tensors) == {  # type: ignore[attr-defined]
        "bank.keys", "bank.count",
    }  # fmt: skip
