"""The benchmark's game on one image (paper appendix B.3): click, look at the mask, click where it is most wrong.

Nothing is drawn by chance but a `random` first click, by its mask's id; nothing is read from disk. Clicks, masks and
scores live at the original size; only prompts and logits are taken to the model frame and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sum.core.clicks import next_click
from sum.core.first_prompts import FIRST_POINTS, FIRST_PROMPTS, first_draw
from sum.core.geometry import boxes_to_model, logits_to_image, mask_to_box, points_to_model, resized_hw
from sum.core.metrics import boundary_iou, iou
from sum.models.segmenter import POSITIVE, Prediction, Prompts, Segmenter
from sum.models.stopwatch import Stopwatch

Mask = NDArray[np.bool_]
FirstPrompt = Literal["point", "box", "boundary", "random"]  # FIRST_PROMPTS
Click = tuple[int, int, int]  # x, y, label: 1 on the object, 0 off it

OUTPUTS: dict[str, str] = {
    "oracle": "after the first prompt the one of three closest to the truth, then the single-mask output",
    "single": "the single-mask output in every round, with clicks and feedback of its own",
    "confident": "after the first prompt the one of three the model predicts to be best; no further rounds",
}
PIXELS = 1 << 25  # of logits enlarged at once: 128 MB


@dataclass(frozen=True, slots=True)
class Protocol:
    """The choices a number depends on."""

    rounds: int = 6
    first_prompt: FirstPrompt = "point"
    boundary_ratio: float = 0.02  # width of the boundary band, share of the image diagonal
    batch_masks: int = 64  # prompts a decoder call
    prompt_seed: int = 0  # of `random`


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What one kind of output was for one mask after one round."""

    mask: int  # which of the call's masks
    round: int  # 1, 2, ...
    output: str  # a name of OUTPUTS
    click: Click | None  # the point added in this round; None for a box, and where nothing was wrong any more
    prediction: Mask  # [H, W]
    logits: Tensor  # [1, L, L] float32, model frame; on the model's device
    iou: float
    boundary_iou: float
    predicted_iou: float  # the model's own opinion


def choices(protocol: Protocol, *, prompts: Sequence[str]) -> dict[str, str]:
    """The rules of the games with these first prompts in words, for whoever compares numbers."""
    return {
        **{f"first prompt {name}": FIRST_PROMPTS[name] for name in prompts},
        "later prompts": "a click on the pixel of the missed or added region farthest from its edge: exact "
        "Euclidean distance, beyond the image is outside, ties go to the first pixel in reading order",
        "feedback": "the logits of the round before, without clipping",
        "task prompt": "the task of the data set, in the first round only",
        **{f"output {name}": rule for name, rule in OUTPUTS.items()},
        "mask": "logits brought to the original size (bilinear, as SAM does) and cut at 0",
        "IoU": "of whole masks at the original size; two empty masks agree (1)",
        "boundary IoU": f"of the inner boundary bands, {protocol.boundary_ratio:.1%} of the image diagonal wide, at "
        "least 1 px; the image border counts as boundary",
        "solved masks": "a mask without a wrong pixel keeps its answer in the remaining rounds",
    }


@torch.inference_mode()
def encode_frame(model: Segmenter, frame: NDArray[np.uint8], hw: tuple[int, int]) -> Tensor:
    """Image embedding `[1, C, h, w]` of a padded model frame `[S, S, 3]` of which hw (height, width) is image."""
    device = model.task_prompt.device
    image = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).contiguous()[None].to(device)
    return model.encode(image, torch.tensor([hw], device=device))


def play(
    model: Segmenter,
    embedding: Tensor,
    truths: Sequence[Mask],
    *,
    task: int,
    protocol: Protocol,
    ids: Sequence[str] = (),
    watch: Stopwatch | None = None,
) -> Iterator[Answer]:
    """Segment every mask of one image by simulated prompts, for all rounds and outputs.

    embedding `[1, C, h, w]` of the image; truths: bool `[H, W]` at the original size, none empty; task: row of the task
    prompt, added in the first round only; ids: of the masks, what a `random` first click is drawn by; watch: takes the
    time of each decoder call. Answers come in chunks of `batch_masks` masks, round by round.
    """
    for number, truth in enumerate(truths):
        if not truth.any():
            raise ValueError(f"mask {number} of {len(truths)} is empty: there is nothing to click on")
    if protocol.first_prompt == "random" and len(ids) != len(truths):
        raise ValueError(f"a random first click is drawn by its mask's id: {len(truths)} masks, {len(ids)} ids")
    draws = [first_draw(protocol.prompt_seed, mask_id) for mask_id in ids] or [0] * len(truths)
    for start in range(0, len(truths), protocol.batch_masks):
        chunk = slice(start, start + protocol.batch_masks)
        game = _Game(model, embedding, truths[chunk], draws=draws[chunk], protocol=protocol, watch=watch or Stopwatch())
        for answers in game.rounds(task):
            yield from (_renumber(answer, start) for answer in answers)


@dataclass(slots=True)
class _Track:
    """One kind of output on its way through the rounds: each mask's last answer, what was asked of wrong ones."""

    answers: list[Answer]
    open: list[int]  # masks that were asked in the last round
    prompts: Prompts  # of `open`, without logits


class _Game:
    """Up to `batch_masks` masks of one image, played side by side."""

    def __init__(
        self,
        model: Segmenter,
        embedding: Tensor,
        truths: Sequence[Mask],
        *,
        draws: Sequence[int],
        protocol: Protocol,
        watch: Stopwatch,
    ) -> None:
        self.model, self.embedding, self.truths, self.protocol = model, embedding, truths, protocol
        self.draws, self.watch = draws, watch
        height, width = truths[0].shape
        self.hw = (height, width)
        self.resized = resized_hw(height, width, model.side)

    def rounds(self, task: int) -> Iterator[list[Answer]]:
        """The answers of round 1, of round 2, ..."""
        tracks, answers = self.first(task)
        yield answers
        for number in range(2, self.protocol.rounds + 1):
            answers = []
            for track in tracks:
                self.advance(track, number)
                answers += track.answers
            yield answers

    @torch.inference_mode()
    def first(self, task: int) -> tuple[list[_Track], list[Answer]]:
        """The first prompt, with the task; the tracks that go on, and the answers of all outputs."""
        prompts, clicks = self._first_prompts()
        tasks = torch.full((len(self.truths),), task, device=self.embedding.device)
        three = self._decode(prompts, multimask=True, task=tasks)
        closest, likeliest = self._choose(three)
        self.watch.lap("decode", len(self.truths))
        one = self._decode(prompts, multimask=False, task=tasks)
        everyone = list(range(len(self.truths)))
        scored = partial(self._answers, masks=everyone, clicks=clicks, number=1)
        answers = {"single": scored(one, output="single")}
        self.watch.lap("decode", len(everyone))
        answers["oracle"] = scored(three.pick(closest), output="oracle")
        answers["confident"] = scored(three.pick(likeliest), output="confident")
        self.watch.lap("redraw", len(everyone))
        tracks = [_Track(answers[output], everyone, prompts) for output in ("oracle", "single")]
        return tracks, [answer for output in OUTPUTS for answer in answers[output]]

    @torch.inference_mode()
    def advance(self, track: _Track, number: int) -> None:
        """One more click on every mask of the track that is not perfect; the perfect ones keep their answer."""
        clicks = {mask: next_click(track.answers[mask].prediction, self.truths[mask]) for mask in track.open}
        place = [row for row, mask in enumerate(track.open) if clicks[mask]]
        track.open = [track.open[row] for row in place]
        made = [click for mask in track.open if (click := clicks[mask])]
        track.answers = [_again(answer, number) for answer in track.answers]
        if not made:
            return
        xy, label = self._points(made)
        before = Prompts(track.prompts.xy[place], track.prompts.label[place])
        logits = torch.stack([track.answers[mask].logits for mask in track.open])
        track.prompts = before.with_point(xy, label, logits=None)
        said = self._decode(track.prompts.with_logits(logits), multimask=False, task=None)
        output = track.answers[0].output
        answers = self._answers(said, track.open, clicks=made, output=output, number=number)
        self.watch.lap("decode", len(track.open))
        for answer in answers:
            track.answers[answer.mask] = answer

    def _first_prompts(self) -> tuple[Prompts, list[Click | None]]:
        """The first point of every truth, or its box; and the clicks made, in the original frame."""
        if self.protocol.first_prompt == "box":
            boxes = mask_to_box(torch.from_numpy(np.stack(self.truths)))
            xyxy = boxes_to_model(boxes, hw=self.hw, side=self.model.side).to(self.embedding.device)
            return Prompts.from_boxes(xyxy), [None] * len(self.truths)
        find = FIRST_POINTS[self.protocol.first_prompt]
        clicks: list[Click] = [
            (*point, POSITIVE)
            for truth, draw in zip(self.truths, self.draws, strict=True)
            if (point := find(truth, draw))
        ]
        xy, label = self._points(clicks)
        return Prompts.from_points(xy[:, None], label[:, None]), [*clicks]

    def _points(self, clicks: Sequence[Click]) -> tuple[Tensor, Tensor]:
        """Clicks of the original frame -> xy `[N, 2]` float in the model frame, label `[N]` long."""
        table = torch.tensor(clicks, device=self.embedding.device)
        return points_to_model(table[:, :2].float(), hw=self.hw, side=self.model.side), table[:, 2]

    def _decode(self, prompts: Prompts, *, multimask: bool, task: Tensor | None) -> Prediction:
        index = torch.zeros(len(prompts.xy), dtype=torch.long, device=self.embedding.device)
        with self.watch.running():
            said = self.model.decode(self.embedding, index, prompts, multimask=multimask, task=task)
        return Prediction(said.logits.float(), said.iou.float())

    def _choose(self, three: Prediction) -> tuple[Tensor, Tensor]:
        """Which output is closest to the truth at the original size, and which has the highest predicted IoU.

        Two `[N]`; among equals the first.
        """
        reached = torch.tensor(
            [
                [iou(mask, truth) for mask, truth in zip(self._masks(three.logits[:, [k]]), self.truths, strict=True)]
                for k in range(three.logits.shape[1])
            ]
        )
        return torch.from_numpy(reached.numpy().argmax(0)), torch.from_numpy(three.iou.cpu().numpy().argmax(1))

    def _masks(self, logits: Tensor) -> Iterator[Mask]:
        """Logits `[N, 1, L, L]` cut at 0 at the original size, one `[H, W]` after the other."""
        step = max(1, PIXELS // max(self.model.side**2, self.hw[0] * self.hw[1]))
        for start in range(0, len(logits), step):
            part = logits[start : start + step]
            with self.watch.running():  # the copy waits for the decoder
                large = logits_to_image(part, resized=self.resized, hw=self.hw, side=self.model.side)
                masks = (large > 0)[:, 0].cpu().numpy()
            yield from masks

    def _answers(
        self, said: Prediction, masks: Sequence[int], *, clicks: Sequence[Click | None], output: str, number: int
    ) -> list[Answer]:
        """Score a prediction with M = 1 of these masks."""
        found = []
        for row, prediction in enumerate(self._masks(said.logits)):
            truth = self.truths[masks[row]]
            found.append(
                Answer(
                    mask=masks[row],
                    round=number,
                    output=output,
                    click=clicks[row],
                    prediction=prediction,
                    logits=said.logits[row],
                    iou=iou(prediction, truth),
                    boundary_iou=boundary_iou(prediction, truth, ratio=self.protocol.boundary_ratio),
                    predicted_iou=float(said.iou[row, 0]),
                )
            )
        return found


def _again(answer: Answer, number: int) -> Answer:
    """The same answer in a later round, without a new click."""
    return replace(answer, round=number, click=None)


def _renumber(answer: Answer, start: int) -> Answer:
    return replace(answer, mask=start + answer.mask)
