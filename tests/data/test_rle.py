"""Masks of polygons and run lengths equal pycocotools' and those of a decoder written here, pixel by pixel."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from sum.data.records import decode_mask
from sum.data.rle import OUTSIDE, coder, pack, parse_counts, resize_rle, to_rle

QUICK = settings(max_examples=40, deadline=None, derandomize=True)
SIDES = st.integers(1, 40)
MASKS = st.tuples(SIDES, SIDES).flatmap(lambda hw: arrays(bool, hw))


def polygons(low: float, high: float) -> st.SearchStrategy[list[list[float]]]:
    number = st.one_of(
        st.integers(int(low), int(high)), st.floats(low, high, width=32), st.sampled_from([0, 0.5, 19.5])
    )
    corner = st.tuples(number, number)
    ring = st.lists(corner, min_size=3, max_size=12).map(lambda ring: [value for corner in ring for value in corner])
    return st.lists(ring, min_size=1, max_size=4)


def by_hand(counts: list[int], height: int, width: int) -> np.ndarray:
    """Runs of 0 and 1 in turn, down the columns: one pixel after the other."""
    flat = [number % 2 == 1 for number, count in enumerate(counts) for _ in range(count)]
    return np.array([[flat[x * height + y] for x in range(width)] for y in range(height)])


def runs(mask: np.ndarray) -> list[int]:
    """The runs of a mask, the first of zeros, counted pixel by pixel."""
    counts, value = [0], False
    for x in range(mask.shape[1]):
        for y in range(mask.shape[0]):
            if mask[y, x] != value:
                value = not value
                counts.append(0)
            counts[-1] += 1
    return counts


@QUICK
@given(polygons(-15, 60), SIDES, SIDES)
def test_polygons_are_pycocotools(rings: list[list[float]], height: int, width: int) -> None:
    """Crossing themselves, outside, thinner than a pixel, of one point many times: drawn alike, with the same area."""
    want = np.zeros((height, width), bool)
    for ring in rings:  # one by one: a union, not a sum
        want |= coco.decode(coco.frPyObjects([ring], height, width))[..., 0].astype(bool)
    tree = json.loads(json.dumps({"segmentation": rings}))
    for segmentation in (tree["segmentation"], _packed(tree)):
        if max(abs(value) for ring in rings for value in ring) > 10 * max(height, width):
            with pytest.raises(ValueError, match="far outside"):
                to_rle(segmentation, height=height, width=width)
            continue
        rle, _ = to_rle(segmentation, height=height, width=width)
        assert bool(rle) == bool(want.any())
        if rle:
            assert np.array_equal(decode_mask(rle, height=height, width=width), want)
            assert coco.area({"size": [height, width], "counts": rle.encode()}) == want.sum()


def test_a_zigzag_that_would_take_gigabytes_is_refused() -> None:
    """pycocotools allocates by the length of the edges: 30,000 points within a photo end in a segmentation fault."""
    zigzag = [value for index in range(1_400) for value in (4_000 * (index % 2), index)]
    with pytest.raises(ValueError, match=r"edges of its polygons are 5,600,000 px long, more than the 4,000,000"):
        to_rle([zigzag], height=4_000, width=4_000)
    half = zigzag[: len(zigzag) // 2]
    assert to_rle([half], height=4_000, width=4_000)[0]
    with pytest.raises(ValueError, match="edges of its polygons"):
        to_rle([half, half], height=4_000, width=4_000)


@QUICK
@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))
def test_a_box_of_whole_numbers_covers_its_pixels(x: int, y: int, across: int, down: int) -> None:
    want = np.zeros((30, 32), bool)
    want[y : y + down, x : x + across] = True
    rle, remark = to_rle([[x, y, x + across, y, x + across, y + down, x, y + down]], height=30, width=32)
    assert bool(rle) == bool(want.any())
    assert not rle or np.array_equal(decode_mask(rle, height=30, width=32), want)
    assert not rle or remark == (OUTSIDE if x + across > 33 or y + down > 31 else "")


@QUICK
@given(MASKS)
def test_run_lengths_are_read_and_written_without_a_change(mask: np.ndarray) -> None:
    height, width = mask.shape
    counts = runs(mask)
    assert np.array_equal(by_hand(counts, height, width), mask)
    text = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    for form in (counts, text, text.decode(), _packed({"segmentation": {"counts": counts, "size": [height, width]}})):
        segmentation = form if isinstance(form, dict) else {"size": [height, width], "counts": form}
        rle, remark = to_rle(segmentation, height=height, width=width)
        assert bool(rle) == bool(mask.any()) == (not remark)
        if rle:
            assert rle == text.decode()
            assert np.array_equal(decode_mask(rle, height=height, width=width), mask)
            again, _ = to_rle({"size": [height, width], "counts": rle}, height=height, width=width)
            assert again == rle
    assert parse_counts(text.decode()).tolist() == counts


@QUICK
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_runs_of_no_pixel_make_no_other_box(counts: list[int]) -> None:
    """Allowed by the format, and never written by pycocotools, whose toBbox goes wrong on them."""
    pixels = int(np.sum(counts))
    if pixels:
        rle, _ = to_rle({"size": [pixels, 1], "counts": counts}, height=pixels, width=1)
        want = by_hand(counts, pixels, 1)
        assert bool(rle) == bool(want.any())
        if rle:
            rows = np.flatnonzero(want[:, 0])
            box = coco.toBbox({"size": [pixels, 1], "counts": rle.encode()})
            assert box.tolist() == [0, rows[0], 1, rows[-1] - rows[0] + 1]


@QUICK
@given(
    st.one_of(
        st.text(st.characters(max_codepoint=130), max_size=20),
        st.lists(st.integers(-5, 2**70), max_size=8),
        st.binary(max_size=20),
    )
)
def test_any_counts_are_a_mask_of_that_size_or_refused(counts: Any) -> None:
    try:
        rle, _ = to_rle({"size": [4, 5], "counts": counts}, height=4, width=5)
    except ValueError:
        return
    assert not rle or decode_mask(rle, height=4, width=5).shape == (4, 5)


@pytest.mark.parametrize(
    "counts", [[2**63], [2**64 + 20], [2**32 + 20], [20, 2**32 - 1, 1], [2**62, 2**62, 2**62, 2**62, 20]]
)
def test_counts_that_overflow_are_refused(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="RLE"):
        to_rle({"size": [4, 5], "counts": counts}, height=4, width=5)


@QUICK
@given(SIDES, SIDES, st.integers(0, 5), st.sampled_from([np.uint8, np.uint16, np.int32]))
def test_a_map_is_coded_as_pycocotools_codes_each_of_its_masks(height: int, width: int, most: int, kind: type) -> None:
    generator = np.random.default_rng([height, width, most])
    values = generator.integers(0, most, (height, width), endpoint=True).astype(kind)
    values = np.maximum(values, values[:, :1])  # long runs, too
    code = coder(values)
    for value in range(most + 2):
        want = coco.encode(np.asfortranarray(values == value, dtype=np.uint8))["counts"].decode()
        assert code(value) == (want if (values == value).any() else "")


@QUICK
@given(MASKS, st.integers(1, 4))
def test_a_resized_mask_is_the_mask_enlarged(mask: np.ndarray, times: int) -> None:
    height, width = mask.shape
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode()
    to = (times * height, times * width)
    found = decode_mask(resize_rle(rle, (height, width), to=to), height=to[0], width=to[1])
    assert np.array_equal(found, mask.repeat(times, 0).repeat(times, 1))
    back = resize_rle(resize_rle(rle, (height, width), to=to), to, to=(height, width))
    assert back == rle


def _packed(tree: dict[str, Any]) -> Any:
    pack(tree)
    return tree["segmentation"]
