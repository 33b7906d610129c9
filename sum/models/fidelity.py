"""Does a model still do what prompts say? Three checks that a model which knows only its trained object fails.

All ask for the single-mask output, with the data set's task prompt, by clicks at the original size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sum.core.clicks import farthest_point
from sum.core.geometry import logits_to_image, points_to_model, resized_hw
from sum.core.metrics import iou
from sum.models.segmenter import NEGATIVE, POSITIVE, Prompts, Segmenter
from sum.models.stopwatch import Stopwatch

Mask = NDArray[np.bool_]
Click = tuple[int, int, int]  # x, y, label

OBJECT = 0.5  # IoU from which an answer is the object
CHECKS: dict[str, str] = {
    "background": f"after a click on the deepest pixel of what no mask of the image covers the answer is not the "
    f"object: its IoU with the mask is below {OBJECT:g}; not asked where the masks cover the image",
    "swap": "the answer to a click on each of two masks of an image (a mask and the next one) has a higher IoU with "
    "the mask clicked than with the other, both ways; not asked where one click lies on both",
    "negative": "after a click on the mask's deepest pixel a click with label 0 on the deepest added pixel, logits fed "
    "back, takes that pixel away and makes the answer smaller; not asked where nothing was added",
}


class Passed(NamedTuple):
    """One check of one mask."""

    mask: int  # which of the call's masks
    check: str  # a name of CHECKS
    passed: bool


def examine(
    model: Segmenter,
    embedding: Tensor,
    truths: Sequence[Mask],
    *,
    task: int,
    batch: int = 64,
    watch: Stopwatch | None = None,
) -> Iterator[Passed]:
    """Ask everything of CHECKS about every mask of one image.

    embedding `[1, C, h, w]`; truths: bool `[H, W]` at the original size, none empty; task: row of the task prompt;
    batch: prompts a decoder call; watch: takes the time of each.
    """
    asked = _Asker(model, embedding, (truths[0].shape[0], truths[0].shape[1]), task, batch, watch or Stopwatch())
    points = [point for truth in truths if (point := farthest_point(truth))]
    answers, logits = asked.single([[(*point, POSITIVE)] for point in points])
    yield from _background(asked, truths)
    yield from _swap(points, answers, truths)
    yield from _negative(asked, points, answers, logits, truths)


class _Asker:
    """Clicks of one image to single masks."""

    def __init__(
        self, model: Segmenter, embedding: Tensor, hw: tuple[int, int], task: int, batch: int, watch: Stopwatch
    ) -> None:
        self.model, self.embedding, self.hw, self.task, self.batch, self.watch = (
            model,
            embedding,
            hw,
            task,
            batch,
            watch,
        )

    @torch.inference_mode()
    def single(self, clicks: Sequence[Sequence[Click]], logits: Tensor | None = None) -> tuple[list[Mask], Tensor]:
        """Masks `[H, W]` and logits `[N, 1, L, L]` of N lists of clicks, all of one length; logits: fed back."""
        masks, found = list[Mask](), list[Tensor]()
        for start in range(0, len(clicks), self.batch):
            part = slice(start, start + self.batch)
            said = self._decode(clicks[part], None if logits is None else logits[part])
            found.append(said)
            for row in range(len(said)):  # one at a time: at the original size they are large
                masks.append(self._mask(said[row : row + 1]))
        self.watch.lap("fidelity", len(clicks))
        return masks, torch.cat(found)

    def _decode(self, clicks: Sequence[Sequence[Click]], logits: Tensor | None) -> Tensor:
        table = torch.tensor(clicks, device=self.embedding.device)
        xy = points_to_model(table[..., :2].float(), hw=self.hw, side=self.model.side)
        prompts = Prompts.from_points(xy, table[..., 2], logits=logits)
        index = torch.zeros(len(clicks), dtype=torch.long, device=self.embedding.device)
        task = torch.full_like(index, self.task) if logits is None else None  # the first round only, as in the game
        with self.watch.running():
            return self.model.decode(self.embedding, index, prompts, multimask=False, task=task).logits.float()

    def _mask(self, logits: Tensor) -> Mask:
        resized = resized_hw(*self.hw, self.model.side)
        with self.watch.running():
            large = logits_to_image(logits, resized=resized, hw=self.hw, side=self.model.side)
            mask: Mask = (large > 0)[0, 0].cpu().numpy()
        return mask


def _background(asked: _Asker, truths: Sequence[Mask]) -> Iterator[Passed]:
    point = farthest_point(~np.logical_or.reduce(truths))
    if point is None:
        return
    (answer,), _ = asked.single([[(*point, POSITIVE)]])
    for number, truth in enumerate(truths):
        yield Passed(number, "background", iou(answer, truth) < OBJECT)


def _swap(points: Sequence[tuple[int, int]], answers: Sequence[Mask], truths: Sequence[Mask]) -> Iterator[Passed]:
    """Each mask with the next one, the last with the first; of two masks there is one pair."""
    count = len(truths)
    for one in range(count if count > 2 else count - 1):
        other = (one + 1) % count
        shared = any(truths[mask][y, x] for mask, (x, y) in ((one, points[other]), (other, points[one])))
        if not shared:
            yield Passed(
                one,
                "swap",
                all(
                    iou(answers[mask], truths[mask]) > iou(answers[mask], truths[rival])
                    for mask, rival in ((one, other), (other, one))
                ),
            )


def _negative(
    asked: _Asker,
    points: Sequence[tuple[int, int]],
    answers: Sequence[Mask],
    logits: Tensor,
    truths: Sequence[Mask],
) -> Iterator[Passed]:
    added = {
        number: point
        for number, (answer, truth) in enumerate(zip(answers, truths, strict=True))
        if (point := farthest_point(answer & ~truth))
    }
    if not added:
        return
    rows = list(added)
    clicks = [[(*added[number], NEGATIVE), (*points[number], POSITIVE)] for number in rows]
    after, _ = asked.single(clicks, logits[rows])
    for number, answer in zip(rows, after, strict=True):
        x, y = added[number]
        smaller = np.count_nonzero(answer) < np.count_nonzero(answers[number])
        yield Passed(number, "negative", bool(not answer[y, x] and smaller))
