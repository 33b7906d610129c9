"""The truth here is segment_anything, whose weights expect its sizes, and pixel-by-pixel definitions."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling import Sam
from segment_anything.utils.amg import batched_mask_to_box
from segment_anything.utils.transforms import ResizeLongestSide

from sum.core.geometry import (
    boxes_to_image,
    boxes_to_model,
    logits_to_image,
    mask_to_box,
    points_to_image,
    points_to_model,
    resize_mask,
    resized_hw,
    to_frame,
    valid_frame,
)
from tests.drawing import draw

SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
SIDES = st.sampled_from([64, 256, 1000, 1024])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=150, deadline=None)
@given(hw=SIZES, side=SIDES)
def test_sizes_are_segment_anythings(hw, side):
    got, want = resized_hw(*hw, side), ResizeLongestSide.get_preprocess_shape(*hw, side)
    assert got == tuple(max(1, length) for length in want)  # it rounds a thin strip to nothing
    assert max(got) == side


@settings(max_examples=60, deadline=None)
@given(hw=SIZES.filter(lambda hw: max(hw) < 60 * min(hw)), side=SIDES, seed=st.integers(0, 99))
def test_coordinates_are_segment_anythings_and_come_back(hw, side, seed):
    xy = torch.rand(3, 2, 2, generator=seeded(seed)) * torch.tensor([hw[1], hw[0]])
    reference = ResizeLongestSide(side)
    there = points_to_model(xy, hw=hw, side=side)
    assert torch.equal(there, reference.apply_coords_torch(xy, hw))
    torch.testing.assert_close(points_to_image(there, hw=hw, side=side), xy, rtol=1e-6, atol=0)
    exact = points_to_model(xy.numpy().astype(float), hw=hw, side=side)
    assert np.array_equal(exact, reference.apply_coords(xy.numpy(), hw))
    np.testing.assert_allclose(points_to_image(exact, hw=hw, side=side), xy.numpy(), rtol=1e-15)
    boxes = xy.flatten(1)
    moved = boxes_to_model(boxes, hw=hw, side=side)
    assert torch.equal(moved, reference.apply_boxes_torch(boxes, hw))
    torch.testing.assert_close(boxes_to_image(moved, hw=hw, side=side), boxes, rtol=1e-6, atol=0)
    assert np.array_equal(boxes_to_model(boxes.numpy(), hw=hw, side=side), reference.apply_boxes(boxes.numpy(), hw))


def test_whole_numbers_become_floats_and_inputs_stay():
    xy = torch.tensor([[10, 20], [30, 40]])
    assert points_to_model(xy, hw=(100, 200), side=100).tolist() == [[5, 10], [15, 20]]
    assert points_to_model(xy, hw=(100, 200), side=100).dtype == torch.float32
    assert points_to_model(xy.numpy(), hw=(100, 200), side=100).dtype == np.float64
    assert boxes_to_image(torch.tensor([5, 10, 15, 20]), hw=(100, 200), side=100).tolist() == [10, 20, 30, 40]
    assert xy.tolist() == [[10, 20], [30, 40]]


def coverage_by_hand(mask, hw_out):
    """Exact share of each new pixel that was set: every pixel is cut into so many that both grids fit."""
    height, width = mask.shape
    fine = np.kron(mask, np.ones(hw_out, dtype=int))
    return fine.reshape(hw_out[0], height, hw_out[1], width).sum((1, 3)) / Fraction(height * width)


def test_a_shrunken_mask_has_the_pixels_that_were_at_least_half_set():
    rng = np.random.default_rng(0)
    for _ in range(100):
        height, width = rng.integers(2, 20, 2)
        hw_out = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        mask = rng.random((height, width)) < rng.choice([0.2, 0.5, 0.8])
        share = coverage_by_hand(mask, hw_out)
        got = resize_mask(torch.from_numpy(mask)[None], hw_out=hw_out)[0].numpy()
        tied = share == Fraction(1, 2)
        assert np.array_equal(got[~tied], (share > Fraction(1, 2))[~tied])


@pytest.mark.parametrize(
    ("picture", "hw_out", "want"),
    [
        ("..#... ..#... ..#... ..#...", (2, 3), ".#. .#."),  # a line half a new pixel wide stays
        ("#... .... .... ....", (2, 2), ".. .."),  # a quarter does not
        ("##.. ##.. .... ....", (2, 2), "#. .."),
        ("#. ..", (4, 4), "##.. ##.. .... ...."),
        ("#.# .#.", (2, 3), "#.# .#."),
        ("###### ###### ######", (1, 2), "##"),
    ],
)
@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32])
def test_resize_mask(picture, hw_out, want, kind):
    mask = draw(picture).to(kind)
    got = resize_mask(mask, hw_out=hw_out)
    assert got.dtype == kind
    assert torch.equal(got, draw(want).to(kind))
    assert torch.equal(resize_mask(mask[:, 0], hw_out=hw_out), got[:, 0])


def test_resizing_up_and_down_again_changes_nothing():
    masks = torch.rand(4, 1, 13, 9, generator=seeded()) > 0.5
    for times in (2, 3, 5):
        large = resize_mask(masks, hw_out=(13 * times, 9 * times))
        assert torch.equal(resize_mask(large, hw_out=(13, 9)), masks)
    assert resize_mask(masks[:0], hw_out=(4, 4)).shape == (0, 1, 4, 4)


def test_a_resized_edge_stays_in_its_place():
    mask = torch.zeros(1, 1001, 1501, dtype=torch.bool)
    mask[:, :, :500] = True
    for hw_out in ((1000, 1500), (683, 1024), (171, 256), (1500, 2250)):
        width = resize_mask(mask, hw_out=hw_out)[0].sum(1)
        assert (width - 500 * hw_out[1] / 1501).abs().max() <= 0.51


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 1, 8, 3), (8, 8)])
def test_padding_goes_below_and_right(shape):
    image = torch.rand(shape, generator=seeded()) + 1
    frame = to_frame(image, 8)
    assert frame.shape == (*shape[:-2], 8, 8)
    assert torch.equal(frame[..., : shape[-2], : shape[-1]], image)
    valid = valid_frame(torch.tensor([shape[-2:]]), 8)
    assert torch.equal(frame != 0, valid[0, 0].expand_as(frame))


def test_valid_frame_is_one_mask_an_image():
    valid = valid_frame(torch.tensor([[2, 3], [3, 1], [3, 3]]), 3)
    assert valid.dtype == torch.bool
    assert torch.equal(valid.float(), draw("### ### ...", "#.. #.. #..", "### ### ###"))


def test_boxes_of_masks_are_segment_anythings():
    masks = torch.rand(200, 9, 7, generator=seeded()) < torch.linspace(0, 0.3, 200)[:, None, None]
    masks[-1] = True
    assert torch.equal(mask_to_box(masks), batched_mask_to_box(masks))
    assert not masks[0].any()


@pytest.mark.parametrize(
    ("picture", "want"),
    [
        ("... ...", [0, 0, 0, 0]),
        ("... ..#", [2, 1, 2, 1]),  # both ends are inside
        ("##. #..", [0, 0, 1, 1]),
    ],
)
def test_mask_to_box(picture, want):
    assert mask_to_box(draw(picture)[:, 0] > 0).tolist() == [want]


@pytest.mark.parametrize("hw", [(50, 80), (80, 50), (64, 64), (7, 300), (200, 131)])
def test_logits_to_image_is_segment_anythings(hw):
    side, logits = 64, torch.randn(3, 1, 16, 16, generator=seeded())
    resized = resized_hw(*hw, side)
    sam = SimpleNamespace(image_encoder=SimpleNamespace(img_size=side))
    want = Sam.postprocess_masks(sam, logits, resized, hw)
    got = logits_to_image(logits, resized=resized, hw=hw, side=side)
    assert got.shape == (3, 1, *hw)
    assert torch.equal(got, want)
