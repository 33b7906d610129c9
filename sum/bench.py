"""A model on one image of the manifest: its photo and masks read, and encoded once for all that is asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sum.data.frames import load_photo, to_square
from sum.data.records import ImageRecord, MaskRecord, decode_mask
from sum.models.interact import Mask, Protocol, encode_frame, play
from sum.models.segmenter import TASKS, Segmenter
from sum.models.stopwatch import Stopwatch

Photo = NDArray[np.uint8]
Frame = tuple[NDArray[np.uint8], tuple[int, int]]  # [S, S, 3], and the height and width that are image


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """An image ready to be asked about."""

    photo: Photo  # [H, W, 3] RGB
    truths: list[Mask]  # [H, W] at the original size, in the order of the masks
    embedding: Tensor  # [1, C, h, w]


def open_image(model: Segmenter, image: ImageRecord, masks: Sequence[MaskRecord], *, watch: Stopwatch) -> Opened:
    """Read and encode an image; watch: takes the encoder's time.

    Raises DataError when the photo is not what it was at ingest.
    """
    photo, (frame, inner), truths = read_image(image, masks, side=model.side)
    with watch.running():
        embedding = encode_frame(model, frame, inner)
        embedding.flatten()[0].item()  # waits for the device
    watch.lap("encode", 1)
    return Opened(photo, truths, embedding)


def read_image(image: ImageRecord, masks: Sequence[MaskRecord], *, side: int) -> tuple[Photo, Frame, list[Mask]]:
    """Photo `[H, W, 3]` uint8 RGB, its frame as `to_square` makes it, and the masks, bool `[H, W]`. Asks no model."""
    photo = load_photo(image)
    truths = [decode_mask(mask.rle, height=image.height, width=image.width) for mask in masks]
    return photo, to_square(Image.fromarray(photo), side=side), truths


def point_ious(
    model: Segmenter, image: ImageRecord, masks: Sequence[MaskRecord], *, batch_masks: int = 64
) -> list[float]:
    """IoU 0..1 of every mask after one click on its pixel farthest from the edge: the best of three outputs.

    The task prompt is that of the image: task ids differ between data sets, never within an image.
    """
    protocol = Protocol(rounds=1, first_prompt="point", batch_masks=batch_masks)
    opened = open_image(model, image, masks, watch=Stopwatch())
    answers = play(model, opened.embedding, opened.truths, task=TASKS[image.task], protocol=protocol)
    return [answer.iou for answer in answers if answer.output == "oracle"]
