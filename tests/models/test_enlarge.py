"""Enlarging inside the box: the masks, counts and run lengths of the whole frame, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from torch import Tensor

from sum.core.geometry import logits_to_image, resized_hw
from sum.models.enlarge import Cut, Enlarger

SIZES = [(48, 64), (75, 50), (64, 64), (90, 41), (200, 301), (33, 16), (640, 9)]


def field(kind: str, seed: int, low: int) -> Tensor:
    """Low-resolution logits of one kind."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(low, low, generator=generator)
    at = (torch.arange(low) + 0.5) / low
    y, x, radius = torch.rand(3, generator=generator)
    far = ((at[:, None] - y) ** 2 + (at[None, :] - x) ** 2).sqrt()
    return {
        "noise": noise * 3,
        "blob": (radius * 0.4 - far) * 40 + noise * 0.2,
        "grid": (noise * 2).round(),  # values that lie exactly on the cuts
        "corner": torch.where((at[:, None] > 0.9) & (at[None, :] > 0.9), 5.0, -5.0),
        "everywhere": noise.abs() + 2,
        "nowhere": -noise.abs() - 2,
        "steep": torch.where(far < radius * 0.5, 3e4, -3e4),
        "plane": torch.zeros(low, low),
    }[kind]


def whole(cut: Cut, hw: tuple[int, int]) -> np.ndarray:
    full = np.zeros(hw, dtype=bool)
    height, width = cut.mask.shape
    full[cut.y : cut.y + height, cut.x : cut.x + width] = cut.mask
    return full


def check(logits: Tensor, *, hw: tuple[int, int], side: int, at: float = 0.0, offset: float = 1.0) -> None:
    cut = Enlarger(hw=hw, side=side, low=len(logits)).cut(logits, at=at, offset=offset)
    full = logits_to_image(logits[None, None], resized=resized_hw(*hw, side), hw=hw, side=side)[0, 0]
    truth = (full > at).numpy()
    assert np.array_equal(whole(cut, hw), truth)
    assert cut.above == tuple(int((full > value).sum()) for value in (at + offset, at, at - offset))
    code = coco.encode(np.asfortranarray(truth, dtype=np.uint8))
    assert cut.rle(hw) == code["counts"].decode()
    x, y, width, height = coco.toBbox(code).astype(int)
    assert cut.box == ((x, y, x + width - 1, y + height - 1) if truth.any() else (0, 0, 0, 0))


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("low", [16, 32])
@pytest.mark.parametrize("kind", ["noise", "blob", "grid", "corner", "everywhere", "nowhere", "steep", "plane"])
def test_the_window_says_what_the_whole_frame_says(kind: str, low: int, hw: tuple[int, int]) -> None:
    for seed in range(3):
        check(field(kind, seed, low), hw=hw, side=64)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["noise", "blob", "grid"]),
    st.integers(0, 2**31),
    st.integers(1, 150),
    st.integers(1, 150),
    st.sampled_from([-0.5, 0.0, 0.75]),
    st.sampled_from([0.0, 0.01, 1.0]),
)
def test_of_any_size_and_cut(kind: str, seed: int, height: int, width: int, at: float, offset: float) -> None:
    check(field(kind, seed, 16), hw=(height, width), side=64, at=at, offset=offset)


def test_a_value_on_the_edge_of_rounding_is_left_to_the_reference() -> None:
    """The very value of some pixel as the cut: either arithmetic could land on either side."""
    logits, hw = field("blob", 1, 16), (90, 41)
    full = logits_to_image(logits[None, None], resized=resized_hw(*hw, 64), hw=hw, side=64)[0, 0]
    for value in full.flatten()[::97]:
        check(logits, hw=hw, side=64, at=float(value), offset=0.0)
        check(logits, hw=hw, side=64, at=float(np.nextafter(np.float32(value), np.float32(9))), offset=0.0)
