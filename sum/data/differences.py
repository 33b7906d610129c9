"""What differs between two manifests: images by their ids, masks by what they show, counted a data set and task.

Images are joined as Arrow tables. Of a mask only 64-bit hashes are held: two of ten million differ by chance once in
four hundred thousand comparisons.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sum.data.records import IMAGES, MASKS, ROWS, Digest, ImageRecord, MaskRecord, mask_number, read_columns
from sum.errors import DataError, MissingInput

KINDS = ("added", "removed", "altered")
SHOWN = 3  # ids kept of a kind
Group = tuple[str, str]  # data set, task
_STATE = ("sha256", "height", "width", "task", "split", "licence")  # an image that keeps its id is altered in these
_SALT = np.uint64(0x9E3779B97F4A7C15)  # odd: keeps the category's hash apart from that of the pixels


@dataclass(slots=True)
class Change:
    """What happened to the images and masks of one data set and task; kinds are those of KINDS and 'same'."""

    images: Counter[str] = field(default_factory=Counter)
    masks: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)  # kind -> ids of images, the first by name

    @property
    def any(self) -> bool:
        """Whether anything but 'same' was found."""
        return any(table[kind] for table in (self.images, self.masks) for kind in KINDS)

    def as_json(self) -> dict[str, Any]:
        """Plain counts and ids."""
        return {"images": dict(self.images), "masks": dict(self.masks), "first": self.first}


def differences(old: Path, new: Path) -> dict[Group, Change]:
    """What became of `old` in `new`, two folders as stage ingest writes them; a row a data set and task, in order.

    An image is the same when its id, content, size, task, split and licence are. The masks of an image are compared as
    a heap, so that a new number is no change: of those without an equal in the other manifest, as many as both have are
    altered, the rest is added or removed. Raises DataError when a file is no manifest.
    """
    found: dict[Group, Change] = {}
    table = _joined(_images(old / IMAGES), _images(new / IMAGES))
    for row in table.group_by(["dataset", "task", "kind"]).aggregate([([], "count_all")]).to_pylist():
        found.setdefault((row["dataset"], row["task"]), Change()).images[row["kind"]] = row["count_all"]
    changed = table.filter(pc.not_equal(table["kind"], "same")).sort_by("image_id")
    for (dataset, task), change in found.items():
        mine = pc.and_(pc.equal(changed["dataset"], dataset), pc.equal(changed["task"], task))
        for kind in KINDS:
            ids = changed.filter(pc.and_(mine, pc.equal(changed["kind"], kind)))["image_id"][:SHOWN].to_pylist()
            change.first |= {kind: ids} if ids else {}
    for group, counts in _mask_changes(old / MASKS, new / MASKS).items():
        found.setdefault(group, Change()).masks = counts
    return dict(sorted(found.items()))


def fingerprints(folder: Path, choices: Collection[tuple[str, ...]], *, reader: str) -> dict[tuple[str, ...], str]:
    """`Manifest.select(datasets=...).fingerprint` of several choices of data sets, a row of the files at a time.

    A manifest from before the perceptual hashes has the fingerprint of that time, by which its trainings are tagged: it
    depends on the order, so all rows are held. Errors as `sum.data.records.read_manifest`.
    """
    names = _image_columns(folder / IMAGES, reader=reader)
    if "phash" not in names:
        return _former_fingerprints(folder, choices, names=names, reader=reader)
    digests = {choice: Digest() for choice in choices}
    for name, kind, columns in ((IMAGES, ImageRecord, names), (MASKS, MaskRecord, _names(MaskRecord))):
        place = _names(kind).index("dataset")
        for batch in read_columns(folder / name, columns, reader=reader):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                for choice in choices:
                    if row[place] in choice:
                        digests[choice].add(row)
    return {choice: digest.hexdigest() for choice, digest in digests.items()}


def _former_fingerprints(
    folder: Path, choices: Collection[tuple[str, ...]], *, names: list[str], reader: str
) -> dict[tuple[str, ...], str]:
    """SHA-256 of the rows as JSON, a line each, by id and number of the mask."""
    digests = {choice: hashlib.sha256() for choice in choices}
    for name, columns in ((IMAGES, names), (MASKS, _names(MaskRecord))):
        rows = list[tuple[Any, ...]]()
        for batch in read_columns(folder / name, columns, reader=reader):
            rows += zip(*(column.to_pylist() for column in batch.columns), strict=True)
        image, place = columns.index("image_id"), columns.index("dataset")
        rows.sort(key=lambda row: (row[image], mask_number(row[0]) if name == MASKS else 0))
        for row in rows:
            line = json.dumps(row).encode() + b"\n"
            for choice in choices:
                if row[place] in choice:
                    digests[choice].update(line)
    return {choice: digest.hexdigest() for choice, digest in digests.items()}


def _image_columns(path: Path, *, reader: str) -> list[str]:
    """The columns of ImageRecord that a manifest has, which may be older than some; those without default it must."""
    if not path.is_file():
        raise MissingInput(path, reader=reader, maker="ingest")
    with _opened(path, []) as file:
        there = set(file.schema_arrow.names)
    return [entry.name for entry in fields(ImageRecord) if entry.name in there or entry.default is MISSING]


def _names(kind: type[ImageRecord | MaskRecord]) -> list[str]:
    return [entry.name for entry in fields(kind)]


def _images(path: Path) -> pa.Table:
    """image_id, dataset, task, and the rest of an image as one text."""
    names = ["image_id", "dataset", *_STATE]
    with _opened(path, names) as file:
        table = file.read(columns=names)
    parts = [pc.cast(table[name], pa.string()) for name in _STATE]
    state = pc.binary_join_element_wise(*parts, "\n")
    return table.select(["image_id", "dataset", "task"]).append_column("state", state)


def _joined(old: pa.Table, new: pa.Table) -> pa.Table:
    """A row an image of either: image_id, dataset, task (the new ones where there are), kind."""
    both = old.join(new, "image_id", join_type="full outer", left_suffix="_old", right_suffix="_new")
    gone, fresh = pc.is_null(both["state_new"]), pc.is_null(both["state_old"])
    equal = pc.fill_null(pc.equal(both["state_old"], both["state_new"]), fill_value=False)
    kind = pc.if_else(fresh, "added", pc.if_else(gone, "removed", pc.if_else(equal, "same", "altered")))
    columns = {name: pc.coalesce(both[f"{name}_new"], both[f"{name}_old"]) for name in ("dataset", "task")}
    return pa.table({"image_id": both["image_id"], **columns, "kind": kind})


def _mask_changes(old: Path, new: Path) -> dict[Group, Counter[str]]:
    groups: dict[Group, int] = {}
    before, after = (_counted(_hashed(path, groups)) for path in (old, new))
    both = before.add_suffix("_old").join(after.add_suffix("_new"), how="outer")
    count = both[["count_old", "count_new"]].fillna(0).astype(np.int64)
    same = count.min(axis=1)
    left = pd.DataFrame({"same": same, "old": count["count_old"] - same, "new": count["count_new"] - same})
    left["group"] = both["group_new"].fillna(both["group_old"]).astype(np.int64)
    image = left.groupby(level="image", sort=False).agg({"same": "sum", "old": "sum", "new": "sum", "group": "max"})
    image["altered"] = image[["old", "new"]].min(axis=1)
    image["removed"], image["added"] = image["old"] - image["altered"], image["new"] - image["altered"]
    sums = image.groupby("group")[["same", *KINDS]].sum()
    names = {code: group for group, code in groups.items()}
    return {
        names[int(str(code))]: Counter({str(k): int(v) for k, v in row.items() if v}) for code, row in sums.iterrows()
    }


def _counted(masks: pd.DataFrame) -> pd.DataFrame:
    """Index image, content; columns count and group."""
    by = masks.groupby(["image", "content"], sort=False)["group"]
    return pd.DataFrame({"count": by.size(), "group": by.max()})


def _hashed(path: Path, groups: dict[Group, int]) -> pd.DataFrame:
    """A row a mask: hash of its image's id, hash of pixels and category, number of its set and task in `groups`."""
    parts = []
    names = ["image_id", "dataset", "task", "rle", "category"]
    with _opened(path, names) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=names):
            image, rle, category = (_hash(batch.column(name)) for name in ("image_id", "rle", "category"))
            pairs = zip(batch.column("dataset").to_pylist(), batch.column("task").to_pylist(), strict=True)
            codes = np.fromiter((groups.setdefault(pair, len(groups)) for pair in pairs), np.int32, len(batch))
            parts.append(pd.DataFrame({"image": image, "content": rle ^ (category * _SALT), "group": codes}))
    columns = {"image": "uint64", "content": "uint64", "group": "int32"}
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns)).astype(columns)


def _hash(column: pa.Array) -> np.ndarray:
    values = column.to_numpy(zero_copy_only=False)
    hashed: np.ndarray = pd.util.hash_array(values, categorize=False)
    return hashed


def _opened(path: Path, names: list[str]) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a table of a manifest ({str(error).partition(chr(10))[0]})") from error
    lacking = [name for name in names if name not in file.schema_arrow.names]
    if lacking:
        raise DataError(f"{path}: not a table of a manifest, it has no column '{lacking[0]}'")
    return file
