"""An entry of `datasets:` -> what its files hold. The one bridge between the settings and the layouts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from sum.data.layouts import LAYOUTS
from sum.data.selection import Selection, run_jobs
from sum.data.sources import Item, Source
from sum.data_settings import KEYS, DatasetConfig, line_range, numbers
from sum.errors import DataError, choose
from sum.storage import NotFound

PLACES = (
    "images",
    "masks",
    "annotations",
    "names",
    "labelmap",
    "classes",
)  # the keys that name folders and files below the root
_SAME = {field.name for field in fields(DatasetConfig)} & {field.name for field in fields(Source)}


def read_set(name: str, entry: DatasetConfig) -> tuple[Iterator[list[Item]], int]:
    """What the images of a data set hold, one list an image, and about how many lists there will be.

    A finding of the listing and an excluded image are lists of their own. Raises DataError with the keys to look at
    when a place below the root is absent: the root itself is there, so it is a name in params.yaml that is wrong, and
    waiting for a server would not help.
    """
    layout = choose(LAYOUTS, entry.kind, key=f"datasets.{name}.kind")
    try:
        jobs = layout(source_of(name, entry))
    except NotFound as error:
        asked = {key: getattr(entry, key) for key in PLACES if key in KEYS[entry.kind] and getattr(entry, key)}
        places = ", ".join(f"{key}: {value}" for key, value in asked.items())
        raise DataError(
            f"data set '{name}': {str(error).rstrip('.')}. "
            f"Mend datasets.{name} in params.yaml (now {places}, all below {entry.root}), or put the data there."
        ) from error
    selection = Selection(**asdict(entry.select), exclude=entry.exclude)
    named = sum(bool(job.name) for job in jobs)
    total = len(jobs) - named + min(named, entry.select.images or named)
    return run_jobs(jobs, selection), total


def source_of(name: str, entry: DatasetConfig) -> Source:
    """The plain values that a layout takes."""
    same: dict[str, Any] = {key: getattr(entry, key) for key in _SAME - {"values", "drop"}}
    frozen: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in same.items()}
    lines = line_range(entry.names_lines)
    return Source(name=name, values=numbers(entry.values), drop=numbers(entry.drop), lines=lines, **frozen)
