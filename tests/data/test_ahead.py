"""Photos read ahead: the same as one by one, in order, bounded, with what is wrong as a value, and a clean end."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sum.data.ahead import SEVERAL, Photo, read_ahead
from sum.data.frames import load_frame, load_photo
from sum.data.records import ImageRecord
from sum.errors import DataError, StorageError
from sum.models.generator import to_model
from sum.storage import sha256_file

CPU = torch.device("cpu")
SIDE = 32


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    """Twelve photos of several sizes."""
    found = []
    for number in range(12):
        height, width = 20 + 3 * number, 50 - 2 * number
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        found.append(
            ImageRecord(
                f"u/{number}", "u", str(path), sha256_file(path), height, width, "unspecified", "unlabelled", "MIT"
            )
        )
    return found


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 4), (3, 2), (4, 100)])
def test_the_photos_are_those_read_one_by_one(records: list[ImageRecord], workers: int, ahead: int) -> None:
    found = list(read_ahead(records, side=SIDE, device=CPU, workers=workers, ahead=ahead))
    assert [record for record, _ in found] == records
    for record, photo in found:
        assert isinstance(photo, Photo)
        frame, inner = load_frame(record, side=SIDE)
        assert np.array_equal(photo.image, load_photo(record))
        assert np.array_equal(photo.frame.permute(1, 2, 0).numpy(), frame)
        assert photo.inner == inner
        assert torch.equal(photo.frame, to_model(photo.image, side=SIDE))  # what `generate` would make itself
    assert not threads()


def test_what_is_wrong_with_a_photo_comes_in_its_place(records: list[ImageRecord]) -> None:
    Path(records[3].path).unlink()
    Path(records[7].path).write_bytes(b"no photo")
    found = [answer for _, answer in read_ahead(records, side=SIDE, device=CPU)]
    assert [number for number, answer in enumerate(found) if isinstance(answer, DataError)] == [3, 7]
    assert records[3].path in str(found[3])


def withhold(record: ImageRecord) -> None:
    """A disk that does not give the bytes."""
    path = Path(record.path)
    path.unlink()
    path.mkdir()


def test_a_photo_that_the_disk_does_not_give_is_that_photo_s_trouble(records: list[ImageRecord]) -> None:
    for number in (1, 2, 4):
        withhold(records[number])
    found = [answer for _, answer in read_ahead(records, side=SIDE, device=CPU)]
    assert [number for number, answer in enumerate(found) if isinstance(answer, StorageError)] == [1, 2, 4]
    assert len(found) == len(records)


def test_a_disk_that_gives_nothing_is_an_error(records: list[ImageRecord]) -> None:
    for record in records[1 : 1 + SEVERAL]:
        withhold(record)
    reading = read_ahead(records, side=SIDE, device=CPU)
    assert [next(reading)[0] for _ in range(SEVERAL)] == records[:SEVERAL]
    with pytest.raises(StorageError):
        next(reading)
    assert not threads()


@pytest.mark.parametrize("ahead", [1, 3])
def test_only_so_many_are_held(records: list[ImageRecord], ahead: int) -> None:
    taken = 0

    def count() -> Iterator[ImageRecord]:
        nonlocal taken
        for record in records:
            taken += 1
            yield record

    images = list[weakref.ref[np.ndarray]]()
    for number, (_, photo) in enumerate(read_ahead(count(), side=SIDE, device=CPU, ahead=ahead)):
        assert isinstance(photo, Photo)
        assert taken <= number + 1 + ahead
        images.append(weakref.ref(photo.image))
        del photo
        assert all(ref() is None for ref in images[:-1])  # nobody holds those before


def test_an_early_end_leaves_no_thread_and_reads_no_more(records: list[ImageRecord]) -> None:
    reading = read_ahead(records, side=SIDE, device=CPU, ahead=2)
    next(reading)
    reading.close()
    assert not threads()
    assert list(reading) == []
    for record, _ in read_ahead(records, side=SIDE, device=CPU):
        if record is records[4]:
            break
    assert not threads()


def test_no_records_no_threads() -> None:
    assert list(read_ahead([], side=SIDE, device=CPU)) == []
    assert not threads()


@pytest.mark.parametrize("options", [{"workers": 0}, {"ahead": 0}])
def test_impossible_numbers_are_refused_at_once(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        read_ahead([], side=SIDE, device=CPU, **options)
