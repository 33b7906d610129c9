"""Pseudo-labels and their uncertainty, image by image: what a row means, and the one reader of the shards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sum.data.shards import COLUMNS, LABELS, UNCERTAINTY, ShardInfo, damaged, open_shard, shard_info, shard_names
from sum.errors import DataError, MissingInput

OPEN_FILES = 16  # shards a store keeps open


@dataclass(frozen=True, slots=True, eq=False)
class PseudoMask:
    """One mask that SAM proposed for an unlabelled image."""

    image_id: str
    index: int  # place among the masks of its image, best predicted IoU first
    rle: str  # counts of a COCO compressed RLE, original frame
    area: int  # px, original frame
    box: tuple[int, int, int, int]  # xyxy, both ends inside, original frame
    point: tuple[float, float]  # xy, original frame: where SAM was asked
    predicted_iou: float
    stability: float
    logits: NDArray[np.float16]  # [L, L] SAM's low-resolution logits, model frame


def label_rows(masks: Sequence[PseudoMask], *, side: int) -> list[tuple[Any, ...]]:
    """Rows of a label shard for the masks of one image. Raises ValueError when logits are not `[side, side]`."""
    rows = []
    for mask in masks:
        if mask.logits.shape != (side, side):
            raise ValueError(f"PseudoMask.logits has shape {mask.logits.shape}, wants ({side}, {side})")
        raw = np.ascontiguousarray(mask.logits, dtype="<f2").tobytes()
        scores = mask.predicted_iou, mask.stability
        rows.append((mask.image_id, mask.index, mask.rle, mask.area, *mask.box, *mask.point, *scores, raw))
    return rows


def map_rows(
    image_id: str, uncertainty: NDArray[np.uint8], *, refined: NDArray[np.uint8], has_map: Sequence[bool]
) -> list[tuple[Any, ...]]:
    """Rows of an uncertainty shard for the K masks of one image.

    uncertainty, refined: codes `[K, L, L]` of u and of the refined probability (core.uncertainty.to_codes); has_map
    `[K]`: False where a mask was too small for a map.
    """
    maps = zip(uncertainty, refined, has_map, strict=True)
    return [(image_id, k, u.tobytes(), r.tobytes(), bool(has)) for k, (u, r, has) in enumerate(maps)]


class LabelStore:
    """The pseudo-labels of all unlabelled images and, where given, their uncertainty; read image by image, on demand.

    Images, and the masks of an image, come in the order of the shards. A store can be sent to worker processes.
    """

    def __init__(self, labels: Path, uncertainty: Path | None = None, *, reader: str = "finetune") -> None:
        """labels, uncertainty: folders of the two stages; reader: the stage that asks, for messages.

        Raises MissingInput without a folder, DataError when a shard is missing, damaged or of other labels.
        """
        self._folders = {LABELS: labels} | ({UNCERTAINTY: uncertainty} if uncertainty is not None else {})
        for kind, folder in self._folders.items():
            if not folder.is_dir():
                raise MissingInput(folder, reader=reader, maker=kind)
        self.shards = shard_names(labels, kind=LABELS)
        self.side = 0  # L
        self._files: OrderedDict[tuple[str, str], pq.ParquetFile] = OrderedDict()
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
        return self._info(LABELS, name)

    def masks(self, image_id: str, *, logits: bool = True) -> list[PseudoMask]:
        """The masks of an image, best first.

        Without logits theirs are `[0, 0]`: training does not need them, and they are most of the bytes.
        """
        wanted = [name for name in COLUMNS[LABELS] if logits or name != "logits"]
        return [_mask(row, side=self.side) for row in self._rows(LABELS, image_id, wanted)]

    def uncertainty(self, image_id: str) -> NDArray[np.float32]:
        """`[K, L, L]`, 0 certain .. 1 uncertain, model frame, in the order of `masks`; 0 in a store without maps."""
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
        grey = np.frombuffer(codes, dtype=np.uint8).astype(np.float32)
        grey /= 255
        return grey.reshape(-1, self.side, self.side)

    def _place(self, image_id: str) -> tuple[str, int | None, int]:
        if image_id not in self._where:
            raise DataError(f"{self._folders[LABELS]}: no labels of image '{image_id}'. Run `dvc repro {LABELS}`.")
        return self._where[image_id]

    def _rows(self, kind: str, image_id: str, columns: list[str]) -> list[dict[str, Any]]:
        if kind not in self._folders:
            raise ValueError("LabelStore was opened without the folder of uncertainty maps")
        name, group, _ = self._place(image_id)
        if group is None:
            return []
        try:
            table = self._file(kind, name).read_row_group(group, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise damaged(self._folders[kind] / name, kind, error) from error
        rows: list[dict[str, Any]] = table.to_pylist()
        return rows

    def _file(self, kind: str, name: str) -> pq.ParquetFile:
        key = kind, name
        if key not in self._files:
            self._files[key] = open_shard(self._folders[kind] / name, kind=kind)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(key)
        return self._files[key]

    def _info(self, kind: str, name: str) -> ShardInfo:
        return shard_info(self._file(kind, name), self._folders[kind] / name, kind=kind)

    def _index(self, name: str) -> None:
        """Learn where the images of a shard lie, and that its uncertainty is of these labels."""
        info = self.info(name)
        self.side = info.side
        if info.shards != len(self.shards):
            found = f"{len(self.shards)} shards, wanted {info.shards}"
            raise damaged(self._folders[LABELS], LABELS, found)
        if UNCERTAINTY in self._folders:
            maps = self._info(UNCERTAINTY, name)
            if (maps.images, maps.side) != (info.images, info.side):
                raise damaged(self._folders[UNCERTAINTY] / name, UNCERTAINTY, "made for other labels")
        group = 0
        for image_id, count in info.images.items():
            self._where[image_id] = name, group if count else None, count
            group += count > 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}  # open files stay behind


def _mask(row: dict[str, Any], *, side: int) -> PseudoMask:
    raw = row.get("logits", b"")
    return PseudoMask(
        image_id=row["image_id"],
        index=row["index"],
        rle=row["rle"],
        area=row["area"],
        box=(row["x0"], row["y0"], row["x1"], row["y1"]),
        point=(row["point_x"], row["point_y"]),
        predicted_iou=row["predicted_iou"],
        stability=row["stability"],
        logits=np.frombuffer(raw, dtype="<f2").reshape(side, side) if raw else np.zeros((0, 0), dtype=np.float16),
    )
