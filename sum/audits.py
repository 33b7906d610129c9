"""A data set read for looking at it: what it holds against what it should hold.

Reading streams: counts, extremes and a few examples a reason are kept, and of the scored images one number a mask.
"""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sum.core.metrics import bootstrap_interval
from sum.data.sources import Item, Note, Problem, Sample
from sum.data_settings import DatasetConfig, ExpectConfig
from sum.datasets import read_set
from sum.errors import DataError, Refused, StorageError
from sum.progress import track
from sum.storage import exists

SHOWN = 3  # examples kept of a reason
REASONS = 200  # told apart; a file name in a reason must not fill the memory
REST = "other reasons"
Score = Callable[[Sample], Sequence[float]]  # the IoU of each of its masks


@dataclass(slots=True)
class Reason:
    """How often something was told, and of which files first."""

    count: int = 0
    files: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Contents:
    """What reading gave. Extremes are (lowest, highest), (0, 0) before anything was read."""

    images: int = 0
    masks: int = 0
    side: tuple[int, int] = (0, 0)  # px, of images: the shortest and the longest side
    area: tuple[int, int] = (0, 0)  # px, of masks
    crowd: tuple[int, int] = (0, 0)  # masks of an image
    notes: dict[str, Reason] = field(default_factory=dict)  # left out, or read in a special way, by rule
    problems: dict[str, Reason] = field(default_factory=dict)  # unusable

    def add(self, item: Item) -> None:
        """Count one item."""
        if isinstance(item, Sample):
            first = not self.images
            sides = (item.image.height, item.image.width)
            self.side = _wider(self.side, sides, first=first)
            self.crowd = _wider(self.crowd, (len(item.masks),), first=first)
            for mask in item.masks:
                self.area = _wider(self.area, (mask.area,), first=not self.masks)
                self.masks += 1
            self.images += 1
        elif isinstance(item, Problem):
            _count(self.problems, f"{item.reason} ({item.remedy})", item.file)
        elif isinstance(item, Note):
            _count(self.notes, item.reason, item.file)

    @property
    def left_out(self) -> int:
        """What was left out, or read in a special way, by rule."""
        return sum(reason.count for reason in self.notes.values())

    @property
    def unusable(self) -> int:
        """Files and annotations that cannot be used."""
        return sum(reason.count for reason in self.problems.values())


@dataclass(frozen=True, slots=True)
class Figure:
    """Mean IoU of the scored masks, per cent, and its 95 % interval by bootstrap over images."""

    mean: float
    low: float
    high: float
    images: int
    masks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """One entry of `datasets:`, or one variant of it, as it was found."""

    name: str
    variant: str  # '' for the entry itself
    root: str
    kind: str
    task: str
    found: bool
    contents: Contents
    expect: ExpectConfig
    figure: Figure | None = None
    error: str = ""  # why reading stopped
    again: bool = False  # it stopped for a disk, bucket or server: trying again may help

    @property
    def differs(self) -> list[str]:
        """What is not as it should be, in words; nothing for a set that agrees or is absent."""
        if not self.found:
            return []
        if self.error:
            return [self.error]
        found, words = self.contents, list[str]()
        for what in ("images", "masks"):
            number, wanted = getattr(found, what), getattr(self.expect, what)
            if wanted is not None and number != wanted:
                more = "fewer" if number < wanted else "more"
                words.append(f"{_some(abs(number - wanted), what)} {more} than expected")
        if found.unusable:
            words.append(f"{found.unusable:,} unusable")
        return words if found.images else [*words, "no usable image"]

    @property
    def compared(self) -> bool:
        """Whether there is a count to compare with."""
        return self.expect.images is not None or self.expect.masks is not None

    def as_json(self) -> dict[str, Any]:
        """All of it, and `differs`."""
        return {**asdict(self), "differs": self.differs}


def audit_set(
    name: str, entry: DatasetConfig, *, variant: str = "", score: Score | None = None, limit: int | None = None
) -> Audit:
    """Read an entry from its first image to its last and count.

    variant: only for the report; entry: already that of the variant. score: asked for every image, or for `limit` of
    them, drawn by the hash of their ids: of two variants the same images as far as both have them.
    """
    contents, scores = Contents(), _Scores(score, limit)
    found, error, again = True, "", False
    try:
        found = exists(entry.root)
        for item in _items(name, entry, variant=variant) if found else ():
            contents.add(item)
            if isinstance(item, Sample) and item.masks:
                scores.add(item)
        figure = scores.figure()
    except (DataError, StorageError) as caught:
        error, again, figure = str(caught), isinstance(caught, StorageError) and not isinstance(caught, Refused), None
    about = {key: getattr(entry, key) for key in ("root", "kind", "task", "expect")}
    return Audit(
        name=name, variant=variant, found=found, contents=contents, figure=figure, error=error, again=again, **about
    )


def _items(name: str, entry: DatasetConfig, *, variant: str) -> Iterator[Item]:
    lists, total = read_set(name, entry)
    title = f"audit {name}{f' ({variant})' if variant else ''}"
    for items in track(lists, title=title, unit="images", total=total):
        yield from items


class _Scores:
    """One number a scored mask, and up to `limit` samples that wait until it is known which are drawn."""

    def __init__(self, score: Score | None, limit: int | None) -> None:
        self._score, self._limit = score, limit
        self._values, self._images, self._count, self._seen = array("d"), array("q"), 0, 0
        self._drawn: list[tuple[int, int, Sample]] = []  # a heap: the largest hash first, then the latest

    def add(self, sample: Sample) -> None:
        """Play an image, or keep it among those with the smallest hashes when only so many are wanted."""
        if self._score is not None and self._limit is None:
            self._play(sample)
        elif self._score is not None and self._limit is not None:
            digest = hashlib.sha256(sample.image.image_id.encode()).digest()
            self._seen += 1
            heapq.heappush(self._drawn, (-int.from_bytes(digest[:8], "big"), -self._seen, sample))
            if len(self._drawn) > self._limit:
                heapq.heappop(self._drawn)

    def figure(self) -> Figure | None:
        """The mean over all masks with its interval; None without a mask."""
        for _, _, sample in sorted(self._drawn, key=lambda entry: -entry[1]):
            self._play(sample)
        if not self._values:
            return None
        mean, low, high = (100 * value for value in bootstrap_interval(self._values, self._images))
        return Figure(mean, low, high, self._count, len(self._values))

    def _play(self, sample: Sample) -> None:
        assert self._score is not None
        for value in self._score(sample):
            self._values.append(value)
            self._images.append(self._count)
        self._count += 1


def _some(count: int, what: str) -> str:
    """`1 image`, `1,204 images`."""
    return f"{count:,} {what.removesuffix('s') if count == 1 else what}"


def _wider(extent: tuple[int, int], values: Sequence[int], *, first: bool) -> tuple[int, int]:
    known = values if first else (*extent, *values)
    return min(known), max(known)


def _count(table: dict[str, Reason], reason: str, file: str) -> None:
    entry = table.setdefault(reason if reason in table or len(table) < REASONS else REST, Reason())
    entry.count += 1
    if len(entry.files) < SHOWN:
        entry.files.append(file)
