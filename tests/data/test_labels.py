"""Label shards: what is written comes back, the same rows are the same bytes, and damage has a name."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sum.data import labels as labels_module
from sum.data.labels import LabelStore, PseudoMask, label_rows, map_rows
from sum.data.shards import LABELS, UNCERTAINTY, ShardInfo, publish, read_info, shard_name, write_shard
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
    )


def blobs(image_id: str, count: int, *, seed: int) -> np.ndarray:
    """`[count, SIDE, SIDE]` codes, most of them 0; the last map of an image is 0 everywhere."""
    rng = np.random.default_rng([seed, *(ord(letter) for letter in image_id)])
    codes = rng.integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)
    for number, plane in enumerate(codes):
        top, left = rng.integers(0, SIDE, 2)
        plane[:top], plane[:, :left] = 0, 0
        plane *= number < max(1, count - 1)
    return codes


def sam_codes(image_id: str, count: int) -> np.ndarray:
    return blobs(image_id, count, seed=1)


def maps(image_id: str, count: int) -> tuple[np.ndarray, list[bool]]:
    return blobs(image_id, count, seed=2), [k % 3 != 1 for k in range(count)]


def write(folder: Path, *, shards: int = len(COUNTS)) -> tuple[Path, Path]:
    """Both folders for COUNTS; shards: what the footers say of their number."""
    first, second = folder / "labels", folder / "uncertainty"
    for number, counts in enumerate(COUNTS):
        with write_shard(first / shard_name(number), kind=LABELS, side=SIDE, shards=shards) as shard:
            for image_id, count in counts.items():
                masks = [pseudo(image_id, k) for k in range(count)]
                shard.add(image_id, label_rows(masks, sam_codes(image_id, count)))
            shard.skip(f"bad/{number}", "truncated")
            labels = shard.info
        with write_shard(second / shard_name(number), kind=UNCERTAINTY, side=SIDE, shards=shards) as shard:
            for image_id, count in counts.items():
                refined, has_map = maps(image_id, count)
                shard.add(image_id, map_rows(has_map, refined=refined, uncertainty=None))
            shard.count("maps", 2)
            shard.count("maps", 3)
            shard.about(labels)
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
                assert [getattr(mask, name) for name in PseudoMask.__slots__] == [
                    getattr(want, name) for name in PseudoMask.__slots__
                ]
            assert store.sam(image_id).dtype == np.uint8
            assert np.array_equal(store.sam(image_id), sam_codes(image_id, count))


def test_maps_come_back_as_the_distance_to_sam(folders: tuple[Path, Path]) -> None:
    store = LabelStore(*folders)
    for counts in COUNTS:
        for image_id, count in counts.items():
            refined, has_map = maps(image_id, count)
            sam = sam_codes(image_id, count)
            refined[~np.array(has_map, dtype=bool)] = sam[~np.array(has_map, dtype=bool)]
            assert store.has_map(image_id).tolist() == has_map
            assert np.array_equal(store.refined(image_id), refined)
            want = np.abs(refined.astype(int) - sam.astype(int))
            assert store.uncertainty(image_id).dtype == np.uint8
            assert np.array_equal(store.uncertainty(image_id), want)


def test_a_method_may_have_a_map_of_its_own(tmp_path: Path) -> None:
    """Such as SAM's own confidence: u is stored, and the refined mask is SAM's."""
    codes, has_map = maps("a/4", 3)
    with write_shard(tmp_path / "labels" / shard_name(0), kind=LABELS, side=SIDE, shards=1) as labels:
        labels.add("a/4", label_rows([pseudo("a/4", k) for k in range(3)], sam_codes("a/4", 3)))
    with write_shard(tmp_path / "maps" / shard_name(0), kind=UNCERTAINTY, side=SIDE, shards=1) as shard:
        shard.add("a/4", map_rows(has_map, refined=None, uncertainty=codes))
        shard.about(labels.info)
    store = LabelStore(tmp_path / "labels", tmp_path / "maps")
    assert np.array_equal(store.refined("a/4"), sam_codes("a/4", 3))
    assert np.array_equal(store.uncertainty("a/4"), codes * np.array(has_map)[:, None, None])


@pytest.mark.parametrize("only", [[], [2], [2, 0], [1, 1, 2, 0]])
def test_some_masks_of_an_image_in_any_order(
    folders: tuple[Path, Path], only: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the others are not decoded."""
    store = LabelStore(*folders)
    want = {name: getattr(store, name)("a/4")[only] for name in ("sam", "refined", "uncertainty")}
    decoded, real = [], labels_module.unpack
    monkeypatch.setattr(labels_module, "unpack", lambda *words: decoded.append(1) or real(*words))
    for name, codes in want.items():
        assert np.array_equal(getattr(store, name)("a/4", only), codes)
    assert len(decoded) <= 5 * len(only)
    assert [mask.index for mask in store.masks("a/4", only)] == only
    assert [mask.rle for mask in store.masks("a/4", only)] == [pseudo("a/4", k).rle for k in only]


def test_without_maps_everything_is_certain(folders: tuple[Path, Path]) -> None:
    store = LabelStore(folders[0])
    assert np.array_equal(store.uncertainty("a/4", [0, 2]), np.zeros((2, SIDE, SIDE), np.uint8))
    with pytest.raises(ValueError, match="without the folder of uncertainty maps"):
        store.refined("a/4")


def test_few_files_are_open_and_workers_get_none(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels_module, "OPEN_FILES", 2)
    store = LabelStore(*folders)
    for image_id in store.image_ids:
        store.uncertainty(image_id)
        assert len(store._open) <= 2
    sent = pickle.loads(pickle.dumps(store))
    assert not sent._open
    assert np.array_equal(sent.sam("a/1"), store.sam("a/1"))


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "one"), write(tmp_path / "two")
    for one, two in zip(first, second, strict=True):
        for path in sorted(one.iterdir()):
            assert path.read_bytes() == (two / path.name).read_bytes()


def test_the_index_knows_everything(folders: tuple[Path, Path]) -> None:
    info = read_info(folders[0] / shard_name(0), kind=LABELS)
    assert info.counts == COUNTS[0]
    assert info.unreadable == {"bad/0": "truncated"}
    assert (info.side, info.shards) == (SIDE, 3)
    assert read_info(folders[1] / shard_name(0), kind=UNCERTAINTY).totals == {"maps": 5}


def test_a_shard_is_an_arrow_file_that_any_tool_reads(folders: tuple[Path, Path]) -> None:
    with pa.memory_map(str(folders[0] / shard_name(1))) as source:
        file = pa.ipc.open_file(source)
        batches = [file.get_batch_with_custom_metadata(number) for number in range(file.num_record_batches)]
        areas = file.read_all()["area"].to_pylist()
    images = [one.custom_metadata[b"image_id"].decode() for one in batches if one.batch.num_rows]
    assert images == ["a/3", "a/4"]
    assert areas == [pseudo(image_id, k).area for image_id, count in COUNTS[1].items() for k in range(count)]


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / shard_name(0)

    def start() -> None:
        with write_shard(path, kind=LABELS, side=SIDE, shards=1) as shard:
            shard.add("a/1", label_rows([pseudo("a/1", 0)], sam_codes("a/1", 1)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start()
    assert not list(tmp_path.iterdir())


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
    with pytest.raises(DataError, match=rf"shard-00001\.arrow: not what .*Run `dvc repro {maker}`"):
        LabelStore(*folders)


@pytest.mark.parametrize(("which", "maker"), [(0, "pseudo_label"), (1, "uncertainty")])
def test_any_flipped_bit_is_noticed_or_changes_nothing(folders: tuple[Path, Path], which: int, maker: str) -> None:
    """Arrow pads with bytes that mean nothing; every other byte is under a checksum or a check."""

    def everything() -> list[object]:
        store = LabelStore(*folders)
        return [
            (mask.rle, mask.area, mask.box, mask.point, mask.predicted_iou, mask.stability)
            for image_id in store.image_ids
            for mask in store.masks(image_id)
        ] + [
            maps.tobytes()
            for image_id in store.image_ids
            for maps in (store.sam(image_id), store.refined(image_id), store.uncertainty(image_id))
        ]

    want, path = everything(), folders[which] / shard_name(1)
    data = path.read_bytes()
    said = []
    for place in range(0, len(data), 53):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        try:
            assert everything() == want
        except DataError as error:
            said.append(str(error))
    assert len(said) > len(data) / 53 / 2
    assert all(f"Run `dvc repro {maker}`" in text or "made for other labels" in text for text in said)


def test_the_last_shard_cannot_be_lost_unnoticed(folders: tuple[Path, Path]) -> None:
    (folders[0] / shard_name(2)).unlink()
    with pytest.raises(DataError, match=r"labels: not what .*2 shards, wanted 3"):
        LabelStore(*folders)


def test_maps_of_other_labels_are_refused(folders: tuple[Path, Path]) -> None:
    with write_shard(folders[1] / shard_name(2), kind=UNCERTAINTY, side=SIDE, shards=3) as shard:
        shard.add("a/5", [])
        shard.about(ShardInfo(LABELS, SIDE, 3))
    with pytest.raises(DataError, match=r"shard-00002\.arrow.*made for other labels.*dvc repro uncertainty"):
        LabelStore(*folders)


def test_maps_of_another_side_are_refused(folders: tuple[Path, Path]) -> None:
    about = read_info(folders[0] / shard_name(2), kind=LABELS)
    with write_shard(folders[1] / shard_name(2), kind=UNCERTAINTY, side=SIDE // 2, shards=3) as shard:
        for image_id, count in about.counts.items():
            shard.add(image_id, map_rows([False] * count, refined=None, uncertainty=None))
        shard.about(about)
    with pytest.raises(DataError, match=r"shard-00002\.arrow.*of other masks than the labels'"):
        LabelStore(*folders)


def test_an_image_in_two_shards_is_refused(folders: tuple[Path, Path]) -> None:
    twice = next(iter(read_info(folders[0] / shard_name(0), kind=LABELS).images))
    with write_shard(folders[0] / shard_name(2), kind=LABELS, side=SIDE, shards=3) as shard:
        shard.add(twice, [])
    with pytest.raises(DataError, match=rf"shard-00002\.arrow.*image '{twice}' is in another shard too"):
        LabelStore(folders[0])


def test_publishing_sweeps_what_the_dead_left_and_nothing_else(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source = folders[0] / shard_name(0)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead, alive = (source.with_name(f".x.arrow.{number}.partial") for number in (child.pid, os.getpid()))
    pending = source.with_name("pending-x.arrow")
    for path in (dead, alive, pending):
        path.write_bytes(b"begun")
    publish({source.name: source}, tmp_path / "out", summary={}, shared=True)  # what is dead here may live there
    assert dead.exists()
    publish({source.name: source}, tmp_path / "out", summary={})
    assert not dead.exists()
    assert alive.exists()
    assert pending.exists()  # perhaps about to be given its name
    os.utime(pending, (0, 0))
    publish({source.name: source}, tmp_path / "out", summary={})
    assert not pending.exists()


def test_publishing_replaces_the_folder_and_keeps_the_work(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out, names = tmp_path / "out", [shard_name(number) for number in range(3)]
    out.mkdir()
    (out / "old").write_text("of an earlier run")
    publish({name: folders[0] / name for name in names}, out, summary={"images": 5})
    assert sorted(path.name for path in out.iterdir()) == [*names, "summary.json"]
    assert sorted(path.name for path in folders[0].iterdir()) == names
    assert LabelStore(out).image_ids == LabelStore(folders[0]).image_ids


def test_publishing_works_across_file_systems(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    source = folders[0] / shard_name(0)
    publish({source.name: source}, tmp_path / "out", summary={})
    assert (tmp_path / "out" / source.name).read_bytes() == source.read_bytes()


def test_no_image_at_all_is_an_empty_store(tmp_path: Path) -> None:
    publish({}, tmp_path / "out", summary={})
    assert LabelStore(tmp_path / "out").image_ids == []
