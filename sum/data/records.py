"""The manifest: a row an image, a row a mask. `data/manifest/{images,masks}.parquet` are written and read here only."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pycocotools import mask as coco

from sum.errors import DataError, MissingInput
from sum.storage import replace_file

ROWS = 16_384  # a row group of the Parquet files: what is held in memory while writing
IMAGES, MASKS = "images.parquet", "masks.parquet"


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One photo. Sizes are in pixels after EXIF rotation."""

    image_id: str  # DATASET/relative/path/without/suffix, unique
    dataset: str
    path: str  # below the data set's root as configured: relative to the project, or s3://...
    sha256: str  # of the file's bytes
    height: int
    width: int
    task: str  # unspecified | salient | entity | part
    split: str  # train | test | unlabelled
    licence: str
    exif: str = "transpose"  # what the orientation tag did to this photo: transpose | ignore
    phash: str = ""  # 64-bit perceptual hash of the upright photo, 16 hex digits; '' where none was taken
    mirror_phash: str = ""  # likewise of the photo mirrored left to right


@dataclass(frozen=True, slots=True)
class MaskRecord:
    """One human mask at the image's original size."""

    mask_id: str  # image_id#NUMBER, unique
    image_id: str
    dataset: str
    task: str
    split: str
    area: int  # px
    x0: int  # the box, pixels inclusive
    y0: int
    x1: int
    y1: int
    rle: str  # COCO compressed RLE counts
    category: str
    source: str  # the file it came from


Row = TypeVar("Row", ImageRecord, MaskRecord)


class Digest:
    """A fingerprint of rows that come in any order, a row at a time: the sum of their SHA-256, and their count."""

    def __init__(self) -> None:
        self._total, self._rows = 0, 0

    def add(self, values: tuple[Any, ...]) -> None:
        """One row; values: its fields."""
        row = hashlib.sha256(_ENCODE(values).encode("ascii")).digest()
        self._total, self._rows = self._total + int.from_bytes(row), self._rows + 1

    def hexdigest(self) -> str:
        """64 hex digits."""
        return hashlib.sha256(f"{self._rows} {self._total}".encode("ascii")).hexdigest()


class Manifest:
    """All images and masks of a run, in the order of their ids."""

    def __init__(self, images: list[ImageRecord], masks: list[MaskRecord]) -> None:
        """images, masks: in any order."""
        self.images = sorted(images, key=lambda image: image.image_id)
        self.masks = sorted(masks, key=lambda mask: (mask.image_id, mask_number(mask.mask_id)))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the content: the same whatever the order in which it was read."""
        digest = Digest()
        rows: Iterable[ImageRecord | MaskRecord] = itertools.chain(self.images, self.masks)
        for row in rows:
            digest.add(_values(row))
        return digest.hexdigest()

    def masks_of(self) -> dict[str, list[MaskRecord]]:
        """image_id -> its masks; every image has an entry."""
        found: dict[str, list[MaskRecord]] = {image.image_id: [] for image in self.images}
        for mask in self.masks:
            found.setdefault(mask.image_id, []).append(mask)
        return found

    def select(self, *, datasets: Collection[str] | None = None, split: str | None = None) -> Manifest:
        """The part with one of these data sets and this split; None leaves all."""

        def wanted(row: ImageRecord | MaskRecord) -> bool:
            return (datasets is None or row.dataset in datasets) and (split is None or row.split == split)

        return Manifest(
            [image for image in self.images if wanted(image)], [mask for mask in self.masks if wanted(mask)]
        )


class ManifestWriter:
    """Takes one image with its masks after the other; never holds more than a row group."""

    def __init__(self, images: pq.ParquetWriter, masks: pq.ParquetWriter) -> None:
        """Use `manifest_writer`."""
        self._digest = Digest()
        self._images = _Table(images, ImageRecord, self._digest)
        self._masks = _Table(masks, MaskRecord, self._digest)

    @property
    def fingerprint(self) -> str:
        """Of all rows added so far, as `Manifest.fingerprint`."""
        return self._digest.hexdigest()

    def add(self, image: ImageRecord | None, masks: Iterable[MaskRecord]) -> None:
        """Append an image (or none) and masks."""
        if image is not None:
            self._images.add(image)
        for mask in masks:
            self._masks.add(mask)

    def flush(self) -> None:
        """Write what is left."""
        self._images.flush()
        self._masks.flush()


class _Table:
    """Rows of one record type on their way into one Parquet file."""

    def __init__(self, writer: pq.ParquetWriter, kind: type, digest: Digest) -> None:
        self._writer, self._digest, self._rows = writer, digest, list[tuple[Any, ...]]()
        self._names = [field.name for field in fields(kind)]

    def add(self, row: ImageRecord | MaskRecord) -> None:
        values = _values(row)
        self._digest.add(values)
        self._rows.append(values)
        if len(self._rows) >= ROWS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            columns = dict(zip(self._names, map(list, zip(*self._rows, strict=True)), strict=True))
            self._writer.write_table(pa.Table.from_pydict(columns, schema=self._writer.schema))
            self._rows.clear()


@contextmanager
def manifest_writer(folder: Path) -> Iterator[ManifestWriter]:
    """A writer of `folder`'s two Parquet files, which appear when the block ends well and not otherwise."""
    with ExitStack() as stack:
        writers = []
        for name, kind in ((IMAGES, ImageRecord), (MASKS, MaskRecord)):
            partial = stack.enter_context(replace_file(folder / name))
            writers.append(stack.enter_context(pq.ParquetWriter(partial, _schema(kind), compression="zstd")))
        writer = ManifestWriter(*writers)
        yield writer
        writer.flush()


def write_manifest(folder: Path, images: Iterable[ImageRecord], masks: Iterable[MaskRecord]) -> None:
    """Write `folder`/images.parquet and masks.parquet, each whole or not at all."""
    with manifest_writer(folder) as writer:
        for image in images:
            writer.add(image, ())
        writer.add(None, masks)


def read_manifest(folder: Path, *, reader: str) -> Manifest:
    """The manifest in `folder`; reader: the stage that asks, for the MissingInput when stage ingest has not run.

    Raises DataError when a file is not what ingest writes.
    """
    return Manifest(
        _read(folder / IMAGES, ImageRecord, reader=reader), _read(folder / MASKS, MaskRecord, reader=reader)
    )


def _read(path: Path, kind: type[Row], *, reader: str) -> list[Row]:
    names = [field.name for field in fields(kind)]
    rows = list[Row]()
    for part in read_columns(path, names, reader=reader):
        rows += [kind(*values) for values in zip(*(column.to_pylist() for column in part.columns), strict=True)]
    return rows


def read_columns(path: Path, names: Sequence[str], *, reader: str) -> Iterator[pa.RecordBatch]:
    """Some columns of `IMAGES` or `MASKS`, a row group or less at a time and in the order of the file.

    reader: the stage that asks. Raises MissingInput before stage ingest, DataError when it is no file of that stage.
    """
    if not path.is_file():
        raise MissingInput(path, reader=reader, maker="ingest")
    whole = _schema(MaskRecord if path.name == MASKS else ImageRecord)
    schema = pa.schema([whole.field(name) for name in names])
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS, columns=list(names)):
                yield batch.select(list(names)).cast(schema)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        why = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a table that stage 'ingest' writes ({why}). Run `dvc repro ingest`.") from error


def _values(row: ImageRecord | MaskRecord) -> tuple[Any, ...]:
    return _IMAGE(row) if isinstance(row, ImageRecord) else _MASK(row)


_IMAGE = attrgetter(*(field.name for field in fields(ImageRecord)))
_MASK = attrgetter(*(field.name for field in fields(MaskRecord)))
_ENCODE = json.JSONEncoder().encode  # ASCII only, the same on every machine


def _schema(kind: type) -> pa.Schema:
    return pa.schema([(field.name, pa.int64() if field.type == "int" else pa.string()) for field in fields(kind)])


def mask_number(mask_id: str) -> int:
    """The number of a mask within its image."""
    return int(mask_id.rpartition("#")[2])


def encode_mask(mask: np.ndarray) -> str:
    """`[H, W]` bool or 0/1 -> counts of a COCO compressed RLE."""
    return str(coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"], "ascii")


def decode_mask(rle: str, *, height: int, width: int) -> np.ndarray:
    """Counts of a COCO compressed RLE -> `[H, W]` bool. Raises DataError when they run beyond its end."""
    columns = decode_columns(rle, height=height, width=width)
    mask: np.ndarray = columns.T.astype(bool, order="C")  # its readers go by rows, most of them many times
    return mask


def decode_columns(rle: str, *, height: int, width: int) -> np.ndarray:
    """The transposed of `decode_mask`, which is how COCO draws: `[W, H]` uint8, 0 or 1. Raises as it does."""
    try:
        mask: np.ndarray = coco.decode({"size": [height, width], "counts": rle.encode("ascii")})
    except ValueError as error:
        raise DataError(f"RLE does not describe a {height} x {width} mask ({error})") from error
    return mask.T
