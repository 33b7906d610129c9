"""The manifest survives the disk, and says the same whatever the order in which it was written."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sum.data import records
from sum.data.records import ImageRecord, MaskRecord, decode_mask, encode_mask, read_manifest, write_manifest
from sum.errors import DataError, MissingInput


def image(name: str, *, dataset: str = "a", split: str = "train") -> ImageRecord:
    return ImageRecord(f"{dataset}/{name}", dataset, f"raw/{name}.jpg", "0" * 64, 4, 6, "salient", split, "CC0-1.0")


def masks(of: ImageRecord, count: int) -> list[MaskRecord]:
    kept = (of.image_id, of.dataset, of.task, of.split)
    return [MaskRecord(f"{of.image_id}#{n}", *kept, 3, 0, 0, 2, 0, "0c0", "thing", "m.json") for n in range(count)]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 5), (64, 33)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_masks_survive_their_encoding(shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(0).random(shape) < share
    assert np.array_equal(decode_mask(encode_mask(mask), height=shape[0], width=shape[1]), mask)


def test_a_mask_of_a_larger_image_is_refused() -> None:
    with pytest.raises(DataError, match="3 x 3"):
        decode_mask(encode_mask(np.eye(8, dtype=bool)), height=3, width=3)


def test_rows_survive_the_disk_in_the_order_of_their_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROWS", 5)  # several row groups
    images = [image("c"), image("a/ü b"), image("b")]
    rows = [mask for one in images for mask in masks(one, 12)]
    write_manifest(tmp_path, images, rows)
    found = read_manifest(tmp_path, reader="test")
    assert found.images == sorted(images, key=lambda one: one.image_id)
    assert [mask.mask_id for mask in found.masks_of()["a/b"]] == [f"a/b#{number}" for number in range(12)]
    assert sorted(found.masks, key=lambda mask: mask.mask_id) == sorted(rows, key=lambda mask: mask.mask_id)
    assert pq.ParquetFile(tmp_path / "masks.parquet").num_row_groups == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.parquet", "masks.parquet"]


def test_an_empty_manifest_can_be_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, [], [])
    found = read_manifest(tmp_path, reader="test")
    assert (found.images, found.masks, found.masks_of()) == ([], [], {})


def test_fingerprint_follows_the_content_and_not_the_order(tmp_path: Path) -> None:
    images = [image(name) for name in "dacb"]
    rows = [mask for one in images for mask in masks(one, 3)]
    prints = []
    for seed in range(2):
        random.Random(seed).shuffle(images)
        random.Random(seed).shuffle(rows)
        write_manifest(tmp_path, images, rows)
        prints.append(read_manifest(tmp_path, reader="test").fingerprint)
    assert prints[0] == prints[1]
    for changed in (replace(rows[0], area=4), replace(rows[0], rle="0d0")):
        write_manifest(tmp_path, images, [changed, *rows[1:]])
        assert read_manifest(tmp_path, reader="test").fingerprint != prints[0]


def test_select_by_data_set_and_split(tmp_path: Path) -> None:
    images = [
        image("x"),
        image("y", dataset="b"),
        image("z", dataset="b", split="test"),
        image("u", split="unlabelled"),
    ]
    write_manifest(tmp_path, images, [mask for one in images[:3] for mask in masks(one, 2)])
    whole = read_manifest(tmp_path, reader="test")
    part = whole.select(datasets={"b"})
    assert ([one.image_id for one in part.images], len(part.masks)) == (["b/y", "b/z"], 4)
    assert [one.image_id for one in whole.select(datasets={"b"}, split="train").images] == ["b/y"]
    assert [one.image_id for one in whole.select(split="unlabelled").images] == ["a/u"]
    assert whole.select().fingerprint == whole.fingerprint


def test_a_missing_manifest_names_reader_and_maker(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"stage 'refine' reads it, stage 'ingest' writes it"):
        read_manifest(tmp_path, reader="refine")


@pytest.mark.parametrize("table", [b"PAR1 not at all", pa.table({"image_id": ["a/x"]})])
def test_a_file_that_ingest_did_not_write(tmp_path: Path, table: bytes | pa.Table) -> None:
    write_manifest(tmp_path, [image("x")], [])
    if isinstance(table, bytes):
        (tmp_path / "images.parquet").write_bytes(table)
    else:
        pq.write_table(table, tmp_path / "images.parquet")
    with pytest.raises(DataError, match=r"images\.parquet: not a table that stage 'ingest' writes.*dvc repro ingest"):
        read_manifest(tmp_path, reader="test")


def test_a_write_that_breaks_off_leaves_the_old_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path, [image("old")], [])

    def broken() -> object:
        yield image("new")
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        write_manifest(tmp_path, broken(), [])
    assert [one.image_id for one in read_manifest(tmp_path, reader="test").images] == ["a/old"]
