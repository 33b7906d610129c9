"""SA-1B as it is downloaded: sa_N.jpg beside sa_N.json, in a folder or in tar shards that stay as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from sum.data.archives import list_members
from sum.data.collect import Collector
from sum.data.documents import of_one_image, read_lines
from sum.data.places import Found, open_photo
from sum.data.rle import EMPTY, to_rle
from sum.data.sources import Item, Job, Note, Problem, Sample, Source, is_image_name, stem_of, told
from sum.storage import join, list_files
from sum.errors import DataError

STRAY = "file that is neither photo, JSON nor tar passed over"
SHARD = ".tar"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
_PAIR = "add the file, or take the other one away"
_MEND = "download the file again, or delete it"


@dataclass(slots=True)
class _Pair:
    """Where the photo and the JSON of an image are; '' for nowhere."""

    photo: str = ""
    label: str = ""


def sa1b_layout(source: Source) -> list[Job]:
    """A folder below the root with photos, JSON files and tar shards, matched by their last name without suffix.

    With split unlabelled the photos alone, whatever JSON lies beside them; else each needs its masks. Raises DataError
    when there is no photo at all.
    """
    pairs, jobs = dict[str, _Pair](), list[Job]()
    for address in _addresses(source, jobs):
        _sort_in(source, address, pairs=pairs, jobs=jobs)
    if not any(pair.photo for pair in pairs.values()):
        raise DataError(f"data set '{source.name}': {join(source.root, source.folder)} holds no photo and no tar with one")
    for name in _names(source) or pairs:
        jobs.append(_job(source, name, pairs.get(name, _Pair())))
    return jobs
