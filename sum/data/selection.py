"""Which images of a data set are used, and reading them in threads: whole images, in a stated order, until there are enough."""

from __future__ import annotations

import fnmatch
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sum.data.sources import Item, Job, Note, Sample, told

EXCLUDED = "image left out by `exclude`"
AHEAD = 64  # jobs the threads may be ahead of the reader


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """sum.data_settings.SelectConfig and `exclude` say what the fields mean."""

    images: int | None = None
    masks: int | None = None
    order: str = "name"
    seed: int = 0
    exclude: Sequence[str] = ()

    @property
    def limited(self) -> bool:
        """Whether a number ends the reading."""
        return self.images is not None or self.masks is not None


def arrange(jobs: Sequence[Job], selection: Selection) -> list[Job]:
    """The jobs in the order in which they are read, findings of the listing first, excluded images told as such.

    Order 'shuffled' depends on the seed and the names only, not on the order of the listing.
    """
    findings = [job for job in jobs if not job.name]
    wanted, excluded = list[Job](), list[Job]()
    for job in jobs:
        if job.name:
            out = any(fnmatch.fnmatchcase(job.name, pattern) for pattern in selection.exclude)
            (excluded if out else wanted).append(job)
    if selection.order != "file":
        wanted.sort(key=lambda job: job.name)
    if selection.order == "shuffled":
        random.Random(selection.seed).shuffle(wanted)
    return [*findings, *(told(Note(EXCLUDED, job.name)) for job in excluded), *wanted]


def run_jobs(jobs: Sequence[Job], selection: Selection) -> Iterator[list[Item]]:
    """What each job found, in the order of `arrange`, up to the image with which the selection is full.

    Threads read ahead, as reading waits and decoding frees the interpreter.
    """
    images = masks = 0
    ordered = arrange(jobs, selection)
    with ThreadPoolExecutor(max_workers=min(8, 2 * (os.cpu_count() or 1))) as pool:
        for start in range(0, len(ordered), AHEAD):
            for items in pool.map(lambda job: list(job.read()), ordered[start : start + AHEAD]):
                yield items
                samples = [item for item in items if isinstance(item, Sample)]
                images += len(samples)
                masks += sum(len(sample.masks) for sample in samples)
                if images >= (selection.images or images + 1) or masks >= (selection.masks or masks + 1):
                    return
