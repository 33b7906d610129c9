"""Which images are held out: by their content hash, so that nothing is reshuffled when images come or go."""

from __future__ import annotations

import hashlib

from sum.data.records import Manifest


def held_out(key: str, *, share: float) -> bool:
    """Whether an image belongs to the held-out `share` (0..1), now and in every later version; key: its sha256."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") < share * 2**32


def bucket(sha256: str, *, bits: int) -> int:
    """Which of 2^bits buckets an image falls into: the first bits of its content hash. Others do not move it."""
    return int(sha256[:8], 16) >> (32 - bits)


def divide(manifest: Manifest, *, share: float) -> tuple[Manifest, Manifest]:
    """Images to learn from and held-out images, with their masks."""
    out = {image.image_id: held_out(image.sha256, share=share) for image in manifest.images}  # a photo in two sets too

    def part(wanted: bool) -> Manifest:
        images = [image for image in manifest.images if out[image.image_id] == wanted]
        return Manifest(images, [mask for mask in manifest.masks if out[mask.image_id] == wanted])

    return part(False), part(True)
