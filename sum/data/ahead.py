"""Photos read ahead: workers fetch, decode and resize the next ones, and send them to the device, while it works.

Workers are threads: Pillow lets go of the interpreter while it decodes and resizes, and nothing has to be pickled. At
most `ahead` photos are held beyond the one in use, whatever the number of records.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sum.data.frames import load_photo, to_planes, to_square
from sum.data.records import ImageRecord
from sum.errors import DataError, StorageError

Item = TypeVar("Item")
AHEAD = 4  # photos held beyond the one in use
SEVERAL = 5  # photos one after the other that cannot be fetched: not they, but disk or bucket is at fault


@dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A photo ready for a model of side S."""

    image: NDArray[np.uint8]  # [H, W, 3] RGB, original frame
    frame: Tensor  # [3, S, S] uint8, model frame, padded with zeros; on the device
    inner: tuple[int, int]  # (height, width) of the image in the frame


Read = Photo | DataError | StorageError


def read_photo(record: ImageRecord, *, side: int, device: torch.device) -> Photo:
    """A photo of the manifest, as the model sees it. Raises DataError and StorageError as `frames.load_photo`."""
    image = load_photo(record)
    frame, inner = to_square(Image.fromarray(image), side=side)
    return Photo(image, to_planes(frame).to(device), inner)


def read_ahead(
    records: Iterable[ImageRecord], *, side: int, device: torch.device, workers: int = 2, ahead: int = AHEAD
) -> Generator[tuple[ImageRecord, Read]]:
    """Every record with its photo, or with what is wrong with it, in their order.

    side: S; workers: threads; ahead: photos held beyond the one in use, at least 1. Raises StorageError when SEVERAL
    photos one after the other cannot be fetched. Closing the iterator, or an error, waits for reads that have begun
    and starts no other; records is read from the caller's thread alone.
    """
    if workers < 1 or ahead < 1:
        raise ValueError(f"workers and ahead must be at least 1, got {workers} and {ahead}")
    return _in_order(iter(records), side=side, device=device, workers=workers, ahead=ahead)


def in_groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items, `size` at a time; the last group may be smaller."""
    waiting = iter(items)
    while group := list(islice(waiting, size)):
        yield group


def _in_order(
    records: Iterator[ImageRecord], *, side: int, device: torch.device, workers: int, ahead: int
) -> Generator[tuple[ImageRecord, Read]]:
    waiting: deque[tuple[ImageRecord, Future[Read]]] = deque()
    failed = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read-ahead")
    try:
        for record in islice(records, ahead):
            waiting.append((record, pool.submit(_try, record, side, device)))
        while waiting:
            record, job = waiting.popleft()
            found = job.result()
            del job  # it holds the photo too
            for another in islice(records, 1):
                waiting.append((another, pool.submit(_try, another, side, device)))
            failed = failed + 1 if isinstance(found, StorageError) else 0
            if isinstance(found, StorageError) and failed == SEVERAL:
                raise found
            yield record, found
            del found
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _try(record: ImageRecord, side: int, device: torch.device) -> Read:
    try:
        return read_photo(record, side=side, device=device)
    except (DataError, StorageError) as error:
        return error
