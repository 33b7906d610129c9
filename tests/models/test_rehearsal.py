"""Answers in place of random ones: the mask that was meant, with an edge as wrong as a model's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sum.core.clicks import farthest_point
from sum.data.demo import make_scene
from sum.models.backbones import build_tiny
from sum.models.fidelity import examine
from sum.models.interact import Answer, Protocol, play
from sum.models.rehearsal import Rehearsal
from sum.models.segmenter import Segmenter

SCENE = make_scene(3, side=192)
TRUTHS = [mask[:160] for mask in (*SCENE.entities, *SCENE.parts) if mask[:160].sum() > 200]


@pytest.fixture(scope="module")
def model() -> Rehearsal:
    torch.manual_seed(0)
    return Rehearsal(build_tiny(), backbone="tiny").eval()


def answers(model: Segmenter, first_prompt: str) -> list[Answer]:
    embedding = torch.zeros(1, 64, 16, 16)
    protocol = Protocol(rounds=3, first_prompt=first_prompt, batch_masks=4)  # type: ignore[arg-type]
    return list(play(model, embedding, TRUTHS, task=1, protocol=protocol))


@pytest.mark.parametrize("first_prompt", ["point", "box"])
def test_the_mask_that_was_asked_for_is_nearly_given(model: Rehearsal, first_prompt: str) -> None:
    model.show(TRUTHS)
    found = answers(model, first_prompt)
    assert len(TRUTHS) >= 6
    ious = np.array([answer.iou for answer in found])
    assert 0.6 < np.median(ious) < 0.97  # neither specks nor the truth itself
    large = [answer.iou for answer in found if TRUTHS[answer.mask].sum() > 2000]
    assert min(large) > 0.5
    assert all(answer.click for answer in found if answer.round > 1)
    torch.manual_seed(0)
    noise = answers(Segmenter(build_tiny(), backbone="tiny").eval(), first_prompt)
    assert np.median([answer.iou for answer in noise]) < 0.3


def test_rounds_and_outputs_have_different_edges(model: Rehearsal) -> None:
    model.show(TRUTHS)
    of_one = [answer for answer in answers(model, "point") if answer.mask == 0 and answer.output == "single"]
    assert not (of_one[0].prediction == of_one[1].prediction).all()


def test_a_click_beside_all_masks_gives_none_of_them(model: Rehearsal) -> None:
    masks = [mask[:160] for mask in SCENE.parts if mask[:160].sum() > 200]
    model.show(masks)
    assert farthest_point(~np.logical_or.reduce(masks))
    checks = [
        check for check in examine(model, torch.zeros(1, 64, 16, 16), masks, task=1) if check.check == "background"
    ]
    assert len(checks) == len(masks)
    assert all(check.passed for check in checks)
