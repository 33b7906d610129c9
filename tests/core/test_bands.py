"""The truth here is the definition of the boundary band, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from sum.core import bands
from tests.drawing import grid


def boundary_band(mask, dilation):
    """Through words and back."""
    words = bands.boundary_band(bands.packed(mask), dilation)
    assert not np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")[:, mask.shape[1] :].any()
    return np.unpackbits(words.view(np.uint8), axis=1, count=mask.shape[1], bitorder="little").astype(bool)


def band_by_hand(mask, dilation):
    """Mask pixels with something else, or the outside of the image, within `dilation` steps in any direction."""
    height, width = mask.shape
    out = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        inside = dilation <= y < height - dilation and dilation <= x < width - dilation
        around = mask[max(0, y - dilation) : y + dilation + 1, max(0, x - dilation) : x + dilation + 1]
        out[y, x] = not (inside and around.all())
    return out


@pytest.mark.parametrize("dilation", [1, 2, 3, 5, 8, 40])
def test_boundary_band_is_its_definition(dilation):
    rng = np.random.default_rng(dilation)
    for _ in range(40):
        mask = rng.random(rng.integers(1, 40, 2)) < rng.choice([0, 0.5, 0.95, 0.999, 1])
        assert np.array_equal(boundary_band(mask, dilation), band_by_hand(mask, dilation))


@pytest.mark.parametrize(
    ("picture", "want"),
    [
        ("... ... ...", "... ... ..."),
        ("##### ##### ##### ##### #####", "##### #...# #...# #...# #####"),  # the image border is a contour
        ("..... .###. .###. .###. .....", "..... .###. .#.#. .###. ....."),
    ],
)
def test_boundary_band(picture, want):
    mask = grid(picture)
    assert np.array_equal(boundary_band(mask, 1), grid(want))
    assert np.array_equal(boundary_band(mask[:, ::-1], 1), grid(want)[:, ::-1])


@pytest.mark.parametrize("dilation", [1, 3, 4, 9, 31, 32, 33, 64, 70])
@pytest.mark.parametrize("width", [63, 64, 65, 129, 200])
def test_bands_across_words(width, dilation):
    mask = np.random.default_rng(width).random((2 * dilation + 4, width)) < 1 - 0.3 / dilation**2
    words = bands.packed(mask)
    before = words.copy()
    assert np.array_equal(boundary_band(mask, dilation), band_by_hand(mask, dilation))
    bands.boundary_band(words, dilation)
    assert np.array_equal(words, before)


@pytest.mark.parametrize("by", [1, -1, 8, -8, 63, -63, 64, -64, 65, -72, 127, -130])
def test_moving_words_is_moving_pixels(by):
    mask = np.random.default_rng(0).random((3, 192)) < 0.5
    want = np.zeros_like(mask)
    for column in range(192):
        if 0 <= column - by < 192:
            want[:, column] = mask[:, column - by]
    assert np.array_equal(bands._moved(bands.packed(mask), by), bands.packed(want))
