"""The container of pseudo-labels and uncertainty maps: Arrow files of whole images, a record batch an image.

A shard is an ordinary Arrow IPC file, read in place (memory-mapped). Its last batch has no rows but the index: where
each image's batch lies, its number of masks and its CRC-32, so that "labelled, nothing found" differs from "not
labelled", one image is read without the others, and damage is noticed. Images that could not be read are listed with
the reason. The same rows give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from sum.errors import DataError
from sum.storage import is_left, replace_file, replace_folder, write_json

FORMAT = 2
INDEX = b"sum"  # key of the index among the metadata of the last batch
LABELS, UNCERTAINTY = "pseudo_label", "uncertainty"  # what a shard holds, which is also the stage that writes it
SUMMARY = "summary.json"
PATTERN = "shard-*.arrow"
QUIET = 3600.0  # s without a write, after which nobody is at work on a file
PENDING = "pending-"  # begins the name of a work file that is not yet under its own


def _map(name: str) -> dict[str, pa.DataType]:
    """The columns of one map (sum.data.code_maps.Packed); no data: no such map."""
    return {name: pa.binary(), f"{name}_place": pa.list_(pa.uint16(), 4)}


COLUMNS: Mapping[str, Mapping[str, pa.DataType]] = {
    LABELS: {
        "area": pa.int64(),
        "box": pa.list_(pa.int32(), 4),
        "point": pa.list_(pa.float64(), 2),
        **{name: pa.float32() for name in ("predicted_iou", "stability")},
        "rle_size": pa.int32(),
        "rle": pa.binary(),
        **_map("sam"),
    },
    UNCERTAINTY: {"has_map": pa.bool_(), **_map("refined"), **_map("uncertainty")},
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the masks of an image lie in a shard."""

    count: int  # masks
    offset: int = 0  # bytes, of the record batch; 0 without masks
    size: int = 0
    crc: int = 0  # CRC-32 of these bytes


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """What a shard says of itself in its index."""

    kind: str  # LABELS or UNCERTAINTY
    side: int  # L, px of the maps
    shards: int  # of the whole set
    source: str = ""  # of maps: the digest of the labels they are about
    images: dict[str, Place] = field(default_factory=dict)  # by image id, in the order of the file
    unreadable: dict[str, str] = field(default_factory=dict)  # image id -> why it has no labels
    totals: dict[str, int] = field(default_factory=dict)  # sums over the shard that a summary needs

    @property
    def counts(self) -> dict[str, int]:
        """Image id -> number of masks."""
        return {image_id: place.count for image_id, place in self.images.items()}

    @property
    def digest(self) -> str:
        """Names the rows: sha256 over where they lie and their checksums."""
        rows = [[image_id, *astuple(place)] for image_id, place in self.images.items()]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


class ShardWriter:
    """Rows of one shard on their way to the disk, image after image; made by `write_shard`."""

    def __init__(self, sink: _Sink, file: pa.ipc.RecordBatchFileWriter, info: ShardInfo) -> None:
        """info: filled in here as images come."""
        self._sink, self._file, self.info = sink, file, info

    def add(self, image_id: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """All masks of an image, values in the order of COLUMNS; no row is a finding too."""
        if not rows:
            self.info.images[image_id] = Place(0)
            return
        schema = shard_schema(self.info.kind)
        columns = [pa.array(column, part.type) for column, part in zip(zip(*rows, strict=True), schema, strict=True)]
        offset = self._sink.begin()
        self._file.write_batch(pa.record_batch(columns, schema=schema), custom_metadata={"image_id": image_id})
        self.info.images[image_id] = Place(len(rows), offset, self._sink.tell() - offset, self._sink.crc)

    def skip(self, image_id: str, reason: str) -> None:
        """The image could not be read."""
        self.info.unreadable[image_id] = reason

    def about(self, labels: ShardInfo) -> None:
        """These maps are about those labels."""
        self.info = replace(self.info, source=labels.digest)

    def count(self, name: str, value: int) -> None:
        """Add to a total of the shard."""
        self.info.totals[name] = self.info.totals.get(name, 0) + value


class _Sink:
    """A file that keeps the CRC-32 of what was written since `begin`."""

    closed = False  # Arrow asks

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.crc = file, 0

    def begin(self) -> int:
        """Start a new sum; returns the place in the file."""
        self.crc = 0
        return self._file.tell()

    def write(self, data: bytes) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()


@contextmanager
def write_shard(path: Path, *, kind: str, side: int, shards: int) -> Iterator[ShardWriter]:
    """A writer for one shard of `kind`; the file appears under its name when all went well, and not before.

    side: L, of the maps; shards: of the whole set. Raises StorageError when the disk is full.
    """
    schema = shard_schema(kind)
    empty = pa.record_batch([pa.array([], part.type) for part in schema], schema=schema)
    with replace_file(path) as partial, partial.open("wb") as opened:
        sink = _Sink(opened)
        with pa.ipc.new_file(sink, schema) as file:
            file.write_batch(empty)  # the schema goes before it: what comes after is a batch an image
            writer = ShardWriter(sink, file, ShardInfo(kind, side, shards))
            yield writer
            file.write_batch(empty, custom_metadata={INDEX: _index_bytes(writer.info)})


@cache
def shard_schema(kind: str) -> pa.Schema:
    """The columns of a kind of shard."""
    return pa.schema(list(COLUMNS[kind].items()))


def shard_name(number: int) -> str:
    """File name of shard `number`, counted from 0; names sort as numbers do."""
    return f"shard-{number:05d}.arrow"


def shard_names(folder: Path, *, kind: str) -> list[str]:
    """The shards in a folder, in order. Raises DataError when one in between is missing."""
    names = sorted(path.name for path in folder.glob(PATTERN))
    for number, name in enumerate(names):
        if name != shard_name(number):
            raise damaged(folder / shard_name(number), kind, "the shard is missing")
    return names


class Shard:
    """An open shard, mapped into memory: nothing is read but what is asked for."""

    def __init__(self, path: Path, *, kind: str) -> None:
        """Raises DataError when the file is truncated, damaged, something else, of another kind or not there."""
        self._path, self._kind = path, kind
        try:
            self._bytes = pa.memory_map(str(path)).read_buffer()
            file = pa.ipc.open_file(self._bytes)
            last = file.get_batch_with_custom_metadata(file.num_record_batches - 1).custom_metadata
            if file.schema != shard_schema(kind):
                raise ValueError(f"no shard of '{kind}'")
            self.info = _read_index(last[INDEX], kind=kind, size=self._bytes.size)
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise damaged(path, kind, error) from error

    def check(self) -> None:
        """Raises DataError when the bytes of any image are not those written."""
        for image_id in self.info.images:
            self._block(image_id)

    def rows(self, image_id: str) -> pa.RecordBatch | None:
        """The masks of an image; None when it has none. Raises DataError when its bytes are not those written."""
        block = self._block(image_id)
        if not block.size:
            return None
        return pa.ipc.read_record_batch(pa.ipc.read_message(block), shard_schema(self._kind))

    def _block(self, image_id: str) -> pa.Buffer:
        """The bytes of an image, checked; none without masks."""
        place = self.info.images[image_id]
        block = self._bytes.slice(place.offset, place.size)
        if zlib.crc32(block) != place.crc:
            raise damaged(self._path, self._kind, f"the checksum of image '{image_id}' is another")
        return block


def read_info(path: Path, *, kind: str) -> ShardInfo:
    """The index of a shard. Raises DataError when the file is missing, truncated, damaged or something else."""
    return Shard(path, kind=kind).info


def read_whole(path: Path, *, kind: str) -> ShardInfo:
    """The same, when every byte of the masks is as it was written too."""
    shard = Shard(path, kind=kind)
    shard.check()
    return shard.info


def publish(work: Mapping[str, Path], out: Path, *, summary: Mapping[str, object], shared: bool = False) -> None:
    """Put finished shards, by name, and a summary in the place of the folder `out`, all at once.

    The shards stay where they are too, as links: who is stopped before DVC has taken the folder need not compute them
    again. shared: whether other machines may be at work in the folder of the shards.
    """
    with replace_folder(out) as folder:
        for name, path in work.items():
            _link(path, folder / name)
        write_json(folder / SUMMARY, summary)
    for place in {path.parent for path in work.values()}:
        _sweep(place, quiet=QUIET if shared else 0)


def _sweep(place: Path, *, quiet: float) -> None:
    """Remove what killed runs left in a work folder, not what somebody has written within the last `quiet` seconds."""
    for left in place.glob(".*.partial"):
        if is_left(left.name.split(".")[-2]) and _age(left) >= quiet:
            left.unlink(missing_ok=True)
    for left in place.glob(f"{PENDING}*"):  # whole, but its labels never were
        if _age(left) > QUIET:
            left.unlink(missing_ok=True)


def _age(path: Path) -> float:
    """Seconds since it was last written; 0 when it is gone."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return 0.0


def damaged(path: Path, kind: str, why: object) -> DataError:
    """The error of a shard that is not what its stage wrote."""
    return DataError(f"{path}: not what stage '{kind}' writes ({why}). Run `dvc repro {kind}`.")


def _index_bytes(info: ShardInfo) -> bytes:
    """The index as JSON, after its own CRC-32."""
    about = {name: value for name, value in asdict(info).items() if name != "images"}
    places = {image_id: astuple(place) for image_id, place in info.images.items()}
    text = json.dumps({"format": FORMAT, **about, "images": places}).encode()
    return f"{zlib.crc32(text):08x}".encode() + text


def _read_index(data: bytes, *, kind: str, size: int) -> ShardInfo:
    if f"{zlib.crc32(data[8:]):08x}".encode() != data[:8]:
        raise ValueError("the checksum of the index is another")
    about = json.loads(data[8:])
    if about.pop("format") != FORMAT or about["kind"] != kind:
        raise ValueError(f"not format {FORMAT} of '{kind}'")
    images = {image_id: Place(*place) for image_id, place in about.pop("images").items()}
    if any(place.offset + place.size > size for place in images.values()):
        raise ValueError("the index points beyond the end")
    return ShardInfo(**about, images=images)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
