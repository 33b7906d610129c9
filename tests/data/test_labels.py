"""Label shards: what is written comes back, the same rows are the same bytes, and damage has a name."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sum.data import labels as labels_module
from sum.data.labels import LabelStore, PseudoMask, label_rows, map_rows
from sum.data.shards import LABELS, UNCERTAINTY, publish, read_info, shard_name, write_shard
from sum.errors import DataError, MissingInput

SIDE = 8
COUNTS = [{"a/1": 2, "a/2": 0}, {"a/3": 1, "a/4": 3}, {"a/5": 0}]  # masks of each image, shard by shard


def pseudo(image_id: str, index: int) -> PseudoMask:
    rng = np.random.default_rng([ord(letter) for letter in image_id] + [index])
    x, y = rng.integers(0, 50, 2).tolist()
    return PseudoMask(
        image_id=image_id,
        index=index,
        rle=f"04{index}",
        area=int(rng.integers(1, 2**40)),
        box=(x, y, x + 3, y + 4),
        point=(x + 0.1, y + 1 / 3),
        predicted_iou=float(np.float32(rng.random())),
        stability=float(np.float32(rng.random())),
        logits=(rng.normal(size=(SIDE, SIDE)) * 9).astype(np.float16),
    )


def maps(image_id: str, count: int) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    rng = np.random.default_rng([ord(letter) for letter in image_id])
    codes = rng.integers(0, 256, (2, count, SIDE, SIDE), dtype=np.uint8)
    return codes[0], codes[1], [k % 2 == 0 for k in range(count)]


def write(folder: Path, *, shards: int = len(COUNTS)) -> tuple[Path, Path]:
    """Both folders for COUNTS; shards: what the footers say of their number."""
    first, second = folder / "labels", folder / "uncertainty"
    for number, counts in enumerate(COUNTS):
        with write_shard(first / shard_name(number), kind=LABELS, side=SIDE, shards=shards) as shard:
            for image_id, count in counts.items():
                shard.add(image_id, label_rows([pseudo(image_id, k) for k in range(count)], side=SIDE))
            shard.skip(f"bad/{number}", "truncated")
        with write_shard(second / shard_name(number), kind=UNCERTAINTY, side=SIDE, shards=shards) as shard:
            for image_id, count in counts.items():
                u, refined, has_map = maps(image_id, count)
                shard.add(image_id, map_rows(image_id, u, refined=refined, has_map=has_map))
            shard.count("maps", 2)
            shard.count("maps", 3)
    return first, second


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path)


def test_labels_come_back(folders: tuple[Path, Path]) -> None:
    store = LabelStore(*folders)
    assert store.image_ids == ["a/1", "a/2", "a/3", "a/4", "a/5"]
    assert len(store) == 5
    assert "a/2" in store  # labelled, nothing found
    assert "bad/0" not in store
    for counts in COUNTS:
        for image_id, count in counts.items():
            masks = store.masks(image_id)
            assert len(masks) == store.count(image_id) == count
            for k, mask in enumerate(masks):
                want = pseudo(image_id, k)
                for name in PseudoMask.__slots__:
                    if name != "logits":
                        assert getattr(mask, name) == getattr(want, name), name
                assert mask.logits.dtype == np.float16
                assert np.array_equal(mask.logits, want.logits)


def test_maps_come_back(folders: tuple[Path, Path]) -> None:
    store = LabelStore(*folders)
    for counts in COUNTS:
        for image_id, count in counts.items():
            codes, refined, has_map = maps(image_id, count)
            for found, want in ((store.uncertainty(image_id), codes), (store.refined(image_id), refined)):
                assert found.dtype == np.float32
                assert found.shape == (count, SIDE, SIDE)
                np.testing.assert_allclose(found, want / 255, atol=1e-7)
                assert count == 0 or 0 <= found.min() <= found.max() <= 1
            assert store.has_map(image_id).tolist() == has_map


def test_training_can_leave_the_logits_on_the_disk(folders: tuple[Path, Path]) -> None:
    (mask,) = LabelStore(folders[0]).masks("a/3", logits=False)
    assert mask.logits.shape == (0, 0)
    assert mask.box == pseudo("a/3", 0).box


def test_without_maps_everything_is_certain(folders: tuple[Path, Path]) -> None:
    store = LabelStore(folders[0])
    assert np.array_equal(store.uncertainty("a/4"), np.zeros((3, SIDE, SIDE), np.float32))
    with pytest.raises(ValueError, match="without the folder of uncertainty maps"):
        store.refined("a/4")


def test_few_files_are_open_and_workers_get_none(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "OPEN_FILES", 2)
    store = LabelStore(*folders)
    for image_id in store.image_ids:
        store.uncertainty(image_id)
        assert len(store._files) <= 2
    sent = pickle.loads(pickle.dumps(store))
    assert not sent._files
    assert np.array_equal(sent.masks("a/1")[1].logits, store.masks("a/1")[1].logits)


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "one"), write(tmp_path / "two")
    for one, two in zip(first, second, strict=True):
        for path in sorted(one.iterdir()):
            assert path.read_bytes() == (two / path.name).read_bytes()


def test_the_footer_knows_everything(folders: tuple[Path, Path]) -> None:
    info = read_info(folders[0] / shard_name(0), kind=LABELS)
    assert info.images == COUNTS[0]
    assert info.unreadable == {"bad/0": "truncated"}
    assert (info.side, info.shards) == (SIDE, 3)
    assert read_info(folders[1] / shard_name(0), kind=UNCERTAINTY).totals == {"maps": 5}
    assert pq.read_metadata(folders[0] / shard_name(1)).num_row_groups == 2  # one an image: read alone


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / shard_name(0)

    def start() -> None:
        with write_shard(path, kind=LABELS, side=SIDE, shards=1) as shard:
            shard.add("a/1", label_rows([pseudo("a/1", 0)], side=SIDE))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start()
    assert not list(tmp_path.iterdir())


def test_logits_of_another_side_are_refused() -> None:
    with pytest.raises(ValueError, match=r"PseudoMask\.logits has shape \(8, 8\), wants \(16, 16\)"):
        label_rows([pseudo("a/1", 0)], side=16)


def test_an_unlabelled_image_is_named(folders: tuple[Path, Path]) -> None:
    with pytest.raises(DataError, match=r"labels: no labels of image 'a/9'\. Run `dvc repro pseudo_label`"):
        LabelStore(*folders).masks("a/9")


@pytest.mark.parametrize(("which", "maker"), [(0, "pseudo_label"), (1, "uncertainty")])
def test_a_missing_folder_names_the_stage(folders: tuple[Path, Path], which: int, maker: str) -> None:
    folders[which].rename(folders[which].with_name("gone"))
    with pytest.raises(MissingInput, match=rf"stage 'finetune' reads it, stage '{maker}' writes it"):
        LabelStore(*folders)


@pytest.mark.parametrize(("which", "maker"), [(0, "pseudo_label"), (1, "uncertainty")])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "missing", "other kind"])
def test_a_bad_shard_is_named_at_once(folders: tuple[Path, Path], which: int, maker: str, damage: str) -> None:
    path = folders[which] / shard_name(1)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not a table" * 100)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes((folders[1 - which] / shard_name(1)).read_bytes())
    with pytest.raises(DataError, match=rf"shard-00001\.parquet: not what .*Run `dvc repro {maker}`"):
        LabelStore(*folders)


@pytest.mark.parametrize(("which", "maker"), [(0, "pseudo_label"), (1, "uncertainty")])
def test_a_flipped_byte_is_noticed(folders: tuple[Path, Path], which: int, maker: str) -> None:
    path = folders[which] / shard_name(1)
    group = pq.read_metadata(path).row_group(1)
    columns = [group.column(number) for number in range(group.num_columns)]
    big = max(columns, key=lambda column: column.total_compressed_size)
    data = bytearray(path.read_bytes())
    data[big.data_page_offset + big.total_compressed_size - 20] ^= 0x10
    path.write_bytes(data)
    store = LabelStore(*folders)
    with pytest.raises(DataError, match=rf"shard-00001\.parquet: not what .*Run `dvc repro {maker}`"):
        store.masks("a/4"), store.uncertainty("a/4"), store.refined("a/4")


def test_the_last_shard_cannot_be_lost_unnoticed(folders: tuple[Path, Path]) -> None:
    (folders[0] / shard_name(2)).unlink()
    with pytest.raises(DataError, match=r"labels: not what .*2 shards, wanted 3"):
        LabelStore(*folders)


def test_maps_of_other_labels_are_refused(folders: tuple[Path, Path]) -> None:
    with write_shard(folders[1] / shard_name(2), kind=UNCERTAINTY, side=SIDE, shards=3) as shard:
        shard.add("a/6", [])
    with pytest.raises(DataError, match=r"shard-00002\.parquet.*made for other labels.*dvc repro uncertainty"):
        LabelStore(*folders)


def test_publishing_replaces_the_folder_and_keeps_the_work(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out, names = tmp_path / "out", [shard_name(number) for number in range(3)]
    out.mkdir()
    (out / "old").write_text("of an earlier run")
    (folders[0] / ".shard-00001.parquet.7.partial").write_text("of a killed run")
    publish(folders[0], out, names=names, summary={"images": 5})
    assert sorted(path.name for path in out.iterdir()) == [*names, "summary.json"]
    assert sorted(path.name for path in folders[0].iterdir()) == names
    assert LabelStore(out).image_ids == LabelStore(folders[0]).image_ids


def test_publishing_works_across_file_systems(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    publish(folders[0], tmp_path / "out", names=[shard_name(0)], summary={})
    assert (tmp_path / "out" / shard_name(0)).read_bytes() == (folders[0] / shard_name(0)).read_bytes()


def test_no_image_at_all_is_an_empty_store(tmp_path: Path) -> None:
    publish(tmp_path / "work", tmp_path / "out", names=[], summary={})
    assert LabelStore(tmp_path / "out").image_ids == []
