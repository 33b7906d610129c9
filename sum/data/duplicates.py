"""Which photos are copies of test photos: by content, by perceptual hash, and confirmed by what they look like."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sum.data.fingerprints import likeness, thumbnail
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


def find_copies(images: pd.DataFrame, *, bits: int, alike: float, allowed: Sequence[Sequence[str]] = ()) -> list[Copy]:
    """One copy of a test photo for each train or unlabelled photo that has any, and every allowed one.

    images: the columns of ImageRecord. bits: two hashes differ by at most so many; alike: and the small grey pictures
    correlate at least so much, for which the photos are read again. allowed: patterns of (id, id of the test photo).
    Raises DataError, StorageError of a photo that cannot be read.
    """
    images = images.drop_duplicates("image_id")
    test = images[images["split"] == "test"].reset_index(drop=True)
    rest = images[images["split"] != "test"].reset_index(drop=True)
    candidates = dict[int, list[tuple[int, int]]]()  # photo of `rest` -> (bits, photo of `test`)
    for one, other, differ in _by_content(rest, test):
        candidates.setdefault(one, []).append((differ, other))
    for one, other, differ in _by_hash(rest, test, bits=bits):
        if rest["sha256"][one] != test["sha256"][other]:
            candidates.setdefault(one, []).append((differ, other))
    looks = _thumbnails(rest, test, candidates)
    found = list[Copy]()
    for one in sorted(candidates):
        for differ, other in sorted(candidates[one]):
            copy = _copy(rest.iloc[one], test.iloc[other], max(differ, 0), looks, allowed)
            if copy.same_bytes or copy.likeness >= alike:
                found.append(copy)
                if not copy.allowed:
                    break
    return found


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


def _by_content(rest: pd.DataFrame, test: pd.DataFrame) -> Iterator[tuple[int, int, int]]:
    places = test.groupby("sha256", sort=False).indices
    for one in np.flatnonzero(rest["sha256"].isin(places.keys())):
        for other in places[rest["sha256"][one]]:
            yield int(one), int(other), -1


def _by_hash(rest: pd.DataFrame, test: pd.DataFrame, *, bits: int) -> Iterator[tuple[int, int, int]]:
    """Equal hashes are looked for once, however many photos share them."""
    ours = rest[rest["phash"] != ""].groupby("phash").indices
    left = _numbers(ours)
    best = dict[tuple[int, int], int]()
    kept = rest.index[rest["phash"] != ""].to_numpy()
    for column in ("phash", "mirror_phash"):
        theirs = test[test[column] != ""].groupby(column).indices
        known = test.index[test[column] != ""].to_numpy()
        mine, other = list(ours.values()), list(theirs.values())
        for a, b, differ in near_pairs(left, _numbers(theirs), bits=bits).tolist():
            for one in kept[mine[a]].tolist():
                for two in known[other[b]].tolist():
                    best[one, two] = min(differ, best.get((one, two), differ))
    for (one, two), differ in best.items():
        yield one, two, differ


def _numbers(hashes: Iterable[object]) -> NDArray[np.uint64]:
    return np.array([int(str(text), 16) for text in hashes], dtype=np.uint64)


def _thumbnails(
    rest: pd.DataFrame, test: pd.DataFrame, candidates: dict[int, list[tuple[int, int]]]
) -> dict[str, NDArray[np.float32]]:
    """image_id -> the small grey picture of every photo that is to be looked at."""
    from sum.data.frames import load_photo  # brings torch, which most runs do without

    mine = {one for one, pairs in candidates.items() if any(differ >= 0 for differ, _ in pairs)}
    theirs = {other for pairs in candidates.values() for differ, other in pairs if differ >= 0}
    rows = pd.concat([rest.loc[sorted(mine)], test.loc[sorted(theirs)]])
    names = [field.name for field in fields(ImageRecord)]
    records = [ImageRecord(*values) for values in zip(*(rows[name].tolist() for name in names), strict=True)]
    with ThreadPoolExecutor(READERS) as pool:
        looks = pool.map(lambda record: thumbnail(load_photo(record)), records)
        return dict(zip((record.image_id for record in records), looks, strict=True))


def _copy(
    one: pd.Series, other: pd.Series, bits: int, looks: dict[str, NDArray[np.float32]], allowed: Sequence[Sequence[str]]
) -> Copy:
    same = one["sha256"] == other["sha256"]
    return Copy(
        image_id=one["image_id"],
        path=one["path"],
        other_id=other["image_id"],
        other_path=other["path"],
        bits=bits,
        likeness=1.0 if same else likeness(looks[one["image_id"]], looks[other["image_id"]]),
        same_bytes=bool(same),
        allowed=any(
            fnmatch.fnmatchcase(one["image_id"], mine) and fnmatch.fnmatchcase(other["image_id"], theirs)
            for mine, theirs in allowed
        ),
    )
