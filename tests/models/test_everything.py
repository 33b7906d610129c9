"""The generated mask nearest to a true one, against a plain loop over pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from sum.core.metrics import boundary_iou, iou
from sum.data.records import encode_mask
from sum.models.everything import nearest

HW = (40, 56)


@dataclass
class Generated:
    rle: str
    predicted_iou: float


def blobs(seed: int, count: int) -> list[NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    masks = []
    for _ in range(count):
        y, x = rng.integers(0, 30, 2)
        height, width = rng.integers(4, 26, 2)
        mask = np.zeros(HW, dtype=bool)
        mask[y : y + height, x : x + width] = True
        masks.append(mask & (rng.random(HW) > 0.1))
    return masks


@pytest.mark.parametrize("seed", range(5))
def test_nearest_is_the_best_of_a_plain_loop(seed: int) -> None:
    made, truths = blobs(seed, 7), blobs(seed + 100, 4)
    said = np.random.default_rng(seed).random(7)
    generated = [Generated(encode_mask(mask), float(value)) for mask, value in zip(made, said, strict=True)]
    found = nearest(generated, [encode_mask(truth) for truth in truths], hw=HW, ratio=0.02)  # type: ignore[arg-type]
    for truth, match in zip(truths, found, strict=True):
        best = max(range(7), key=lambda n: (iou(made[n], truth), said[n]))
        assert match.iou == pytest.approx(iou(made[best], truth), abs=1e-15)
        assert match.boundary_iou == boundary_iou(made[best], truth, ratio=0.02)
        assert match.predicted_iou == said[best]


def test_of_equals_the_one_the_model_believes_in() -> None:
    (mask,) = blobs(3, 1)
    generated = [Generated(encode_mask(mask), value) for value in (0.2, 0.9, 0.5)]
    (match,) = nearest(generated, [encode_mask(mask)], hw=HW, ratio=0.02)  # type: ignore[arg-type]
    assert (match.iou, match.predicted_iou) == (1.0, 0.9)


def test_nothing_generated_is_nought_and_nothing_true_is_nothing() -> None:
    (mask,) = blobs(4, 1)
    (match,) = nearest([], [encode_mask(mask)], hw=HW, ratio=0.02)
    assert (match.iou, match.boundary_iou, match.predicted_iou) == (0.0, 0.0, 0.0)
    assert nearest([Generated(encode_mask(mask), 0.5)], [], hw=HW, ratio=0.02) == []  # type: ignore[list-item]
