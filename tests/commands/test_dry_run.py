"""`ingest --dry-run` on exports as the tools write them, and on the layouts of data sets."""

from __future__ import annotations

import json
import shutil
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from PIL import Image
from pydantic import TypeAdapter

from sum.cli import main
from sum.commands import dry_run as dry_run_command
from sum.data import detect, detect_rasters
from sum.data.listing import Candidate, Listing
from sum.data.sources import Sample
from sum.data_settings import DatasetConfig
from sum.datasets import read_set
from tests.data.exports import (
    BESIDE,
    DOG_AT,
    write_cvat_coco,
    write_cvat_masks,
    write_label_studio,
    write_labelme,
    write_yolo_splits,
)
from tests.data.written import BOX, grey, photo, pixels, write_coco, write_images, write_raster, write_sa1b, write_via

pytestmark = pytest.mark.usefixtures("project")


def pasted(said: str) -> dict[str, Any]:
    """The entries of the report, as YAML."""
    text = said[said.index("\ndatasets:\n") :].split("\n\n")[0]
    found: dict[str, Any] = yaml.safe_load(text)["datasets"]
    return found


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["ingest", "--dry-run", *words]) == 0
    return capsys.readouterr().out


def same_folder(root: Path) -> None:
    for index, name in enumerate("ab"):
        photo(root / f"{name}.jpg", index)
        grey(root / f"{name}.png", BOX * 255)


def instance_ids(root: Path) -> None:
    """As Cityscapes: 16 bits, class * 1000 + number; 7 is a region without objects."""
    for index, name in enumerate("ab"):
        photo(root / "img" / f"{name}.jpg", index)
        values = BOX * np.uint16(26_000)
        values[12:16, 2:6], values[20:, :] = 26_001, 7
        (root / "ids").mkdir(exist_ok=True)
        Image.fromarray(values).save(root / "ids" / f"{name}.png")


def sa1b_tar(root: Path) -> None:
    """Two shards: the pairs of `write_sa1b`, packed."""
    write_sa1b(root)
    for number, stems in enumerate((("b.v2", "deep/c"), ("a",))):
        with tarfile.open(root / f"sa_{number:06d}.tar", "w") as tar:
            for stem in stems:
                for suffix in (".jpg", ".json"):
                    tar.add(root / "images" / f"{stem}{suffix}", f"./{stem}{suffix}")
    shutil.rmtree(root / "images")


def index_masks(root: Path) -> None:
    for index, name in enumerate("ab"):
        photo(root / "img" / f"{name}.jpg", index)
        grey(root / "lbl" / f"{name}.png", BOX * 7)


# writer, kind, entries and their images; every mask is BOX
EXPORTS: dict[str, tuple[Callable[[Path], None], str, dict[str, int]]] = {
    "coco": (write_coco, "coco", {"set": 3}),
    "CVAT's COCO": (write_cvat_coco, "coco", {"set": 3}),
    "CVAT's masks": (write_cvat_masks, "raster", {"set": 3}),
    "labelme": (write_labelme, "labelme", {"set": 3}),
    "YOLO": (write_yolo_splits, "yolo", {"set": 2, "set_test": 1}),
    "Label Studio": (write_label_studio, "label_studio", {"set": 3}),
    "raster": (write_raster, "raster", {"set": 3}),
    "one folder": (same_folder, "raster", {"set": 2}),
    "index masks": (index_masks, "raster", {"set": 2}),
    "instance ids": (instance_ids, "raster", {"set": 2}),
    "VIA": (write_via, "via", {"set": 3}),
    "SA-1B": (write_sa1b, "sa1b", {"set": 3}),
    "SA-1B in shards": (sa1b_tar, "sa1b", {"set": 3}),
    "photos": (write_images, "images", {"set": 3}),
}


@pytest.mark.parametrize("name", EXPORTS)
@pytest.mark.parametrize("nested", ["", "wrapped/export"])
def test_what_is_pasted_reads_the_export(
    name: str, nested: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, kind, counts = EXPORTS[name]
    write(make(tmp_path / "set" / nested))
    said = dry_run(capsys, "set", *([] if kind == "images" else ["--task", "part"]), "--licence", "CC-BY-4.0")
    entries = pasted(said)
    assert {entry["kind"] for entry in entries.values()} == {kind}, said
    assert list(entries) == list(counts)
    for key, keys in entries.items():
        found = [item for items in read_set(key, config(keys))[0] for item in items if isinstance(item, Sample)]
        assert len(found) == counts[key]
        assert f"images      {counts[key]}," in said
        if kind != "images":
            assert all(any(np.array_equal(pixels(mask), BOX) for mask in sample.masks) for sample in found)
            assert (keys["task"], keys["licence"]) == ("part", "CC-BY-4.0")


def config(keys: dict[str, Any]) -> DatasetConfig:
    return TypeAdapter(DatasetConfig).validate_python(keys)


def masks_of(entry: dict[str, Any]) -> list[list[tuple[str, np.ndarray]]]:
    """Category and pixels of every mask of every image."""
    items = [item for of_one in read_set("set", config(entry))[0] for item in of_one]
    assert all(isinstance(item, Sample) for item in items), items
    return [[(mask.category, pixels(mask)) for mask in item.masks] for item in items if isinstance(item, Sample)]


def drawn_at(*places: tuple[slice, slice]) -> np.ndarray:
    mask = np.zeros_like(BOX)
    for place in places:
        mask[place] = True
    return mask


@pytest.mark.parametrize("folder", ["SegmentationObject", "SegmentationClass"])
def test_cvat_s_masks_have_the_names_of_its_label_map(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of objects when they are there, else a mask a class; the background is none."""
    write_cvat_masks(make(tmp_path / "set"))
    cat, other, dog = BOX, drawn_at(BESIDE), drawn_at(DOG_AT)
    want = [("cat", cat), ("cat", other), ("dog: a hound", dog)]
    if folder == "SegmentationClass":
        shutil.rmtree(tmp_path / "set" / "SegmentationObject")
        want = [("cat", cat | other), ("dog: a hound", dog)]
    said = dry_run(capsys, "set", "--task", "entity")
    entry = pasted(said)["set"]
    assert (entry["masks"], entry["mode"], entry["labelmap"]) == (folder, "color", "labelmap.txt")
    assert entry.get("classes") == ("SegmentationClass" if folder == "SegmentationObject" else None)
    assert f"categories  2: cat {3 * (len(want) - 1)}, dog: a hound 3" in said
    found = masks_of(entry)
    assert len(found) == 3
    for one in found:
        assert sorted(name for name, _ in one) == sorted(name for name, _ in want)
        assert all(any(name == other and np.array_equal(mask, drawn) for name, mask in one) for other, drawn in want)


def test_instance_ids_are_told_from_regions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    instance_ids(make(tmp_path / "set"))
    entry = pasted(dry_run(capsys, "set", "--task", "entity"))["set"]
    assert entry["mode"] == "instance"
    region, other = drawn_at((slice(20, None), slice(None))), drawn_at((slice(12, 16), slice(2, 6)))
    want = [("7", region), ("26", BOX), ("26", other)]
    for found in masks_of(entry):
        assert [name for name, _ in found] == [name for name, _ in want]
        assert all(np.array_equal(mask, drawn) for (_, mask), (_, drawn) in zip(found, want, strict=True))


def test_cvat_crowd_is_kept_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cvat_coco(make(tmp_path / "set"))
    said = dry_run(capsys, "set", "--task", "entity")
    assert pasted(said)["set"]["drop_flags"] == []
    assert "3 of 3 annotations have iscrowd 1" in said


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_without_a_task_a_place_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_yolo_splits(make(tmp_path / "set"))
    said = dry_run(capsys, "set")
    assert [entry["task"] for entry in pasted(said).values()] == ["CHOOSE", "CHOOSE"]
    assert [entry["split"] for entry in pasted(said).values()] == ["train", "test"]
    assert "The task is not in the files" in said
    with pytest.raises(ValueError, match="task"):
        config(pasted(said)["set"])


def test_nothing_is_found_and_boxes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (make(tmp_path / "set") / "readme.txt").write_text("hello")
    said = dry_run(capsys, "set")
    assert "nothing that can be used was found. Looked for COCO" in said
    write_yolo_splits(make(tmp_path / "boxes"))
    for path in (tmp_path / "boxes" / "labels").rglob("*.txt"):
        path.write_text("0 0.5 0.5 0.2 0.2\n")
    assert "these are boxes, not masks" in dry_run(capsys, "boxes")


@pytest.mark.parametrize("odd", [1, None, [], {"data": [1]}, {"data": None}])
@pytest.mark.parametrize("kind", ["VIA", "Label Studio"])
def test_a_row_of_another_kind_behind_the_sample(
    kind: str, odd: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(tmp_path / "set" / "a.jpg")
    if kind == "VIA":
        tree: Any = {str(number): {"filename": "a.jpg", "regions": []} for number in range(8)} | {"odd": odd}
    else:
        tree = [*({"id": number, "data": {"image": "a.jpg"}, "annotations": []} for number in range(8)), odd]
    (tmp_path / "set" / "all.json").write_text(json.dumps(tree))
    assert "refused: set/all.json: not " in dry_run(capsys, "set")


@pytest.mark.parametrize("name", ["2017", "on", "No", "1e3", "null"])
def test_a_folder_s_name_is_a_text_in_yaml(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_raster(tmp_path / name)
    assert list(pasted(dry_run(capsys, name, "--task", "part"))) == [f"set_{name}"]
    assert main(["add", name, name, "--task", "part"]) == 2


@pytest.mark.parametrize(
    "text",
    [".5", "._5", ".5e+3", "a\x7f", "a\x85b", "a\u2028b", "a\u2029", "\ufeffa", "a\udc80", "\U0001f600", "é", "on:"],
)
def test_what_is_written_is_read(text: str) -> None:
    row = dry_run_command._flow({"root": text})
    assert yaml.safe_load(row) == {"root": text}
    assert OmegaConf.to_container(OmegaConf.create(row)) == {"root": text}  # as Hydra reads it
    assert row.encode().decode().splitlines() == [row]


def test_folders_are_compared_in_bearable_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of folders with the same names none is taken apart, and no file decoded, once a pair of folders."""
    for folder in range(12):
        make(tmp_path / "set" / f"f{folder}")
        for name in range(10):
            (tmp_path / "set" / f"f{folder}" / f"{name}.png").touch()
    listing, calls = Listing("set"), Counter[str]()
    for function in ("stem_of", "read_bytes"):
        monkeypatch.setattr(detect_rasters, function, counted(getattr(detect_rasters, function), calls))
    list(detect_rasters.rasters(listing))
    assert calls["stem_of"] == 2 * 12 * 10  # each in its folder and in the one above
    assert calls["read_bytes"] == 12


def counted(function: Callable[[str], Any], calls: Counter[str]) -> Callable[[str], Any]:
    def call(argument: str) -> Any:
        calls[function.__name__] += 1
        return function(argument)

    return call


def test_a_list_is_looked_for_by_names_taken_apart_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_raster(tmp_path / "set")
    for number in range(20):
        (tmp_path / "set" / f"{number}.txt").write_text("no name\n")
    listing, calls = Listing("set"), Counter[str]()
    monkeypatch.setattr(detect_rasters, "stem_of", counted(detect_rasters.stem_of, calls))
    list(detect_rasters._candidates(listing, "images", "masks", "", "binary", {}, ""))
    assert calls["stem_of"] <= 3 + 20  # a photo, a line


def test_outlines_are_not_kept_while_a_file_is_looked_at(tmp_path: Path) -> None:
    """3.9 MB of COCO as files mostly are, outlines; 1 GB of it is permitted. Text and bytes are 2 times its size."""
    row = {"area": 9, "bbox": [1, 2, 3, 4], "iscrowd": 1, "segmentation": [[number + 0.5 for number in range(60)]]}
    tree: dict[str, Any] = {"images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(2000)]}
    tree["annotations"] = [{"id": number, "image_id": number % 2000, "category_id": 1} | row for number in range(8000)]
    (make(tmp_path / "set") / "all.json").write_text(json.dumps(tree))
    listing = Listing("set")
    tracemalloc.start()
    try:
        (found,) = detect._documents(listing)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(found, Candidate)
    assert "0 of its 2000 photos lie" in found.why
    assert "8000 of 8000 annotations have iscrowd 1" in found.why
    assert peak < 3 * (tmp_path / "set" / "all.json").stat().st_size  # 6.4 times with everything kept


def test_one_file_of_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco(make(tmp_path / "set"))
    said = dry_run(capsys, "set/annotations.json", "--name", "mine", "--task", "part", "--limit", "1")
    assert pasted(said)["mine"]["root"] == "set"
    assert "images      1," in said
