"""Obedience checks against models scripted to obey or not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sum.core import gate
from sum.core.clicks import farthest_point
from sum.data import breakdowns
from sum.models.backbones import BACKBONES
from sum.models.fidelity import CHECKS, Passed, examine
from sum.models.segmenter import Prediction, Prompts, Segmenter

Mask = NDArray[np.bool_]
SIDE = 128  # of the model frame and of the image, so that a pixel is a pixel


def square(x: int, y: int, size: int) -> Mask:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[y : y + size, x : x + size] = True
    return mask


class Scripted:
    """Answers clicks by a rule instead of weights: rule(clicks [(x, y, label)]) -> mask."""

    side, low_side = SIDE, SIDE

    def __init__(self, rule: Callable[[list[tuple[int, int, int]]], Mask]) -> None:
        self.rule = rule
        self.calls: list[tuple[int, bool, bool]] = []  # prompts, with a task, with logits

    def decode(
        self,
        embedding: torch.Tensor,
        index: torch.Tensor,
        prompts: Prompts,
        *,
        multimask: bool,
        task: torch.Tensor | None,
    ) -> Prediction:
        assert not multimask
        self.calls.append((len(index), task is not None, prompts.logits is not None))
        masks = []
        for xy, label in zip(prompts.xy, prompts.label, strict=True):
            clicks = [
                (int(point[0]), int(point[1]), int(kind)) for point, kind in zip(xy, label, strict=True) if kind >= 0
            ]
            masks.append(torch.from_numpy(self.rule(clicks)).float() * 20 - 10)
        return Prediction(torch.stack(masks)[:, None], torch.zeros(len(masks), 1))


ONE, TWO, THREE = square(8, 8, 32), square(72, 8, 24), square(40, 80, 20)
TRUTHS = [ONE, TWO, THREE]
HALO = 6  # px that the obedient model adds around an object until it is told not to


def obedient(clicks: list[tuple[int, int, int]]) -> Mask:
    """The object clicked, too large; a click off it takes away what is outside; nothing where nothing is."""
    *negatives, first = clicks  # the newest comes first
    for truth in TRUTHS:
        if truth[first[1], first[0]]:
            if any(label == 0 for _, _, label in negatives):
                return truth
            rows, columns = np.nonzero(truth)
            large = np.zeros_like(truth)
            large[rows.min() - HALO : rows.max() + 1 + HALO, columns.min() - HALO : columns.max() + 1 + HALO] = True
            return large
    return square(first[0], first[1], 1)


def found(rule: Callable[[list[tuple[int, int, int]]], Mask], truths: list[Mask], **options: int) -> list[Passed]:
    model = Scripted(rule)
    return list(examine(model, torch.zeros(1, 4, 8, 8), truths, task=1, **options))  # type: ignore[arg-type]


def shares(rows: list[Passed]) -> dict[str, list[bool]]:
    return {check: [row.passed for row in rows if row.check == check] for check in CHECKS}


def test_an_obedient_model_passes_everything() -> None:
    assert shares(found(obedient, TRUTHS)) == dict.fromkeys(CHECKS, [True] * 3)


def test_a_model_that_always_returns_its_object() -> None:
    """ONE wherever it is asked: the object on the background, no swap, nothing shrinks."""
    said = shares(found(lambda _: ONE, TRUTHS))
    assert said["background"] == [False, True, True]  # to the other masks the answer is another object
    assert said["swap"] == [False, False, False]
    assert said["negative"] == [False, False]  # of ONE itself nothing was added, so nothing is asked


def test_negative_clicks_that_only_move_the_mask_do_not_pass() -> None:
    def moves(clicks: list[tuple[int, int, int]]) -> Mask:
        return square(40, 40, 30) if len(clicks) == 1 else square(90, 90, 30)  # the pixel goes, the size stays

    assert shares(found(moves, [square(44, 44, 20)]))["negative"] == [False]


def test_two_masks_are_one_pair_and_one_mask_is_none() -> None:
    assert len(shares(found(obedient, TRUTHS[:2]))["swap"]) == 1
    assert shares(found(obedient, TRUTHS[:1]))["swap"] == []


def test_clicks_that_lie_on_both_masks_are_not_asked() -> None:
    inner = square(20, 20, 8)  # ONE's deepest pixel lies in it
    x, y = farthest_point(ONE) or (0, 0)
    assert inner[y, x]
    assert shares(found(obedient, [ONE, inner]))["swap"] == []


def test_masks_that_cover_the_image_have_no_background() -> None:
    whole = np.ones((SIDE, SIDE), dtype=bool)
    assert shares(found(obedient, [whole, ONE]))["background"] == []


def test_the_order_of_masks_permutes_results() -> None:
    one = {(row.mask, row.check): row.passed for row in found(lambda _: ONE, TRUTHS)}
    other = {(2 - row.mask, row.check): row.passed for row in found(lambda _: ONE, TRUTHS[::-1])}
    for check in ("background", "negative"):
        assert {key: value for key, value in one.items() if key[1] == check} == {
            key: value for key, value in other.items() if key[1] == check
        }


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_batches_change_nothing_and_prompts_are_as_in_the_game(batch: int) -> None:
    model = Scripted(obedient)
    rows = list(examine(model, torch.zeros(1, 4, 8, 8), TRUTHS, task=1, batch=batch))  # type: ignore[arg-type]
    assert rows == found(obedient, TRUTHS)
    assert max(count for count, _, _ in model.calls) <= batch
    assert {(task, logits) for _, task, logits in model.calls} == {(True, False), (False, True)}


def test_real_weights_at_an_original_size_of_their_own() -> None:
    torch.manual_seed(0)
    model = Segmenter(BACKBONES["tiny"].build(), backbone="tiny").eval()
    truths = [square(8, 8, 32)[:96], square(72, 8, 24)[:96]]
    embedding = model.encode(torch.randint(0, 255, (1, 3, 128, 128), dtype=torch.uint8), torch.tensor([[96, 128]]))
    rows = list(examine(model, embedding.detach(), truths, task=0))
    assert {row.check for row in rows} <= set(CHECKS)
    assert [row.mask for row in rows if row.check == "background"] == [0, 1]


def test_gate_and_report_know_the_same_checks() -> None:
    assert set(gate.CHECKS) == set(breakdowns.CHECKS) == set(CHECKS)
