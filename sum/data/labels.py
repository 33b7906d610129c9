"""Pseudo-labels and their uncertainty, image by image: what a row means, and the one reader of the shards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sum.data.code_maps import Packed, compress, decompress, pack, unpack, unpack_distance
from sum.data.shards import LABELS, UNCERTAINTY, Shard, ShardInfo, damaged, shard_names
from sum.errors import DataError, MissingInput

OPEN_FILES = 16  # shards a store keeps open
NOWHERE = (0, 0, 0, 0)
Codes = NDArray[np.uint8]


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


def label_rows(masks: Sequence[PseudoMask], codes: Codes) -> list[tuple[Any, ...]]:
    """Rows of a label shard for the K masks of one image, best first.

    codes: `[K, L, L]` of SAM's probability, model frame (core.uncertainty.to_codes).
    """
    rows = []
    for mask, plane in zip(masks, codes, strict=True):
        scores = mask.predicted_iou, mask.stability
        rle = mask.rle.encode("ascii")
        rows.append((mask.area, mask.box, mask.point, *scores, len(rle), compress(rle), *pack(plane)))
    return rows


def map_rows(has_map: Sequence[bool], *, refined: Codes | None, uncertainty: Codes | None) -> list[tuple[Any, ...]]:
    """Rows of an uncertainty shard for the K masks of one image.

    has_map `[K]`: False where a mask was too small for a map. refined, uncertainty: codes `[K, L, L]` of the refined
    probability and of u. Without `refined` the refined mask is SAM's own; without `uncertainty` u is the distance of
    the refined codes to SAM's: the paper's method needs no map of its own.
    """
    rows = []
    for k, has in enumerate(has_map):
        packed = [pack(maps[k]) if has and maps is not None else (None, NOWHERE) for maps in (refined, uncertainty)]
        rows.append((bool(has), *packed[0], *packed[1]))
    return rows


class LabelStore:
    """The pseudo-labels of all unlabelled images and, where given, their uncertainty; read image by image, on demand.

    Images, and the masks of an image, come in the order of the shards. `only` chooses masks of an image by their index,
    in any order; the others are not decoded. A store can be sent to worker processes.
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
        self._open: OrderedDict[tuple[str, str], Shard] = OrderedDict()
        self._last: dict[str, tuple[str, pa.RecordBatch | None]] = {}  # kind -> the image asked for last
        self._where: dict[str, tuple[str, int]] = {}  # image id -> shard, masks
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
        return self._place(image_id)[1]

    def info(self, name: str) -> ShardInfo:
        """The index of a label shard, by file name."""
        return self._shard(LABELS, name).info

    def masks(self, image_id: str, only: Sequence[int] | None = None) -> list[PseudoMask]:
        """The masks of an image, best first."""
        batch = self._batch(LABELS, image_id)
        if batch is None:
            return []
        area, iou, stability, size = (
            _numbers(batch, name) for name in ("area", "predicted_iou", "stability", "rle_size")
        )
        box, point = _numbers(batch, "box", 4), _numbers(batch, "point", 2)
        texts, found = batch.column("rle"), []
        with self._decoding(LABELS, image_id):
            for k in self._chosen(image_id, only):
                rle = decompress(texts[k].as_buffer(), size[k]).to_pybytes().decode("ascii")
                place = tuple(box[k]), tuple(point[k])
                found.append(PseudoMask(image_id, k, rle, area[k], *place, iou[k], stability[k]))
        return found

    def areas(self, image_id: str) -> list[int]:
        """`[K]` px, original frame, in the order of `masks`."""
        batch = self._batch(LABELS, image_id)
        return [] if batch is None else batch.column("area").to_numpy().tolist()

    def sam(self, image_id: str, only: Sequence[int] | None = None) -> Codes:
        """`[K, L, L]` codes of SAM's probabilities, model frame, in the order of `masks`."""
        chosen = self._chosen(image_id, only)
        codes = self._blank(chosen)
        with self._decoding(LABELS, image_id):
            for plane, packed in zip(codes, self._packed(LABELS, image_id, "sam", chosen), strict=True):
                unpack(packed or Packed(b"", NOWHERE), plane)
        return codes

    def refined(self, image_id: str, only: Sequence[int] | None = None) -> Codes:
        """`[K, L, L]` codes of the probabilities of the refined masks; SAM's own where a mask was not refined."""
        chosen = self._chosen(image_id, only)
        codes = self._blank(chosen)
        refined = self._packed(UNCERTAINTY, image_id, "refined", chosen)
        with self._decoding(UNCERTAINTY, image_id):
            for plane, own, sam in zip(codes, refined, self._packed(LABELS, image_id, "sam", chosen), strict=True):
                unpack(own or sam or Packed(b"", NOWHERE), plane)
        return codes

    def uncertainty(self, image_id: str, only: Sequence[int] | None = None) -> Codes:
        """`[K, L, L]` codes of u, 0 certain .. 255 uncertain, in the order of `masks`; 0 in a store without maps."""
        chosen = self._chosen(image_id, only)
        codes = self._blank(chosen)
        if UNCERTAINTY not in self._folders:
            return codes
        own, refined = (self._packed(UNCERTAINTY, image_id, name, chosen) for name in ("uncertainty", "refined"))
        with self._decoding(UNCERTAINTY, image_id):
            for plane, u, r, sam in zip(
                codes, own, refined, self._packed(LABELS, image_id, "sam", chosen), strict=True
            ):
                if u:
                    unpack(u, plane)
                elif r and sam:
                    unpack(r, plane)
                    unpack_distance(sam, plane)
        return codes

    def has_map(self, image_id: str) -> NDArray[np.bool_]:
        """`[K]`, False where a mask was too small for an uncertainty map."""
        batch = self._batch(UNCERTAINTY, image_id)
        return np.array([] if batch is None else batch.column("has_map").to_pylist(), dtype=bool)

    def _blank(self, chosen: Sequence[int]) -> Codes:
        return np.zeros((len(chosen), self.side, self.side), dtype=np.uint8)

    def _packed(self, kind: str, image_id: str, name: str, chosen: Sequence[int]) -> list[Packed | None]:
        """The maps of these masks as they are stored; None where there is none."""
        batch = self._batch(kind, image_id)
        if batch is None:
            return [None] * len(chosen)
        data, places = batch.column(name), _numbers(batch, f"{name}_place", 4)
        found = [data[k].as_buffer() for k in chosen]
        return [None if one is None else Packed(one, places[k]) for k, one in zip(chosen, found, strict=True)]

    @contextmanager
    def _decoding(self, kind: str, image_id: str) -> Iterator[None]:
        """A ValueError of what is decoded names the shard."""
        try:
            yield
        except ValueError as error:
            raise damaged(self._folders[kind] / self._place(image_id)[0], kind, error) from error

    def _chosen(self, image_id: str, only: Sequence[int] | None) -> list[int]:
        return list(range(self.count(image_id))) if only is None else [int(k) for k in only]

    def _place(self, image_id: str) -> tuple[str, int]:
        if image_id not in self._where:
            raise DataError(f"{self._folders[LABELS]}: no labels of image '{image_id}'. Run `dvc repro {LABELS}`.")
        return self._where[image_id]

    def _batch(self, kind: str, image_id: str) -> pa.RecordBatch | None:
        """The rows of an image; those asked for last are at hand without checking their bytes again."""
        if kind not in self._folders:
            raise ValueError("LabelStore was opened without the folder of uncertainty maps")
        name, _ = self._place(image_id)
        if self._last.get(kind, ("", None))[0] != image_id:
            self._last[kind] = image_id, self._shard(kind, name).rows(image_id)
        return self._last[kind][1]

    def _shard(self, kind: str, name: str) -> Shard:
        key = kind, name
        if key not in self._open:
            self._open[key] = Shard(self._folders[kind] / name, kind=kind)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]

    def _index(self, name: str) -> None:
        """Learn which images a shard holds, and that its uncertainty is of these labels."""
        info = self.info(name)
        self.side = info.side
        if info.shards != len(self.shards):
            found = f"{len(self.shards)} shards, wanted {info.shards}"
            raise damaged(self._folders[LABELS], LABELS, found)
        if UNCERTAINTY in self._folders:
            maps = self._shard(UNCERTAINTY, name).info
            if maps.source != info.digest:
                raise damaged(self._folders[UNCERTAINTY] / name, UNCERTAINTY, "made for other labels")
            if (maps.counts, maps.side) != (info.counts, info.side):
                raise damaged(self._folders[UNCERTAINTY] / name, UNCERTAINTY, "of other masks than the labels'")
        twice = info.counts.keys() & self._where.keys()
        if twice:
            raise damaged(self._folders[LABELS] / name, LABELS, f"image '{min(twice)}' is in another shard too")
        self._where |= {image_id: (name, count) for image_id, count in info.counts.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_last": {}}  # open files stay behind


def _numbers(batch: pa.RecordBatch, name: str, width: int = 0) -> list[Any]:
    """A column of numbers as a list; of `width` numbers a row, as a list of lists."""
    column = batch.column(name)
    if not width:
        return list(column.to_numpy().tolist())
    return list(column.values.to_numpy().reshape(-1, width)[column.offset :].tolist())
