"""Pairs of the refinement module: the closest of three outputs, its box, and which pairs are worth learning from."""

from __future__ import annotations

import pytest
import torch
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor

from sum.models.backbones import build_tiny
from sum.models.pairs import Pairs, propose
from sum.models.segmenter import Prediction, Prompts, Segmenter

SIDE = 128


class Said(Segmenter):
    """A Segmenter whose decoder gives the answer it was told to."""

    def __init__(self, logits: Tensor, iou: Tensor) -> None:
        super().__init__(build_tiny(), backbone="tiny")
        self.answer = Prediction(logits, iou)
        self.prompts: list[Prompts] = []

    def decode(self, embedding: Tensor, image_index: Tensor, prompts: Prompts, **options: object) -> Prediction:
        assert options == {"multimask": True}
        self.prompts.append(prompts)
        return self.answer


def plane(x0: int, y0: int, x1: int, y1: int, *, height: float = 8.0) -> Tensor:
    """Low-resolution logits `[64, 64]`: +height in the box (ends inside), -height elsewhere."""
    found = torch.full((64, 64), -height)
    found[y0 : y1 + 1, x0 : x1 + 1] = height
    return found


TRUTH = plane(10, 10, 40, 40)


def ask(
    *planes: Tensor, predicted: tuple[float, float, float] = (0.9, 0.9, 0.9), low: tuple[float, float, float]
) -> Pairs:
    model = Said(torch.stack(planes)[None], torch.tensor([predicted]))
    target = torch.nn.functional.interpolate((TRUTH > 0).float()[None, None], (SIDE, SIDE), mode="nearest")
    return propose(
        model,
        torch.zeros(1, 64, 16, 16),
        torch.zeros(1, dtype=torch.long),
        point=torch.tensor([[50.0, 50.0]]),
        target=target,
        valid=torch.ones(1, 1, SIDE, SIDE, dtype=torch.bool),
        thresholds=low,
    )


NONE = (0.0, 0.0, 0.0)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_output_closest_to_the_truth_is_taken_whatever_the_model_thinks(best: int) -> None:
    planes = [plane(0, 0, 63, 63), plane(50, 50, 60, 60), plane(12, 10, 20, 20)]
    planes[best] = TRUTH
    predicted = [0.99, 0.99, 0.99]
    predicted[best] = 0.1
    pairs = ask(*planes, predicted=(predicted[0], predicted[1], predicted[2]), low=NONE)
    assert torch.equal(pairs.logits[0, 0] > 0, TRUTH > 0)
    share = pairs.logits[0, 0].double().sigmoid()
    torch.testing.assert_close(share, TRUTH.double().sigmoid(), atol=0.5 / 255 + 1e-6, rtol=0)  # as stored, in a byte
    assert pairs.iou.item() > 0.95
    assert pairs.good.all()
    # pixels 10..40 of 64 are 20..81 of 128
    torch.testing.assert_close(pairs.box[0], torch.tensor([20.0, 20.0, 81.0, 81.0]), atol=1, rtol=0)


@pytest.mark.parametrize(
    ("chosen", "predicted", "low", "good"),
    [
        (TRUTH, 0.9, (0.7, 0.88, 0.95), True),
        (plane(10, 10, 40, 25), 0.9, (0.7, 0.88, 0.95), False),  # IoU about 0.5
        (TRUTH, 0.87, (0.7, 0.88, 0.95), False),  # SAM's own filter
        (plane(10, 10, 40, 40, height=0.5), 0.9, (0.7, 0.88, 0.95), False),  # nothing is left at logit 1: not stable
        (plane(10, 10, 40, 25), 0.1, NONE, True),
    ],
)
def test_pairs_that_are_kept(chosen: Tensor, predicted: float, low: tuple[float, float, float], good: bool) -> None:
    pairs = ask(chosen, chosen, chosen, predicted=(predicted,) * 3, low=low)
    assert pairs.good.tolist() == [good]
    stability = calculate_stability_score(pairs.fine[:, 0], 0.0, 1.0)
    assert (stability >= 0.95).item() == (chosen.max() > 1)
