"""The benchmark's rounds, played by a scripted model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from sum.core.first_prompts import boundary_point, first_draw, random_point
from sum.core.geometry import logits_to_image, resized_hw
from sum.core.metrics import boundary_iou, iou
from sum.models import interact
from sum.models.interact import Answer, Mask, Protocol, play
from sum.models.segmenter import PAD, TASKS, Prediction, Prompts
from sum.models.stopwatch import Stopwatch

HW = (24, 48)  # of the scripted tests; side 32 makes the frame 16 x 32
SIDE, LOW = 32, 16


@dataclass
class Call:
    """What the model was asked."""

    prompts: Prompts
    multimask: bool
    task: list[int] | None
    said: Prediction


@dataclass(eq=False)
class Scripted:
    """Stands in for a Segmenter: `script(call number, count, outputs)` gives the logits."""

    script: Callable[[int, int, int], Tensor]
    iou: list[float] = field(default_factory=lambda: [0.2, 0.9, 0.4])
    side: int = SIDE
    calls: list[Call] = field(default_factory=list)

    def decode(
        self, embedding: Tensor, image_index: Tensor, prompts: Prompts, *, multimask: bool, task: Tensor | None = None
    ) -> Prediction:
        assert torch.is_inference_mode_enabled()
        assert len(image_index) == len(prompts.xy)
        outputs = 3 if multimask else 1
        logits = self.script(len(self.calls), len(image_index), outputs)
        said = Prediction(logits, torch.tensor(self.iou[:outputs]).expand(len(image_index), outputs))
        self.calls.append(Call(prompts, multimask, None if task is None else task.tolist(), said))
        return said


def low_logits(mask: Mask) -> Tensor:
    """Logits `[L, L]` whose enlargement, cut at 0, is roughly `mask` `[H, W]`."""
    part = torch.from_numpy(mask)[None, None].float()
    height, width = resized_hw(*mask.shape, SIDE)
    small = torch.nn.functional.interpolate(part, (height * LOW // SIDE, width * LOW // SIDE), mode="area")[0, 0]
    frame = torch.full((LOW, LOW), -4.0)
    frame[: small.shape[0], : small.shape[1]] = small * 8 - 4
    return frame


def to_mask(low: Tensor, hw: tuple[int, int] = HW, side: int = SIDE) -> Mask:
    """The reference way from logits `[L, L]` to `[H, W]` bool."""
    return (logits_to_image(low[None, None], resized=resized_hw(*hw, side), hw=hw, side=side) > 0)[0, 0].numpy()


def block(y0: int, y1: int, x0: int, x1: int, hw: tuple[int, int] = HW) -> Mask:
    mask = np.zeros(hw, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def run(model: object, truths: list[Mask], *, task: int = 0, **options: object) -> list[Answer]:
    embedding = torch.zeros(1, 4, 2, 2)
    return list(play(model, embedding, truths, task=task, protocol=Protocol(**options)))  # type: ignore[arg-type]


def noise(number: int, count: int, outputs: int) -> Tensor:
    """Smooth blobs, other ones in every call."""
    grid = torch.randn(count, outputs, 5, 5, generator=torch.Generator().manual_seed(number))
    return torch.nn.functional.interpolate(grid, (LOW, LOW), mode="bilinear")


def brute_click(prediction: Mask, truth: Mask) -> tuple[int, int, int] | None:
    """By definition: the error pixel farthest from everything that is not its own kind of error."""
    best: tuple[int, int, int, int] | None = None
    for label, region in ((1, truth & ~prediction), (0, prediction & ~truth)):
        padded = np.pad(region, 1)
        outside = np.argwhere(~padded)
        for y, x in np.argwhere(region):
            depth = int(((outside - (y + 1, x + 1)) ** 2).sum(1).min())
            if best is None or depth > best[0]:
                best = (depth, int(x), int(y), label)
    return best and best[1:]


TRUTHS = [block(2, 12, 4, 30), block(10, 24, 20, 48)]


def test_oracle_is_the_best_of_three_at_the_original_size() -> None:
    plan = [block(0, 6, 0, 8), TRUTHS[0], block(2, 12, 4, 20)]
    three = torch.stack([low_logits(mask) for mask in plan])[None]
    model = Scripted(lambda _, count, outputs: three[:, :outputs].expand(count, -1, -1, -1), iou=[0.9, 0.1, 0.3])
    answers = {answer.output: answer for answer in run(model, TRUTHS[:1], rounds=1)}
    ious = [iou(to_mask(low), TRUTHS[0]) for low in three[0]]
    assert answers["oracle"].iou == max(ious) == ious[1]
    assert answers["oracle"].predicted_iou == pytest.approx(0.1)
    assert answers["confident"].iou == ious[0]
    assert answers["confident"].predicted_iou == pytest.approx(0.9)
    np.testing.assert_array_equal(answers["oracle"].prediction, to_mask(three[0, 1]))
    assert answers["oracle"].boundary_iou == boundary_iou(to_mask(three[0, 1]), TRUTHS[0])


def test_clicks_follow_the_definition_and_each_output_has_its_own() -> None:
    answers = run(Scripted(noise), TRUTHS, rounds=4)
    last: dict[tuple[str, int], Mask] = {}
    for answer in answers:
        truth = TRUTHS[answer.mask]
        before = last.get((answer.output, answer.mask), np.zeros(HW, dtype=bool))
        assert answer.click == brute_click(before, truth)
        last[answer.output, answer.mask] = answer.prediction
    second = [answer.click for answer in answers if answer.round == 2]
    assert second[:2] != second[2:]


def test_prompts_task_and_feedback_of_every_call() -> None:
    model = Scripted(noise)
    answers = run(model, TRUTHS, task=TASKS["part"], rounds=3)
    assert [call.multimask for call in model.calls] == [True] + [False] * 5
    assert [call.task for call in model.calls] == [[3, 3], [3, 3], None, None, None, None]
    three, single, *_ = model.calls
    assert three.prompts.logits is None
    assert single.prompts.logits is None
    for first, later in ((three, model.calls[2::2]), (single, model.calls[3::2])):
        output = "oracle" if first.multimask else "single"
        mine = [answer for answer in answers if answer.output == output]
        for number, call in enumerate(later, start=2):
            fed = call.prompts.logits
            assert fed is not None
            said = [answer.logits for answer in mine if answer.round == number - 1]
            assert torch.equal(fed, torch.stack(said))
            clicks = [answer.click for answer in mine if answer.round <= number and answer.mask == 0]
            pixels = (call.prompts.xy[0] * HW[1] / SIDE).round().int().tolist()
            asked = zip(pixels, call.prompts.label[0].tolist(), strict=True)
            assert sorted((*pixel, label) for pixel, label in asked if label != PAD) == sorted(
                click for click in clicks if click
            )


def test_perfect_masks_keep_their_answer_and_are_not_asked_again() -> None:
    good = low_logits(TRUTHS[0])
    truths = [to_mask(good), TRUTHS[1]]

    def script(number: int, count: int, outputs: int) -> Tensor:
        logits = noise(number, count, outputs)
        if count == 2:
            logits[0] = good
        return logits

    model = Scripted(script)
    answers = run(model, truths, rounds=3)
    assert [len(call.prompts.xy) for call in model.calls] == [2, 2, 1, 1, 1, 1]
    mine = [answer for answer in answers if answer.mask == 0 and answer.output == "oracle"]
    assert [answer.iou for answer in mine] == [1, 1, 1]
    assert [answer.click is None for answer in mine] == [False, True, True]
    other = [answer for answer in answers if answer.mask == 1 and answer.output == "oracle"]
    assert all(answer.click for answer in other)


def test_everything_perfect_asks_nothing_more() -> None:
    good = low_logits(TRUTHS[0])
    model = Scripted(lambda _, count, outputs: good.expand(count, outputs, -1, -1))
    answers = run(model, [to_mask(good)], rounds=6)
    assert len(model.calls) == 2
    assert len(answers) == 3 + 2 * 5


def test_box_first() -> None:
    model = Scripted(noise)
    answers = run(model, TRUTHS, rounds=2, first_prompt="box")
    first = model.calls[0].prompts
    scale = SIDE / HW[1]
    assert first.xy[0].flatten().tolist() == pytest.approx([4 * scale, 2 * scale, 29 * scale, 11 * scale])
    assert first.label.tolist() == [[2, 3], [2, 3]]
    assert [answer.click for answer in answers if answer.round == 1] == [None] * 6
    assert model.calls[2].prompts.label.shape == (2, 3)
    assert model.calls[2].prompts.label[:, 1:].tolist() == [[2, 3], [2, 3]]


def test_boundary_first_then_the_middle_of_the_error() -> None:
    answers = run(Scripted(noise), TRUTHS, rounds=3, first_prompt="boundary")
    last: dict[tuple[str, int], Mask] = {}
    for answer in answers:
        truth = TRUTHS[answer.mask]
        point = boundary_point(truth)
        assert point is not None
        before = last.get((answer.output, answer.mask))
        assert answer.click == ((*point, 1) if before is None else brute_click(before, truth))
        last[answer.output, answer.mask] = answer.prediction


@pytest.mark.parametrize("batch_masks", [1, 2, 5])
def test_a_random_first_click_is_its_masks_own(batch_masks: int) -> None:
    truths = [*TRUTHS, TRUTHS[0], block(0, 24, 0, 48), TRUTHS[1]]
    ids = [f"set/image#{number}" for number in range(5)]
    want = {mask_id: random_point(truth, first_draw(3, mask_id)) for mask_id, truth in zip(ids, truths, strict=True)}
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1]):
        protocol = Protocol(rounds=2, first_prompt="random", prompt_seed=3, batch_masks=batch_masks)
        part, names = [truths[k] for k in order], [ids[k] for k in order]
        answers = list(play(Scripted(noise), torch.zeros(1, 4, 2, 2), part, task=0, protocol=protocol, ids=names))  # type: ignore[arg-type]
        for answer in answers:
            if answer.round == 1:
                assert answer.click == (*want[names[answer.mask]], 1)  # type: ignore[misc]
            before = [a for a in answers if (a.mask, a.output, a.round) == (answer.mask, answer.output, 1)]
            if answer.round == 2:
                assert answer.click == brute_click(before[0].prediction, part[answer.mask])
    assert len(set(want.values())) > 3


def test_random_wants_an_id_of_every_mask() -> None:
    with pytest.raises(ValueError, match="2 masks, 0 ids"):
        run(Scripted(noise), TRUTHS, first_prompt="random")


def test_the_models_time_is_of_decoder_and_copies_and_of_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of its own: the decoder takes 1 s, bringing one output to the CPU 10 s, a score 1000 s."""
    clock = [0.0]

    def taking(seconds: float, call: Callable[..., object]) -> Callable[..., object]:
        def slow(*args: object, **options: object) -> object:
            clock[0] += seconds
            return call(*args, **options)

        return slow

    model, watch, good = Scripted(noise), Stopwatch(clock=lambda: clock[0]), low_logits(TRUTHS[0])
    monkeypatch.setattr(interact, "logits_to_image", taking(10, logits_to_image))
    monkeypatch.setattr(interact, "iou", taking(1000, iou))
    monkeypatch.setattr(model, "decode", taking(1, model.decode))

    def script(number: int, count: int, outputs: int) -> Tensor:
        logits = noise(number, count, outputs)
        logits[0] = good if count == 2 else logits[0]
        return logits

    model.script = script
    truths = [to_mask(good), TRUTHS[1]]
    list(play(model, torch.zeros(1, 4, 2, 2), truths, task=0, protocol=Protocol(rounds=3), watch=watch))  # type: ignore[arg-type]
    asked = [("decode", 2)] * 2 + [("redraw", 2)] + [("decode", 1)] * 4
    assert [(lap.step, lap.asked) for lap in watch.laps] == asked
    assert [lap.seconds for lap in watch.laps] == [1 + 3 * 10, 1 + 10, 2 * 10] + [1 + 10] * 4


def test_rows_of_every_mask_round_and_output() -> None:
    answers = run(Scripted(noise), TRUTHS * 2 + TRUTHS[:1], rounds=2, batch_masks=2)
    seen = [(answer.mask, answer.round, answer.output) for answer in answers]
    want = {(mask, number, output) for mask in range(5) for number in (1, 2) for output in ("oracle", "single")}
    assert set(seen) == want | {(mask, 1, "confident") for mask in range(5)}
    assert len(set(seen)) == len(seen)


def test_empty_mask_is_refused_by_number() -> None:
    with pytest.raises(ValueError, match="mask 1 of 2 is empty"):
        run(Scripted(noise), [TRUTHS[0], np.zeros(HW, dtype=bool)])
