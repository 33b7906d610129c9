"""Which images are held out: by their content hash, so that nothing is reshuffled when images come or go."""

from __future__ import annotations

import hashlib


def held_out(key: str, *, share: float) -> bool:
    """Whether an image belongs to the held-out `share` (0..1), now and in every later version; key: its sha256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < share * 2**32


def bucket(sha256: str, *, bits: int) -> int:
    """Which of 2^bits buckets an image falls into: the first bits of its content hash. Others do not move it."""
    return int(sha256[:8], 16) >> (32 - bits)
