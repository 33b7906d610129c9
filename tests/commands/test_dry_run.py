"""`ingest --dry-run` on exports as the tools write them; `add` and `remove` in a project with a real DVC."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from sum.cli import main
from sum.commands import add
from sum.commands import dry_run as dry_run_command
from sum.data import detect, detect_rasters
from sum.data.listing import Candidate, Listing
from sum.data.sources import Sample
from sum.data_settings import DatasetConfig
from sum.datasets import read_set
from sum.errors import ConfigError
from tests.data.exports import (
    write_cvat_coco,
    write_cvat_masks,
    write_label_studio,
    write_labelme,
    write_yolo_splits,
)
from tests.data.written import BOX, grey, photo, pixels, write_coco, write_images, write_raster

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    return tmp_path


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


# --- add and remove ------------------------------------------------------------------------------------------------


def dvc(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True)


def all_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not {".dvc", "work"} & {*path.relative_to(folder).parts}
    }


def test_add_and_remove_are_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dvc("init", "--no-scm", "--quiet")
    write_labelme(tmp_path / "data" / "raw" / "mine")
    before = all_files(tmp_path)
    assert main(["add", "mine", "data/raw/mine", "--task", "part", "--licence", "own"]) == 0
    text = (tmp_path / "params.yaml").read_text()
    old = before["params.yaml"].decode().splitlines()
    new = text.splitlines()
    (row,) = [line for line in new if line not in old]
    assert [line for line in new if line != row] == old
    entry = yaml.safe_load(text)["datasets"]["mine"]
    assert (entry["root"], entry["kind"], entry["task"], entry["licence"]) == (
        "data/raw/mine",
        "labelme",
        "part",
        "own",
    )
    assert (tmp_path / "data" / "raw" / "mine.dvc").is_file()
    assert not (tmp_path / ".dvc" / "config.local").exists()
    photos = list((tmp_path / "data" / "raw" / "mine").rglob("*.jpg"))
    assert all(path.stat().st_nlink > 1 for path in photos) or sys.platform != "linux"  # one copy, with DVC's cache
    assert main(["add", "mine", "data/raw/mine", "--task", "part"]) == 2  # there is one
    assert main(["remove", "mine"]) == 0
    assert all_files(tmp_path) == before
    assert main(["remove", "mine"]) == 2
    capsys.readouterr()


def test_add_changes_nothing_when_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_raster(tmp_path / "set")
    before = all_files(tmp_path)
    assert main(["add", "mine", "set", "--task", "part"]) == 75  # no DVC project
    assert main(["add", "mine", "set"]) == 2  # no task
    assert main(["add", "no-name", "set", "--task", "part"]) == 2
    assert main(["add", "demo_part", "set", "--task", "part"]) == 2  # taken
    (tmp_path / "params.yaml").write_bytes(before["params.yaml"])
    make(tmp_path / "empty")
    (tmp_path / "empty" / "x.txt").touch()
    assert main(["add", "mine", "empty", "--task", "part"]) == 1
    (tmp_path / "empty" / "x.txt").unlink()
    assert all_files(tmp_path) == before
    capsys.readouterr()


def add_options(path: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add.add_arguments(parser)
    return parser.parse_args(["mine", path, "--task", "part"])


@pytest.mark.slow
def test_a_folder_elsewhere_and_a_budget_that_uses_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    dvc("init", "--no-scm", "--quiet")
    export = tmp_path_factory.mktemp("export")
    write_yolo_splits(export)
    before, params = all_files(export), (tmp_path / "params.yaml").read_bytes()
    assert main(["add", "mine", str(export), "--task", "part"]) == 0
    assert all_files(tmp_path / "data" / "raw" / "mine") == before
    copies = list((tmp_path / "data" / "raw" / "mine").rglob("*.jpg"))
    assert all(path.stat().st_nlink > 1 for path in copies) or sys.platform != "linux"  # one copy, with DVC's cache
    after = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(after.replace("human: [demo_salient],", "human: [mine],"))
    assert main(["remove", "mine"]) == 2
    assert "budgets.small uses 'mine'" in capsys.readouterr().err
    (tmp_path / "params.yaml").write_text(after)
    assert main(["remove", "mine"]) == 0
    assert (tmp_path / "params.yaml").read_bytes() == params
    assert not (tmp_path / "data" / "raw" / "mine").exists()  # a copy, made by `add`
    assert all_files(export) == before
    assert main(["add", "mine", str(export), "--task", "part"]) == 0
    (tmp_path / "data" / "raw" / "mine" / "my.txt").write_text("mine")
    assert main(["remove", "mine"]) == 0
    assert all_files(tmp_path / "data" / "raw" / "mine") == before | {"my.txt": b"mine"}
    assert "delete it yourself" in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["set", "data/raw/mine"])
def test_add_takes_back_what_dvc_did(
    error: BaseException, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC is stood in for by what it leaves when it is stopped late; params.yaml cannot be written."""
    write_raster(tmp_path / where)
    before = all_files(tmp_path)

    def fake(*words: str) -> str:
        if words[0] == "add":
            (tmp_path / "data" / "raw" / "mine.dvc").write_text("outs: []\n")
            (tmp_path / "data" / "raw" / "mine").mkdir(exist_ok=True)
            (tmp_path / "data" / "raw" / ".gitignore").write_text("/mine\n")
        return ""

    def broken(path: Path, content: bytes) -> None:
        if path.name == "params.yaml":
            raise error

    monkeypatch.setattr(add, "dvc", fake)
    monkeypatch.setattr(add, "write_atomic", broken)
    options = add_options(where)
    with pytest.raises(type(error)):
        add.run(options)
    assert all_files(tmp_path) == before
    assert (tmp_path / "data" / "raw" / "mine").exists() == (where != "set")


@pytest.mark.slow
def test_a_bucket_is_recorded_and_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="photos")
        write_coco(make(tmp_path / "set"))
        for path, content in all_files(tmp_path / "set").items():
            client.put_object(Bucket="photos", Key=f"big/{path}", Body=content)
        dvc("init", "--no-scm", "--quiet")
        before = all_files(tmp_path)
        assert main(["add", "far", "s3://photos/big", "--task", "entity"]) == 0, capsys.readouterr()
        assert yaml.safe_load((tmp_path / "params.yaml").read_text())["datasets"]["far"]["root"] == "s3://photos/big"
        assert not (tmp_path / "data" / "raw" / "far").exists()
        recorded = yaml.safe_load((tmp_path / "data" / "raw" / "far.dvc").read_text())
        assert recorded["deps"][0]["path"] == "s3://photos/big"
        assert not list((tmp_path / ".dvc" / "cache").rglob("*.jpg"))
        assert main(["remove", "far"]) == 0
        assert all_files(tmp_path) == before
    finally:
        server.stop()


def test_a_line_ends_at_its_newline(tmp_path: Path) -> None:
    before = (tmp_path / "params.yaml").read_bytes()
    mark = add.MARK.format(name="mine")
    row = "mine: {kind: images, root: 'a\u2028b', split: unlabelled, licence: own}"
    (tmp_path / "params.yaml").write_bytes(add.insert(before, "mine", [row]))
    assert mark in (tmp_path / "params.yaml").read_text()
    assert main(["remove", "mine"]) == 0
    assert (tmp_path / "params.yaml").read_bytes() == before


def test_add_takes_the_place_of_the_example_s_lines(tmp_path: Path) -> None:
    before = (PROJECT / "examples" / "own.yaml").read_bytes()
    after = add.insert(before, "mine", ["mine: {kind: coco}"])
    found = yaml.safe_load(after)["datasets"]
    assert (found["mine"], sorted(found)) == ({"kind": "coco"}, ["mine", "shop"])
    with pytest.raises(ConfigError, match="there is a data set 'demo_part' already"):
        add.insert((tmp_path / "params.yaml").read_bytes(), "demo_part", ["demo_part: {kind: coco}"])
    with pytest.raises(ConfigError, match="no line 'datasets:'"):
        add.insert(b"datasets: {}\n", "mine", ["mine: {kind: coco}"])
