"""A sheet of photos, each beside its pseudo-labels in colours and the heat of their uncertainty."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Collection, Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from sum.data.frames import load_photo
from sum.data.label_exports import enlarged
from sum.data.labels import LabelStore, PseudoMask
from sum.data.pictures import Image, Window, heat
from sum.data.records import ImageRecord, decode_mask

HEIGHT, WIDTH = 192, 256  # px of a picture: a photo is scaled to fit in, the rest is white
GAP = 4  # px of white between pictures
SHARE = 0.5  # of a mask's colour in its pixels
GOLDEN = 0.618  # of the circle of hues from one mask to the next: neighbours differ


def by_lot(image_ids: Collection[str], number: int, *, seed: int) -> list[str]:
    """`number` of the images, the same for the same seed; those of a smaller number come first."""

    def lot(image_id: str) -> bytes:
        return hashlib.sha256(f"{seed} {image_id}".encode()).digest()

    return sorted(image_ids, key=lot)[:number]


def contact_sheet(store: LabelStore, images: Iterable[ImageRecord], *, side: int) -> Image:
    """A row an image: the photo, its masks, its uncertainty; side: S of the model that made the labels.

    Returns `[rows * (HEIGHT + GAP) - GAP, 3 * (WIDTH + GAP) - GAP, 3]` RGB. Raises DataError when a photo is
    unreadable or another than at ingest.
    """
    rows = [_beside([_cell(picture) for picture in _pictures(store, image, side=side)], axis=1) for image in images]
    return _beside(rows, axis=0)


def _pictures(store: LabelStore, record: ImageRecord, *, side: int) -> tuple[Image, Image, Image]:
    hw = (record.height, record.width)
    window = Window(0, hw[0], 0, hw[1], longest=_longest(hw))
    photo = load_photo(record)
    codes = store.uncertainty(record.image_id).max(axis=0, initial=0)
    doubt = heat(window, photo, values=enlarged(codes, hw=hw, side=side) / np.float32(255))
    return window.photo(photo), painted(window, photo, store.masks(record.image_id)), doubt


def painted(window: Window, photo: Image, masks: Sequence[PseudoMask]) -> Image:
    """The photo `[H, W, 3]` under its masks, each in a colour with an outline; small ones lie on large ones."""
    picture = np.ascontiguousarray(window.photo(photo))
    height, width = photo.shape[:2]
    for mask in sorted(masks, key=lambda one: -one.area):
        region = window.mask(decode_mask(mask.rle, height=height, width=width))
        colour = _colour(mask.index)
        picture[region] = (1 - SHARE) * picture[region] + SHARE * np.array(colour, dtype=np.float32)
        outline, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outline, -1, colour, 1)
    return picture


def _longest(hw: tuple[int, int]) -> int:
    """px of the longest side of a photo of hw (height, width) that just fits into a picture."""
    return round(max(hw) * min(HEIGHT / hw[0], WIDTH / hw[1]))


def _colour(index: int) -> tuple[int, int, int]:
    """RGB of mask `index`."""
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN % 1, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _cell(picture: Image) -> Image:
    """The picture in the middle of white."""
    down, across = HEIGHT - picture.shape[0], WIDTH - picture.shape[1]
    room = ((down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
    return np.pad(picture, room, constant_values=255)


def _beside(pictures: Sequence[Image], *, axis: int) -> Image:
    """Pictures of one size with white between, from left to right (axis 1) or down (axis 0)."""
    shape = list(pictures[0].shape)
    shape[axis] = GAP
    gap: NDArray[np.uint8] = np.full(shape, 255, dtype=np.uint8)
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=axis)
