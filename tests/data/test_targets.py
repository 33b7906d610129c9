"""Masks shrunk from their run lengths are, to the last bit, masks drawn at full size and shrunk."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sum.core.geometry import resized_hw
from sum.data.batches import masks_to_frame
from sum.data.records import encode_mask
from sum.data.rle import parse_counts
from sum.data.targets import covered, rles_to_frame
from sum.errors import DataError


def scene(kind: str, hw: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A bool mask: noise, a box whose edges fall on halves of new pixels, blobs, stripes, one pixel or all."""
    height, width = hw
    mask = np.zeros(hw, dtype=bool)
    if kind == "noise":
        return rng.random(hw) < rng.random()
    if kind == "box":
        top, left = rng.integers(0, height), rng.integers(0, width)
        mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(1, width + 1)] = True
    elif kind == "blobs":
        return cv2.resize(rng.standard_normal((6, 6)).astype(np.float32), hw[::-1], interpolation=cv2.INTER_CUBIC) > 0.5
    elif kind == "stripes":
        slope = np.add.outer(np.arange(height) * rng.normal(), np.arange(width) * rng.normal())
        return slope % 50 < rng.integers(1, 50)
    elif kind == "pixel":
        mask[rng.integers(0, height), rng.integers(0, width)] = True
    else:
        mask[:] = True
    return mask


@given(
    st.sampled_from(["noise", "box", "blobs", "stripes", "pixel", "all"]),
    st.tuples(st.integers(1, 300), st.integers(1, 300))
    | st.sampled_from([(120, 160), (256, 256), (171, 256), (300, 400), (240, 427)]),
    st.sampled_from([5, 16, 64, 100]),
    st.integers(0, 10**6),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_as_if_drawn_at_full_size(kind: str, hw: tuple[int, int], side: int, seed: int) -> None:
    masks = [scene(kind, hw, np.random.default_rng([seed, k])) for k in range(2)]
    want = masks_to_frame(np.stack(masks), loss_side=side)
    assert torch.equal(rles_to_frame([encode_mask(mask) for mask in masks], hw=hw, loss_side=side), want)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_covered_area_by_brute_force(height: int, width: int, side: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    rows, columns = (min(a, b) for a, b in zip(resized_hw(height, width, side), (height, width), strict=True))
    fine = mask.repeat(rows, axis=0).repeat(columns, axis=1)  # every pixel of old and new is whole in it
    want = fine.reshape(rows, height, columns, width).sum(axis=(1, 3))
    assert np.array_equal(covered(parse_counts(encode_mask(mask)), hw=mask.shape, hw_out=(rows, columns)), want)


def test_counts_of_another_size_are_refused() -> None:
    code = encode_mask(np.ones((20, 30), dtype=bool))
    with pytest.raises(DataError, match="does not describe a 10 x 30 mask"):
        rles_to_frame([code], hw=(10, 30), loss_side=8)
