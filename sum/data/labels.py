"""Pseudo-label shards and their uncertainty: Parquet files, written and read here only.

A shard holds whole images, one row group an image that has masks. Its footer lists every image it answers for, so that "labelled,
nothing found" differs from "not labelled"; images that could not be read are listed apart, with the reason.
Uncertainty shards have the names and the rows of the label shards they belong to.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sum.errors import DataError, MissingInput
from sum.storage import replace_file

FORMAT = 1
FOOTER = b"sum"    # key of the footer's JSON
OPEN_FILES = 16    # shards a store keeps open
LABELS, UNCERTAINTY = "pseudo_label", "uncertainty"  # what a shard holds: also the stage that writes it

_COLUMNS: dict[str, list[tuple[str, pa.DataType]]] = {
    LABELS: [
        ("image_id", pa.string()),
        ("index", pa.int32()),
        ("rle", pa.string()),
        ("area", pa.int64()),
        *((name, pa.int32()) for name in ("x0", "y0", "x1", "y1")),
        *((name, pa.float64()) for name in ("point_x", "point_y")),
        *((name, pa.float32()) for name in ("predicted_iou", "stability")),
        ("logits", pa.binary()),
    ],
    UNCERTAINTY: [
        ("image_id", pa.string()),
        ("index", pa.int32()),
        ("uncertainty", pa.binary()),
        ("refined", pa.binary()),
        ("has_map", pa.bool_()),
    ],
}


@dataclass(frozen=True, slots=True, eq=False)
class PseudoMask:
    """One mask that SAM proposed for an unlabelled image."""

    image_id: str
    index: int                       # place among the masks of its image, best predicted IoU first
    rle: str                         # counts of a COCO compressed RLE, original frame
    area: int                        # px, original frame
    box: tuple[int, int, int, int]   # xyxy, both ends inside, original frame
    point: tuple[float, float]       # xy, original frame: where SAM was asked
    predicted_iou: float
    stability: float
    logits: NDArray[np.float16]      # [L, L] SAM's low-resolution logits, model frame


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """What a shard says of itself in its footer."""

    kind: str                                              # LABELS or UNCERTAINTY
    side: int                                              # L
    shards: int                                            # of the whole set
    images: dict[str, int] = field(default_factory=dict)   # image id -> number of masks, in the order of the rows
    unreadable: dict[str, str] = field(default_factory=dict)  # image id -> why it has no labels


class ShardWriter:
    """Rows of one shard on their way to the disk, image after image; made by `write_shard`."""

    def __init__(self, file: pq.ParquetWriter, info: ShardInfo) -> None:
        """info: its images are filled in here."""
        self._file, self.info = file, info

    def add_labels(self, image_id: str, masks: Sequence[PseudoMask]) -> None:
        """All masks of an image; none is a finding too. Raises ValueError when logits are not `[L, L]`."""
        self._add(image_id, [_label_row(mask, side=self.info.side) for mask in masks])

    def add_uncertainty(
        self, image_id: str, uncertainty: NDArray[np.uint8], *, refined: NDArray[np.uint8], has_map: Sequence[bool]
    ) -> None:
        """The maps of an image's K masks as codes `[K, L, L]`; has_map `[K]`: False where a mask was too small for one."""
        maps = zip(uncertainty, refined, has_map, strict=True)
        self._add(image_id, [(image_id, k, u.tobytes(), r.tobytes(), bool(has)) for k, (u, r, has) in enumerate(maps)])

    def skip(self, image_id: str, reason: str) -> None:
        """The image could not be read."""
        self.info.unreadable[image_id] = reason

    def _add(self, image_id: str, rows: list[tuple[Any, ...]]) -> None:
        self.info.images[image_id] = len(rows)
        if rows:
            schema = self._file.schema
            columns = [pa.array(values, part.type) for values, part in zip(zip(*rows, strict=True), schema, strict=True)]
            self._file.write_table(pa.table(columns, schema=schema), row_group_size=len(rows))


@contextmanager
def write_shard(path: Path, *, kind: str, side: int, shards: int) -> Iterator[ShardWriter]:
    """A writer for one shard of `kind`; the file appears under its name when all went well, and not before.

    side: L, of logits and maps; shards: of the whole set.
    """
    schema = pa.schema(_COLUMNS[kind])
    plain = [part.name for part in schema if part.type != pa.binary()]
    options = {"compression": "zstd", "use_dictionary": plain, "write_statistics": plain, "write_page_checksum": True}
    with replace_file(path) as partial, pq.ParquetWriter(partial, schema, **options) as file:
        writer = ShardWriter(file, ShardInfo(kind, side, shards))
        yield writer
        file.add_key_value_metadata({FOOTER: json.dumps({"format": FORMAT, **asdict(writer.info)})})


def shard_name(number: int) -> str:
    """File name of shard `number`, 0-based; names sort as numbers do."""
    return f"shard-{number:05d}.parquet"


def read_info(path: Path, *, kind: str) -> ShardInfo:
    """The footer of a shard. Raises DataError when the file is truncated, damaged or something else."""
    return _info(_open(path, kind=kind), path, kind=kind)


class LabelStore:
    """The pseudo-labels of all unlabelled images and, where given, their uncertainty; an image is read when it is asked for.

    Order of images and of the masks in an image is that of the shards. Can be sent to worker processes.
    """

    def __init__(self, labels: Path, uncertainty: Path | None = None, *, reader: str = "finetune") -> None:
        """labels, uncertainty: folders of the two stages; reader: the stage that asks, for messages.

        Raises MissingInput without a folder, DataError when a shard is missing, damaged or of other labels.
        """
        self._folders = {LABELS: labels} | ({UNCERTAINTY: uncertainty} if uncertainty is not None else {})
        self._files: OrderedDict[tuple[str, str], pq.ParquetFile] = OrderedDict()
        for kind, folder in self._folders.items():
            if not folder.is_dir():
                raise MissingInput(folder, reader=reader, maker=kind)
        self.shards = _names(labels, kind=LABELS)
        self.side = 0
        self._where: dict[str, tuple[str, int | None, int]] = {}  # image id -> shard, row group, masks
        for name in self.shards:
            self._index(name)

    @property
    def image_ids(self) -> list[str]:
        """Every labelled image, also those in which nothing was found."""
        return list(self._where)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._where

    def count(self, image_id: str) -> int:
        """K, the number of masks of an image."""
        return self._place(image_id)[2]

    def info(self, name: str) -> ShardInfo:
        """The footer of a label shard, by file name."""
        return _info(self._file(LABELS, name), self._folders[LABELS] / name, kind=LABELS)

    def masks(self, image_id: str, *, logits: bool = True) -> list[PseudoMask]:
        """The masks of an image, best first. Without logits theirs are `[0, 0]`: training does not need them, and they are most of the bytes."""
        wanted = [name for name, _ in _COLUMNS[LABELS] if logits or name != "logits"]
        return [_mask(row, side=self.side) for row in self._rows(LABELS, image_id, wanted)]

    def uncertainty(self, image_id: str) -> NDArray[np.float32]:
        """`[K, L, L]`, 0 certain .. 1 uncertain, model frame, in the order of `masks`; all 0 for a store without uncertainty."""
        if UNCERTAINTY not in self._folders:
            return np.zeros((self.count(image_id), self.side, self.side), dtype=np.float32)
        return self._maps(image_id, "uncertainty")

    def refined(self, image_id: str) -> NDArray[np.float32]:
        """`[K, L, L]` probabilities of the refined masks, model frame, in the order of `masks`."""
        return self._maps(image_id, "refined")

    def has_map(self, image_id: str) -> NDArray[np.bool_]:
        """`[K]`, False where a mask was too small for an uncertainty map."""
        return np.array([row["has_map"] for row in self._rows(UNCERTAINTY, image_id, ["has_map"])], dtype=bool)

    def _maps(self, image_id: str, column: str) -> NDArray[np.float32]:
        codes = b"".join(row[column] for row in self._rows(UNCERTAINTY, image_id, [column]))
        return np.frombuffer(codes, dtype=np.uint8).reshape(-1, self.side, self.side).astype(np.float32) / 255

    def _place(self, image_id: str) -> tuple[str, int | None, int]:
        if image_id not in self._where:
            raise DataError(f"{self._folders[LABELS]}: no labels of image '{image_id}'. Run `dvc repro {LABELS}`.")
        return self._where[image_id]

    def _rows(self, kind: str, image_id: str, columns: list[str]) -> list[dict[str, Any]]:
        name, group, count = self._place(image_id)
        if group is None:
            return []
        try:
            table = self._file(kind, name).read_row_group(group, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self._folders[kind] / name, kind, error) from error
        if len(table) != count:
            raise _damaged(self._folders[kind] / name, kind, f"{len(table)} rows of image '{image_id}', wanted {count}")
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def _file(self, kind: str, name: str) -> pq.ParquetFile:
        key = kind, name
        if key not in self._files:
            self._files[key] = _open(self._folders[kind] / name, kind=kind)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(key)
        return self._files[key]

    def _index(self, name: str) -> None:
        info = self.info(name)
        self.side = info.side
        if info.shards != len(self.shards):
            raise _damaged(self._folders[LABELS], LABELS, f"{len(self.shards)} shards, wanted {info.shards}")
        if UNCERTAINTY in self._folders:
            other = self._folders[UNCERTAINTY] / name
            maps = _info(self._file(UNCERTAINTY, name), other, kind=UNCERTAINTY)
            if (maps.images, maps.side) != (info.images, info.side):
                raise _damaged(other, UNCERTAINTY, f"made for other labels than {self._folders[LABELS] / name}")
        group = 0
        for image_id, count in info.images.items():
            self._where[image_id] = name, group if count else None, count
            group += count > 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}  # open files stay behind


def _names(folder: Path, *, kind: str) -> list[str]:
    names = sorted(path.name for path in folder.glob("shard-*.parquet"))
    for number, name in enumerate(names):
        if name != shard_name(number):
            raise _damaged(folder / shard_name(number), kind, "the shard is missing")
    return names


def _open(path: Path, *, kind: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(str(path), page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, kind, error) from error


def _info(file: pq.ParquetFile, path: Path, *, kind: str) -> ShardInfo:
    try:
        about = json.loads((file.metadata.metadata or {})[FOOTER])
        if about.pop("format") != FORMAT or about["kind"] != kind:
            raise ValueError(f"format {FORMAT} of '{kind}' expected")
        info = ShardInfo(**about)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, kind, f"unknown footer: {error}") from error
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    if groups != [count for count in info.images.values() if count]:
        raise _damaged(path, kind, "the footer and the rows disagree")
    return info


def _damaged(path: Path, kind: str, why: object) -> DataError:
    return DataError(f"{path}: not what stage '{kind}' writes ({why}). Run `dvc repro {kind}`.")


def _label_row(mask: PseudoMask, *, side: int) -> tuple[Any, ...]:
    if mask.logits.shape != (side, side):
        raise ValueError(f"PseudoMask.logits has shape {mask.logits.shape}, wants ({side}, {side})")
    logits = np.ascontiguousarray(mask.logits, dtype="<f2").tobytes()
    return (mask.image_id, mask.index, mask.rle, mask.area, *mask.box, *mask.point, mask.predicted_iou, mask.stability, logits)


def _mask(row: dict[str, Any], *, side: int) -> PseudoMask:
    raw = row.get("logits")
    logits = np.frombuffer(raw, dtype="<f2").reshape(side, side) if raw is not None else np.zeros((0, 0), dtype=np.float16)
    return PseudoMask(
        image_id=row["image_id"],
        index=row["index"],
        rle=row["rle"],
        area=row["area"],
        box=(row["x0"], row["y0"], row["x1"], row["y1"]),
        point=(row["point_x"], row["point_y"]),
        predicted_iou=row["predicted_iou"],
        stability=row["stability"],
        logits=logits,
    )
