"""The benchmark's rounds on a real, random model: against segment_anything.SamPredictor, batches, uncertainty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor
from torch import nn

from sum.core.clicks import next_click
from sum.core.metrics import boundary_iou, iou
from sum.data.frames import to_square
from sum.models.backbones import build_tiny
from sum.models.doubts import doubts
from sum.models.interact import Answer, Mask, Protocol, encode_frame, play
from sum.models.refiner import Refiner
from sum.models.segmenter import Segmenter


@pytest.fixture(scope="module")
def tiny() -> Segmenter:
    """A random tiny whose masks are neither empty nor full."""
    torch.manual_seed(3)
    model = Segmenter(build_tiny(side=64, channels=32), backbone="tiny").eval()
    with torch.no_grad():
        for mlp in model.sam.mask_decoder.output_hypernetworks_mlps:
            nn.init.zeros_(mlp.layers[-1].bias)
        model.task_prompt[1:] = torch.randn(3, 32)
    return model


def picture(hw: tuple[int, int] = (60, 97)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*hw, 3), dtype=np.uint8)


def shapes(count: int, hw: tuple[int, int] = (60, 97)) -> list[Mask]:
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    found = []
    for _ in range(count):
        y, x, radius = rng.uniform(10, hw[0] - 10), rng.uniform(10, hw[1] - 10), rng.uniform(4, 25)
        found.append((rows - y) ** 2 + (columns - x) ** 2 < radius**2)
    return found


def table(answers: list[Answer]) -> dict[tuple[int, int, str], tuple[float, float, float]]:
    return {(a.mask, a.round, a.output): (a.iou, a.boundary_iou, a.predicted_iou) for a in answers}


def test_equal_to_a_plain_loop_over_sam_predictor(tiny: Segmenter) -> None:
    image, truths = picture(), shapes(4)
    frame, inner = to_square(Image.fromarray(image), side=tiny.side)
    found = table(list(play(tiny, encode_frame(tiny, frame, inner), truths, task=0, protocol=Protocol(rounds=4))))
    predictor = SamPredictor(tiny.sam)
    predictor.set_image(image)
    for number, truth in enumerate(truths):
        for output in ("oracle", "single"):
            for count, (value, edge, own) in enumerate(
                predictor_loop(predictor, truth, output=output, rounds=4), start=1
            ):
                assert found[number, count, output] == pytest.approx((value, edge, own), abs=1e-5)


def predictor_loop(
    predictor: SamPredictor, truth: Mask, *, output: str, rounds: int
) -> list[tuple[float, float, float]]:
    """IoU, boundary IoU and predicted IoU by the public API of segment_anything, one mask, one output."""
    prediction, low, clicks, found = np.zeros_like(truth), None, [], []
    for number in range(rounds):
        click = next_click(prediction, truth)
        assert click is not None
        clicks.append(click)
        points = np.array(clicks, dtype=float)
        multimask = number == 0 and output == "oracle"
        masks, scores, lows = predictor.predict(points[:, :2], points[:, 2], mask_input=low, multimask_output=multimask)
        best = int(np.argmax([iou(mask, truth) for mask in masks]))
        prediction, low = masks[best], lows[[best]]
        found.append((iou(prediction, truth), boundary_iou(prediction, truth), float(scores[best])))
    return found


def test_batches_and_order_do_not_matter(tiny: Segmenter) -> None:
    truths = shapes(5)
    frame, inner = to_square(Image.fromarray(picture()), side=tiny.side)
    embedding = encode_frame(tiny, frame, inner)
    want = table(list(play(tiny, embedding, truths, task=2, protocol=Protocol(rounds=3))))
    order = [3, 0, 4, 1, 2]
    moved = play(tiny, embedding, [truths[i] for i in order], task=2, protocol=Protocol(rounds=3, batch_masks=2))
    found = table(list(moved))
    assert found == {
        (order.index(mask), number, output): pytest.approx(row, abs=1e-5)
        for (mask, number, output), row in want.items()
    }


def test_the_task_changes_the_first_round(tiny: Segmenter) -> None:
    truths = shapes(3)
    frame, inner = to_square(Image.fromarray(picture()), side=tiny.side)
    embedding = encode_frame(tiny, frame, inner)
    plain, asked = (
        table(list(play(tiny, embedding, truths, task=task, protocol=Protocol(rounds=1)))) for task in (0, 3)
    )
    assert plain != asked


def test_doubts_are_how_far_refinement_moved_each_answer(tiny: Segmenter) -> None:
    truths = shapes(5)
    frame, inner = to_square(Image.fromarray(picture()), side=tiny.side)
    embedding = encode_frame(tiny, frame, inner)
    answers = [a for a in play(tiny, embedding, truths, task=0, protocol=Protocol(rounds=1)) if a.output == "oracle"]
    refiner = Refiner(tiny).eval()
    with torch.no_grad():
        refiner.core.sam.mask_decoder.output_hypernetworks_mlps[0].layers[-1].weight *= 30
    found = doubts(refiner, embedding, answers, truths, step=2)
    assert [code.shape for code in found] == [(32, 32)] * 5
    y, x = np.nonzero(answers[3].prediction)
    scale = tiny.side / picture().shape[1]
    box = torch.tensor([[x.min(), y.min(), x.max(), y.max()]]) * scale
    click = answers[3].click
    assert click is not None
    point = torch.tensor([click[:2]]) * scale
    with torch.no_grad():
        logits = answers[3].logits[None]
        refined = refiner(embedding, torch.tensor([0]), sam_logits=logits, box=box, point=point)
    moved = (logits.sigmoid() - refined.sigmoid()).abs()[0, 0] * 255
    assert np.abs(found[3] - moved.numpy()).max() < 2
    assert max(code.max() for code in found) > 20
