"""Shards of an evaluation: the same bytes, whole or not there, and any flipped byte of a table is noticed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from sum.data.score_shards import is_whole, read_shards, write_shard

SCHEMAS = {"one.parquet": pa.schema({"name": pa.string()}), "two.parquet": pa.schema({"number": pa.int32()})}
TABLES = {"one.parquet": [{"name": "a"}, {"name": "b"}], "two.parquet": []}


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "work" / "0.zip"
    write_shard(path, TABLES, SCHEMAS)
    return path


def test_tables_come_back_one_after_the_other(shard: Path) -> None:
    assert is_whole(shard, SCHEMAS)
    found = list(read_shards([shard, shard], "one.parquet", SCHEMAS["one.parquet"]))
    assert [table["name"].to_pylist() for table in found] == [["a", "b"], ["a", "b"]]
    (empty, _) = read_shards([shard, shard], "two.parquet", SCHEMAS["two.parquet"])
    assert (empty.num_rows, empty.schema) == (0, SCHEMAS["two.parquet"])


def test_the_same_rows_are_the_same_bytes(shard: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "again.zip", TABLES, SCHEMAS)
    assert (tmp_path / "again.zip").read_bytes() == shard.read_bytes()


def test_every_byte_of_the_tables_is_watched(shard: Path) -> None:
    content = shard.read_bytes()
    with zipfile.ZipFile(shard) as archive:
        infos = [(info.header_offset + 30 + len(info.filename), info.file_size) for info in archive.infolist()]
    for start, size in infos:
        for place in range(start, start + size, 7):
            changed = bytearray(content)
            changed[place] ^= 0x10
            shard.write_bytes(changed)
            assert not is_whole(shard, SCHEMAS), place


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_a_cut_file_is_not_whole(shard: Path, left: int) -> None:
    shard.write_bytes(shard.read_bytes()[:left])
    assert not is_whole(shard, SCHEMAS)


def test_a_file_of_other_tables_is_not_whole(shard: Path, tmp_path: Path) -> None:
    assert not is_whole(shard, {**SCHEMAS, "three.parquet": SCHEMAS["one.parquet"]})
    assert not is_whole(tmp_path / "nothing.zip", SCHEMAS)
