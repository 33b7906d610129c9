"""A model on one image of the manifest: its photo and masks read, the game of sum.models.interact played on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sum.data.frames import load_frame
from sum.data.records import ImageRecord, MaskRecord, decode_mask
from sum.models.interact import Answer, Protocol, encode_frame, play
from sum.models.segmenter import TASKS, Segmenter
from sum.models.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """What it took to play an image, and the answers, which come while they are asked for."""

    truths: list[NDArray[np.bool_]]  # [H, W] at the original size, in the order of the masks
    embedding: Tensor  # [1, C, h, w]
    answers: Iterator[Answer]  # `Answer.mask` counts the masks
    watch: Stopwatch  # of the model; has all laps when the answers have ended


def play_image(model: Segmenter, image: ImageRecord, masks: Sequence[MaskRecord], *, protocol: Protocol) -> Played:
    """Play all masks of an image. Raises DataError when the photo is not what it was at ingest.

    The task prompt is that of the image: task ids differ between data sets, never within an image.
    """
    frame, inner = load_frame(image, side=model.side)
    truths = [decode_mask(mask.rle, height=image.height, width=image.width) for mask in masks]
    watch = Stopwatch()
    with watch.running():
        embedding = encode_frame(model, frame, inner)
        embedding.flatten()[0].item()  # waits for the device
    watch.lap("encode", 1)
    ids = [mask.mask_id for mask in masks]
    answers = play(model, embedding, truths, task=TASKS[image.task], protocol=protocol, ids=ids, watch=watch)
    return Played(truths, embedding, answers, watch)


def point_ious(
    model: Segmenter, image: ImageRecord, masks: Sequence[MaskRecord], *, batch_masks: int = 64
) -> list[float]:
    """IoU 0..1 of every mask after one click on its pixel farthest from the edge: the best of three outputs."""
    protocol = Protocol(rounds=1, first_prompt="point", batch_masks=batch_masks)
    played = play_image(model, image, masks, protocol=protocol)
    return [answer.iou for answer in played.answers if answer.output == "oracle"]
