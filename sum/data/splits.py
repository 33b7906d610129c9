"""Which images are held out: by hash of the id, so that nothing is reshuffled when images come or go."""

from __future__ import annotations

import hashlib


def held_out(image_id: str, *, share: float) -> bool:
    """Whether an image belongs to the held-out `share` (0..1) of all images, today and in every later version of the data."""
    return int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:4], "big") < share * 2**32
