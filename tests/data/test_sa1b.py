"""SA-1B's pairs: what is told when one half, or something in it, is wrong."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sum.data.collect import BARE
from sum.data.rle import EMPTY
from sum.data.sa1b import STRAY
from sum.data.sources import Note, Problem
from sum.errors import DataError
from sum.storage import read_bytes
from tests.data.miniatures.documents_tools import blobs, box
from tests.data.miniatures.sa1b_shards import mask_row, pack, write_pair
from tests.data.written import HEIGHT, WIDTH, photo, problem, read, samples, source


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in (1, 2):
        write_pair(tmp_path, number, blobs(number), box(number, 2, 5, 6))
    return tmp_path


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe{", "UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "not a JSON of SA-1B"),
        (b'{"image": {}, "annotations": [7]}', "not a JSON of SA-1B"),
        (b'{"image": {"height": 24}, "annotations": []}', "it says height, width (24, None), the upright photo has"),
        (b'{"image": {}, "image": {}, "annotations": []}', "'image' twice"),
    ],
)
def test_a_bad_json_is_a_problem_of_its_image_alone(text: bytes, reason: str, root: Path) -> None:
    (root / "sa_1.json").write_bytes(text)
    items = read("sa1b", source(root, images="."))
    assert [sample.image.image_id for sample in samples(items)] == ["set/sa_2"]
    found = problem(items)
    assert (found.file, reason in found.reason, bool(found.remedy)) == (f"{root}/sa_1.json", True, True), found


def test_a_json_beyond_the_limit_is_not_read(root: Path) -> None:
    with (root / "sa_1.json").open("ab") as file:
        file.truncate(3_000_000)
    items = read("sa1b", source(root, images=".", max_json_mb=2))
    assert "3 MB, more than max_json_mb 2" in problem(items).reason
    assert len(samples(items)) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": "ooo"}}, "not a COCO compressed string"),
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [768]}}, "RLE of size [32, 24]"),
        ({"segmentation": "mask.png"}, "neither a list of polygons nor an RLE"),
    ],
)
def test_a_bad_mask_is_told_and_the_others_are_read(row: dict[str, Any], reason: str, root: Path) -> None:
    change(root / "sa_1.json", annotations=[mask_row(1, blobs(1)), {"id": 77} | row])
    items = read("sa1b", source(root, images="."))
    assert [len(sample.masks) for sample in samples(items)] == [1, 2]
    found = problem(items)
    assert ("annotation 77" in found.reason, reason in found.reason) == (True, True), found


def test_masks_of_no_area_and_images_of_no_mask_are_counted(root: Path) -> None:
    change(
        root / "sa_1.json", annotations=[mask_row(1, blobs(1)) | {"area": 0}, mask_row(2, blobs(1)) | {"area": -3.5}]
    )
    items = read("sa1b", source(root, images="."))
    assert sorted(item.reason for item in items if isinstance(item, Note)) == sorted([EMPTY, EMPTY, BARE])
    assert len(samples(items)) == 1


def test_a_list_chooses_and_other_files_are_counted(root: Path) -> None:
    (root / "sa_images_ids.txt").write_text("sa_2.jpg\nsa_9\n")
    (root / "deep").mkdir()
    photo(root / "deep" / "sa_2.jpg")
    items = read("sa1b", source(root, images=".", names="sa_images_ids.txt"))
    assert [sample.image.image_id for sample in samples(items)] == ["set/sa_2"]
    assert [item.file for item in items if isinstance(item, Note) and item.reason == STRAY] == [
        f"{root}/sa_images_ids.txt"
    ]
    reasons = [item.reason for item in items if isinstance(item, Problem)]
    assert sorted(reason[:25] for reason in reasons) == ["has the same name as deep", "no photo of this name; it"]


def test_a_shard_gives_what_the_folder_gives(root: Path) -> None:
    folder = samples(read("sa1b", source(root, images=".")))
    pack(root)
    assert sorted(path.name for path in root.iterdir()) == ["sa_000000.tar", "sa_000001.tar"]
    shard = samples(read("sa1b", source(root, images=".")))
    assert [sample.image.sha256 for sample in shard] == [sample.image.sha256 for sample in folder]
    assert [[mask.rle for mask in sample.masks] for sample in shard] == [[m.rle for m in s.masks] for s in folder]
    assert [sample.image.image_id for sample in shard] == [sample.image.image_id for sample in folder]
    assert read_bytes(shard[0].image.path)[:2] == b"\xff\xd8"
    assert len(samples(read("sa1b", source(root, images=".", split="unlabelled", task="unspecified")))) == 2


def test_what_an_archive_should_not_hold_is_told(root: Path) -> None:
    with tarfile.open(root / "bad.tar", "w") as tar:
        for name in ("../sa_7.jpg", "/sa_8.jpg"):
            info = tarfile.TarInfo(name)
            tar.addfile(info)
        link = tarfile.TarInfo("sa_9.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (root / "packed.tar.gz").write_bytes(b"\x1f\x8b")
    items = read("sa1b", source(root, images="."))
    assert len(samples(items)) == 2
    problems = {item.file.removeprefix(f"{root}/"): item.reason for item in items if isinstance(item, Problem)}
    assert set(problems) == {"bad.tar!/../sa_7.jpg", "bad.tar!//sa_8.jpg", "bad.tar!/sa_9.jpg", "packed.tar.gz"}
    assert "symbolic link" in problems["bad.tar!/sa_9.jpg"]


def test_a_folder_without_a_photo(tmp_path: Path) -> None:
    (tmp_path / "sa_1.json").write_text("{}")
    with pytest.raises(DataError, match="holds no photo"):
        read("sa1b", source(tmp_path, images="."))
