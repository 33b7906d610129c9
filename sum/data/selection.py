"""Which images of a data set are used, and reading them in threads: whole images, in a stated order, until enough."""

from __future__ import annotations

import fnmatch
import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from sum.data.sources import Item, Job, Note, Sample, told

EXCLUDED = "image left out by `exclude`"
UNFIT = "pattern of `exclude` that fits no image"
AHEAD = 4  # images a thread may be ahead of the reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """sum.data_settings.SelectConfig and `exclude` say what the fields mean."""

    images: int | None = None
    masks: int | None = None
    order: str = "name"
    seed: int = 0
    exclude: Sequence[str] = ()

    def full(self, *, images: int, masks: int) -> bool:
        """Whether so many images with so many masks are enough."""
        return (self.images is not None and images >= self.images) or (self.masks is not None and masks >= self.masks)


def arrange(jobs: Sequence[Job], selection: Selection) -> list[Job]:
    """The jobs in the order in which they are read, findings of the listing first, excluded images told as such.

    A pattern of `exclude` that fits no image is told too. Order 'shuffled' depends on the seed and the names only, not
    on the order of the listing.
    """
    findings = [job for job in jobs if not job.name]
    wanted, excluded, idle = list[Job](), list[Job](), set(selection.exclude)
    for job in jobs:
        if job.name:
            fit = {pattern for pattern in selection.exclude if fnmatch.fnmatchcase(job.name, pattern)}
            idle -= fit
            (excluded if fit else wanted).append(job)
    if selection.order != "file":
        wanted.sort(key=lambda job: job.name)
    if selection.order == "shuffled":
        random.Random(selection.seed).shuffle(wanted)
    notes = [Note(EXCLUDED, job.name) for job in excluded] + [Note(UNFIT, pattern) for pattern in sorted(idle)]
    return [*findings, *map(told, notes), *wanted]


def run_jobs(jobs: Sequence[Job], selection: Selection) -> Iterator[list[Item]]:
    """What each job found, in the order of `arrange`, up to the image with which the selection is full.

    Threads read ahead, as reading waits and decoding frees the interpreter: a few images each, and nothing more once
    the reader stops. An image whose reading raises ends it there, after the ones before it.
    """
    images = masks = 0
    left = iter(arrange(jobs, selection))
    threads = min(8, 2 * (os.cpu_count() or 1))
    pool = ThreadPoolExecutor(max_workers=threads)
    try:
        running = deque(pool.submit(_read, job) for job in islice(left, AHEAD * threads))
        while running:
            items = running.popleft().result()
            yield items
            samples = [item for item in items if isinstance(item, Sample)]
            images += len(samples)
            masks += sum(len(sample.masks) for sample in samples)
            if selection.full(images=images, masks=masks):
                return
            running.extend(pool.submit(_read, job) for job in islice(left, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _read(job: Job) -> list[Item]:
    return list(job.read())
