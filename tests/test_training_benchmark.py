"""What benchmarks/training.py compares does the same; the authors' files stand aside for the plain formulas here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks.training_duels import Decoder, Losses, Sampling, Step, build, duels
from benchmarks.training_peers import Authors
from sum.core.losses import LossWeights, dice_loss, focal_loss
from sum.core.prompts import correction_weights, point_labels, sample_points


class Plain(Authors):
    """Loops of this project in place of the authors' files."""

    def __init__(self) -> None:
        self.chance = torch.Generator().manual_seed(4)
        self.losses = SimpleNamespace(
            uncertainty_aware_focal_loss=lambda z, y, u, alpha, gamma: focal_loss(
                z, y, 1 - u, alpha=alpha, gamma=gamma
            ),
            uncertainty_aware_dice_loss=lambda z, y, smooth, uncertain_map, uncertain_map_threshold: dice_loss(
                z, y, 1 - uncertain_map, theta=uncertain_map_threshold, eps=smooth
            ),
            calc_iou=lambda seen, y: ((seen * y).sum((1, 2)) / (seen + y).clamp(max=1).sum((1, 2)))[:, None],
        )

    def points(self, prediction: Tensor, target: Tensor, certainty: Tensor) -> tuple[Tensor, Tensor]:
        xy, _ = sample_points(correction_weights(prediction, target, certainty), generator=self.chance)
        return xy, point_labels(target, xy)


def test_a_training_step_is_that_of_a_loop_of_sams_own_modules_and_plain_losses() -> None:
    step = Step(Plain(), build("tiny"), masks=2)
    (want, slopes), (got, gradients) = step.reference(alike=True), step.ours()
    assert got == pytest.approx(want, abs=1e-6)
    assert len(slopes) > 100
    for name, slope in slopes.items():
        if not name.endswith("k_proj.bias"):  # zero, and rounding in SAM
            assert (gradients.get(name, torch.zeros_like(slope)) - slope).norm() <= 1e-4 * slope.norm(), name


def test_the_decoder_row_compares_equals() -> None:
    row = Decoder(build("tiny"), 3, rounds=3)
    got, want = row.ours(), row.reference()
    for number in range(3):
        assert (got[f"logits {number}"] - want[f"logits {number}"]).norm() < 1e-5 * want[f"logits {number}"].norm()
    assert (got["embedding"] - want["embedding"]).norm() < 1e-4 * want["embedding"].norm()


def test_rows_of_losses_and_sampling_compare_equals() -> None:
    row = Losses(Plain(), masks=3, low=16, side=64)
    (want, slope), (got, gradient) = row.reference(), row.ours()
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    assert (gradient - slope).norm() < 1e-5 * slope.norm()
    assert "lowest p of 8 laws" in Sampling(Plain(), masks=2, side=64).agree()


def test_without_the_authors_files_only_the_decoder_is_measured(tmp_path: Path) -> None:
    assert list(duels(None, masks=2, backbone="tiny", compiled=False)) == ["decoder"]
    with pytest.raises(SystemExit, match="wanted is a checkout of the repository"):
        Authors(tmp_path)
    assert LossWeights().theta == 0.6  # what the authors' losses are asked for
