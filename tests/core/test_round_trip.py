"""Original frame -> model frame -> back, for sizes that hypothesis draws: nothing moves."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from sum.core.geometry import (
    boxes_to_image,
    boxes_to_model,
    points_to_image,
    points_to_model,
    resized_hw,
    to_frame,
    valid_frame,
)

SIZES = st.integers(1, 6000)
SHARE = st.floats(0, 1)


@given(height=SIZES, width=SIZES, side=st.sampled_from([64, 256, 1024]), share_x=SHARE, share_y=SHARE)
def test_points_and_boxes_return(height: int, width: int, side: int, share_x: float, share_y: float) -> None:
    xy = np.array([[round(share_x * (width - 1)), round(share_y * (height - 1))]], dtype=np.float64)
    inner = resized_hw(height, width, side)
    model = points_to_model(xy, hw=(height, width), side=side)
    assert (model >= 0).all()
    assert (model <= np.array([inner[1], inner[0]])).all()  # inside the photo's part of the frame, not in the padding
    assert np.array_equal(np.rint(points_to_image(model, hw=(height, width), side=side)), xy)
    assert np.allclose(points_to_image(model, hw=(height, width), side=side), xy, rtol=0, atol=1e-9)
    corners = np.concatenate((xy, [[width - 1, height - 1]]), axis=1)
    there = boxes_to_model(corners, hw=(height, width), side=side)
    assert np.array_equal(np.rint(boxes_to_image(there, hw=(height, width), side=side)), corners)


@given(height=st.integers(1, 80), width=st.integers(1, 80), more=st.integers(0, 40), seed=st.integers(0, 9))
def test_padding_returns(height: int, width: int, more: int, seed: int) -> None:
    side = max(height, width) + more
    mask = torch.rand((1, 1, height, width), generator=torch.Generator().manual_seed(seed)) < 0.5
    frame = to_frame(mask.float(), side)
    valid = valid_frame(torch.tensor([[height, width]]), side)
    assert frame.shape == valid.shape == (1, 1, side, side)
    assert torch.equal(frame[valid].bool(), mask.flatten())  # row by row: the same pixels in the same order
    assert not frame[~valid].any()
