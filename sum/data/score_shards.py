"""Shards of an evaluation: the tables of a few images in one file, so that a shard is there whole or not at all."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sum.data.score_tables import write_table
from sum.storage import replace_file

EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip's first date: the same rows give the same bytes


def write_shard(
    path: Path, tables: Mapping[str, Sequence[Mapping[str, object]]], schemas: Mapping[str, pa.Schema]
) -> None:
    """Rows by table name to one file; every table of `schemas` is in it, empty or not."""
    with replace_file(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, schema in schemas.items():
            stream = io.BytesIO()
            write_table(stream, tables[name], schema)
            archive.writestr(zipfile.ZipInfo(name, EPOCH), stream.getvalue())


def is_whole(path: Path, schemas: Mapping[str, pa.Schema]) -> bool:
    """Whether it is such a file, undamaged (CRC-32 of each table)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist()) == set(schemas) and archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def read_shards(paths: Iterable[Path], name: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """One table of each shard."""
    for path in paths:
        with zipfile.ZipFile(path) as archive:
            yield pq.read_table(io.BytesIO(archive.read(name)), schema=schema)
