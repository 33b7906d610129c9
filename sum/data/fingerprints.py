"""What a photo looks like in 64 bits, and as a small grey picture: how a copy is known that has other bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32  # px of the small grey picture: what imagehash.phash takes its cosines of
FLAT = 2.0  # grey levels: a picture that varies by less has no shape to correlate


def perceptual_hashes(pixels: NDArray[np.uint8]) -> tuple[str, str]:
    """pHash of an upright photo `[H, W, 3]` RGB, and of its mirror image left to right: 16 hex digits each."""
    import imagehash

    small = Image.fromarray(_grey(pixels))
    mirrored = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return str(imagehash.phash(small)), str(imagehash.phash(mirrored))


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`[H, W, 3]` RGB -> `[32, 32]` grey, 0..255."""
    return _grey(pixels).astype(np.float32)


def likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Correlation of two thumbnails, -1..1, the other as it is or mirrored, whichever is more alike.

    Two flat ones are alike (1) when their greys differ by less than FLAT, else not (0).
    """
    return max(_correlation(one, other), _correlation(one, other[:, ::-1]))


def _correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    if min(one.std(), other.std()) < FLAT:
        return float(np.abs(one - other).max() < FLAT)
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`[32, 32]`: luma, reduced by Pillow's Lanczos filter."""
    small = Image.fromarray(pixels).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small)
