"""Which photos are copies of test photos: by content, by perceptual hash, and confirmed by what they look like."""

from __future__ import annotations

import fnmatch
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sum.data.fingerprints import SIDE, likeness, thumbnail
from sum.data.records import ImageRecord

CHUNKS, BITS = 4, 16  # a hash of 64 bits as four numbers of 16
AT_ONCE = 1 << 19  # pairs looked at in one go: 4 MB an array
READERS = 8  # threads that read photos


@dataclass(frozen=True, slots=True)
class Copy:
    """A train or unlabelled photo that is one of a test set."""

    image_id: str
    path: str
    other_id: str
    other_path: str
    bits: int  # of 64 in which the perceptual hashes differ, mirrored or not, whichever is fewer
    likeness: float  # correlation of the small grey pictures; 1 for the same bytes
    same_bytes: bool
    allowed: bool  # by a pair of patterns

    @property
    def text(self) -> str:
        """`x/1 (raw/x/1.jpg) is y/2 (raw/y/2.jpg): ...`."""
        how = "same bytes" if self.same_bytes else f"{self.bits} of 64 bits differ, likeness {self.likeness:.3f}"
        return f"{self.image_id} ({self.path}) is {self.other_id} ({self.other_path}): {how}"


@dataclass(frozen=True, slots=True)
class _Photo:
    image_id: str
    path: str
    sha256: str


Near = dict[object, list[tuple[int, NDArray[np.int64]]]]  # hash -> (bits that differ, photos of the other side)


def find_copies(images: pd.DataFrame, *, bits: int, alike: float, allowed: Sequence[Sequence[str]] = ()) -> list[Copy]:
    """One copy of a test photo for each train or unlabelled photo that has any, and every allowed one.

    images: the columns of ImageRecord. bits: two hashes differ by at most so many; alike: and the small grey pictures
    correlate at least so much, for which the photos are read again. allowed: patterns of (id, id of the test photo).
    Raises DataError, StorageError of a photo that cannot be read.
    """
    images = images.drop_duplicates("image_id")
    test = images[images["split"] == "test"].reset_index(drop=True)
    rest = images[images["split"] != "test"].reset_index(drop=True)
    near = _near_hashes(rest, test, bits=bits)
    looks = _thumbnails(rest, test, near)
    score = functools.lru_cache(maxsize=1 << 16)(_likeness)  # thousands of flat photos share a hash and a few greys
    mine, theirs = _photos(rest), _photos(test)
    same = test.groupby("sha256", sort=False).indices
    found = list[tuple[int, Copy]]()
    for phash, ones in rest.groupby("phash", sort=False, dropna=False).indices.items():
        others = _nearest(near.get(phash, ()))
        for one in np.asarray(ones).tolist():
            photo = mine[one]
            equal = [(0, 1.0, theirs[other]) for other in same.get(photo.sha256, ())]
            near_it = ((differ, theirs[other]) for differ, other in others if theirs[other].sha256 != photo.sha256)
            unlike = ((d, score(looks[photo.image_id], looks[o.image_id]), o) for d, o in near_it)
            for differ, share, other in itertools.chain(equal, unlike):
                if share >= alike or other.sha256 == photo.sha256:
                    copy = _copy(photo, other, bits=differ, share=share, allowed=allowed)
                    found.append((one, copy))
                    if not copy.allowed:
                        break
    return [copy for _, copy in sorted(found, key=lambda entry: entry[0])]


def near_pairs(left: NDArray[np.uint64], right: NDArray[np.uint64], *, bits: int) -> NDArray[np.int64]:
    """`[P, 3]` rows (place in left, place in right, bits that differ) of all pairs that differ by at most `bits` < 64.

    Four chunks of 16 bits cannot all differ by more than bits // 4: those that differ by less are looked up.
    """
    reach = _reach(bits // CHUNKS)
    found = [np.zeros((0, 3), dtype=np.int64)]
    for chunk in range(CHUNKS):
        keys = _chunk(left, chunk)
        order = np.argsort(keys, kind="stable")
        starts = np.searchsorted(keys[order], np.arange(2**BITS + 1))
        for rows in _blocks(_chunk(right, chunk), reach, starts):
            wanted = (_chunk(right[rows], chunk)[:, None] ^ reach).ravel()
            counts = starts[wanted + 1] - starts[wanted]
            within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            one = order[np.repeat(starts[wanted], counts) + within]
            other = np.repeat(np.repeat(rows, len(reach)), counts)
            differ = np.bitwise_count(left[one] ^ right[other])
            near = differ <= bits
            found.append(np.stack((one[near], other[near], differ[near].astype(np.int64)), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _chunk(hashes: NDArray[np.uint64], number: int) -> NDArray[np.int64]:
    return ((hashes >> np.uint64(BITS * number)) & np.uint64(2**BITS - 1)).astype(np.int64)


def _reach(bits: int) -> NDArray[np.int64]:
    """All numbers of 16 bits of which at most so many are set."""
    numbers = np.arange(2**BITS)
    return numbers[np.bitwise_count(numbers) <= bits]


def _blocks(
    keys: NDArray[np.int64], reach: NDArray[np.int64], starts: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """Places of `keys`, as many at a time as keep the pairs they lead to below AT_ONCE (one at least)."""
    sizes = np.diff(starts)
    step = max(1, AT_ONCE // len(reach))
    for start in range(0, len(keys), step):
        rows = np.arange(start, min(start + step, len(keys)))
        cost = np.cumsum(sizes[keys[rows, None] ^ reach].sum(1))
        yield from np.split(rows, np.flatnonzero(np.diff(cost // AT_ONCE)) + 1)


def _near_hashes(rest: pd.DataFrame, test: pd.DataFrame, *, bits: int) -> Near:
    """Hash of photos of `rest` -> those of `test` with a hash near it. Equal hashes are held once, however many."""
    ours = list(rest[rest["phash"] != ""].groupby("phash").indices)
    near: Near = {}
    for column in ("phash", "mirror_phash"):
        hashed = test.index[test[column] != ""].to_numpy()
        theirs = test[test[column] != ""].groupby(column).indices
        places = [hashed[within] for within in theirs.values()]
        for a, b, differ in near_pairs(_numbers(ours), _numbers(theirs), bits=bits).tolist():
            near.setdefault(ours[a], []).append((differ, places[b]))
    return near


def _nearest(near: Iterable[tuple[int, NDArray[np.int64]]]) -> list[tuple[int, int]]:
    """(bits, photo of `test`) once a photo, the nearest first."""
    best = dict[int, int]()
    for differ, places in near:
        for other in places.tolist():
            best[other] = min(differ, best.get(other, differ))
    return sorted((differ, other) for other, differ in best.items())


def _numbers(hashes: Iterable[object]) -> NDArray[np.uint64]:
    return np.array([int(str(text), 16) for text in hashes], dtype=np.uint64)


def _thumbnails(rest: pd.DataFrame, test: pd.DataFrame, near: Near) -> dict[str, bytes]:
    """image_id -> the small grey picture of every photo that is to be looked at, equal ones held once."""
    from sum.data.frames import load_photo  # brings torch, which most runs do without

    mine, theirs = set[int](), set[int]()
    content = test["sha256"].to_numpy()
    groups = rest.groupby("phash").indices
    for phash, found in near.items():
        others = np.unique(np.concatenate([places for _, places in found]))
        for one in np.asarray(groups[phash]).tolist():
            unlike = others[content[others] != rest["sha256"][one]]
            if len(unlike):
                mine.add(one)
                theirs.update(unlike.tolist())
    rows = pd.concat([rest.loc[sorted(mine)], test.loc[sorted(theirs)]])
    names = [field.name for field in fields(ImageRecord)]
    records = [ImageRecord(*values) for values in zip(*(rows[name].tolist() for name in names), strict=True)]
    with ThreadPoolExecutor(READERS) as pool:
        looks = pool.map(lambda record: thumbnail(load_photo(record)).tobytes(), records)
        once = dict[bytes, bytes]()
        return {record.image_id: once.setdefault(look, look) for record, look in zip(records, looks, strict=True)}


def _likeness(one: bytes, other: bytes) -> float:
    return likeness(*(np.frombuffer(look, dtype=np.float32).reshape(SIDE, SIDE) for look in (one, other)))


def _photos(images: pd.DataFrame) -> list[_Photo]:
    columns = (images[entry.name].tolist() for entry in fields(_Photo))
    return [_Photo(*values) for values in zip(*columns, strict=True)]


def _copy(one: _Photo, other: _Photo, *, bits: int, share: float, allowed: Sequence[Sequence[str]]) -> Copy:
    return Copy(
        image_id=one.image_id,
        path=one.path,
        other_id=other.image_id,
        other_path=other.path,
        bits=bits,
        likeness=share,
        same_bytes=one.sha256 == other.sha256,
        allowed=any(
            fnmatch.fnmatchcase(one.image_id, mine) and fnmatch.fnmatchcase(other.image_id, theirs)
            for mine, theirs in allowed
        ),
    )
