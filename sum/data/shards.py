"""The container of pseudo-labels and uncertainty maps: Parquet shards of whole images, a row group for each with masks.

The footer of a shard lists every image it answers for, so that "labelled, nothing found" differs from "not labelled";
images that could not be read are listed apart, with the reason. The same rows give the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sum.errors import DataError
from sum.storage import replace_file, replace_folder, write_json

FORMAT = 1
FOOTER = b"sum"  # key of the footer's JSON
LABELS, UNCERTAINTY = "pseudo_label", "uncertainty"  # what a shard holds, which is also the stage that writes it
SUMMARY = "summary.json"

COLUMNS: Mapping[str, Mapping[str, pa.DataType]] = {
    LABELS: {
        "image_id": pa.string(),
        "index": pa.int32(),
        "rle": pa.string(),
        "area": pa.int64(),
        **{name: pa.int32() for name in ("x0", "y0", "x1", "y1")},
        **{name: pa.float64() for name in ("point_x", "point_y")},
        **{name: pa.float32() for name in ("predicted_iou", "stability")},
        "logits": pa.binary(),
    },
    UNCERTAINTY: {
        "image_id": pa.string(),
        "index": pa.int32(),
        "uncertainty": pa.binary(),
        "refined": pa.binary(),
        "has_map": pa.bool_(),
    },
}


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """What a shard says of itself in its footer."""

    kind: str  # LABELS or UNCERTAINTY
    side: int  # L, px of logits and maps
    shards: int  # of the whole set
    images: dict[str, int] = field(default_factory=dict)  # image id -> number of masks, in the order of the rows
    unreadable: dict[str, str] = field(default_factory=dict)  # image id -> why it has no labels
    totals: dict[str, int] = field(default_factory=dict)  # sums over the shard that a summary needs


class ShardWriter:
    """Rows of one shard on their way to the disk, image after image; made by `write_shard`."""

    def __init__(self, file: pq.ParquetWriter, info: ShardInfo) -> None:
        """info: filled in here as images come."""
        self._file, self.info = file, info

    def add(self, image_id: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """All masks of an image, values in the order of COLUMNS; no row is a finding too."""
        self.info.images[image_id] = len(rows)
        if rows:
            values = zip(zip(*rows, strict=True), self._file.schema, strict=True)
            table = pa.table([pa.array(column, part.type) for column, part in values], schema=self._file.schema)
            self._file.write_table(table, row_group_size=len(rows))

    def skip(self, image_id: str, reason: str) -> None:
        """The image could not be read."""
        self.info.unreadable[image_id] = reason

    def count(self, name: str, value: int) -> None:
        """Add to a total of the shard."""
        self.info.totals[name] = self.info.totals.get(name, 0) + value


@contextmanager
def write_shard(path: Path, *, kind: str, side: int, shards: int) -> Iterator[ShardWriter]:
    """A writer for one shard of `kind`; the file appears under its name when all went well, and not before.

    side: L, of logits and maps; shards: of the whole set. Raises StorageError when the disk is full.
    """
    schema = pa.schema(list(COLUMNS[kind].items()))
    small = [name for name, type_ in COLUMNS[kind].items() if type_ != pa.binary()]
    options = {"compression": "zstd", "use_dictionary": small, "write_statistics": small, "write_page_checksum": True}
    with replace_file(path) as partial, pq.ParquetWriter(partial, schema, **options) as file:
        writer = ShardWriter(file, ShardInfo(kind, side, shards))
        yield writer
        file.add_key_value_metadata({FOOTER: json.dumps({"format": FORMAT, **asdict(writer.info)})})


def shard_name(number: int) -> str:
    """File name of shard `number`, counted from 0; names sort as numbers do."""
    return f"shard-{number:05d}.parquet"


def shard_names(folder: Path, *, kind: str) -> list[str]:
    """The shards in a folder, in order. Raises DataError when one in between is missing."""
    names = sorted(path.name for path in folder.glob("shard-*.parquet"))
    for number, name in enumerate(names):
        if name != shard_name(number):
            raise damaged(folder / shard_name(number), kind, "the shard is missing")
    return names


def open_shard(path: Path, *, kind: str) -> pq.ParquetFile:
    """A shard to read from; its pages carry checksums. Raises DataError when it is truncated, damaged or not there."""
    try:
        return pq.ParquetFile(str(path), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, kind, error) from error


def shard_info(file: pq.ParquetFile, path: Path, *, kind: str) -> ShardInfo:
    """The footer of an open shard. Raises DataError when it is of another kind or disagrees with the rows."""
    try:
        about = json.loads(file.metadata.metadata[FOOTER])
        if about.pop("format") != FORMAT or about["kind"] != kind:
            raise ValueError(f"not format {FORMAT} of '{kind}'")
        info = ShardInfo(**about)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, kind, f"unknown footer: {error}") from error
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    if groups != [count for count in info.images.values() if count]:
        raise damaged(path, kind, "the footer and the rows disagree")
    return info


def read_info(path: Path, *, kind: str) -> ShardInfo:
    """The footer of a shard. Raises DataError when the file is missing, truncated, damaged or something else."""
    with open_shard(path, kind=kind) as file:
        return shard_info(file, path, kind=kind)


def publish(work: Path, out: Path, *, names: Sequence[str], summary: Mapping[str, object]) -> None:
    """Put the finished shards of `work` and a summary in the place of the folder `out`, all at once.

    The shards stay in `work` too, as links: who is stopped before DVC has taken the folder need not compute them again.
    """
    with replace_folder(out) as folder:
        for name in names:
            _link(work / name, folder / name)
        write_json(folder / SUMMARY, summary)
    for left in work.glob(".*.partial"):  # of killed runs
        left.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def damaged(path: Path, kind: str, why: object) -> DataError:
    """The error of a shard that is not what its stage wrote."""
    return DataError(f"{path}: not what stage '{kind}' writes ({why}). Run `dvc repro {kind}`.")
