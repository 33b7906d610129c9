"""`add` and `remove` in a project with a real DVC."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sum.cli import main
from sum.commands import add
from sum.errors import ConfigError
from tests.data.exports import write_labelme, write_yolo_splits
from tests.data.written import write_coco, write_raster

PROJECT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("project")


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def dvc(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *words], check=True, capture_output=True)


def all_files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not {".dvc", "work"} & {*path.relative_to(folder).parts}
    }


@pytest.mark.usefixtures("dvc_project")
def test_add_and_remove_are_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_labelme(tmp_path / "data" / "raw" / "mine")
    before = all_files(tmp_path)
    assert main(["add", "mine", "data/raw/mine", "--task", "part", "--licence", "own"]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == "no budget uses 'mine' yet: add it to budgets.NAME.human in params.yaml"
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
    assert not any(path.stat().st_mode & 0o222 for path in photos) or sys.platform != "linux"  # which DVC protects
    assert main(["add", "mine", "data/raw/mine", "--task", "part"]) == 2  # there is one
    assert main(["remove", "mine"]) == 0
    assert all_files(tmp_path) == before
    assert main(["remove", "mine"]) == 2
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.usefixtures("dvc_project")
def test_the_readme_s_sequence_can_be_undone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All three budgets of own.yaml use `mine`; its placeholder comes back."""
    params = (PROJECT / "examples" / "own.yaml").read_bytes()
    (tmp_path / "params.yaml").write_bytes(params)
    write_labelme(tmp_path / "set")
    assert main(["add", "mine", "set", "--task", "part", "--licence", "own"]) == 0
    told = capsys.readouterr().out
    assert told.splitlines()[-1].endswith("`python -m sum remove mine` undoes it; the placeholder comes back.")
    (shown,) = [line for line in told.splitlines() if line.startswith("  mine: {")]
    assert f"\n{shown}" in (tmp_path / "params.yaml").read_text()  # what is printed is what was written
    assert "root: data/raw/mine" in shown
    assert main(["remove", "mine"]) == 0
    assert (tmp_path / "params.yaml").read_bytes() == params
    assert "Its copy data/raw/mine is deleted; the folder it was made of stays as it is." in capsys.readouterr().out
    assert not (tmp_path / "data" / "raw" / "mine").exists()
    assert (tmp_path / "set" / "images" / "a.jpg").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("dvc_project")
def test_work_in_a_copy_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Edited as docs/datasets.md says: DVC then finds nothing changed, but it is no longer what `add` put there."""
    write_labelme(tmp_path / "set")
    assert main(["add", "mine", "set", "--task", "part"]) == 0
    dvc("unprotect", "data/raw/mine")
    file = tmp_path / "data/raw/mine/annotations/a.json"
    file.write_text(mended := file.read_text() + "\n")
    dvc("add", "data/raw/mine")
    assert main(["remove", "mine"]) == 0
    assert file.read_text() == mended
    assert "The folder data/raw/mine stays" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("dvc_project")
def test_add_promises_no_undoing_that_a_budget_is_in_the_way_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = (tmp_path / "params.yaml").read_text().replace("human: [demo_salient", "human: [mine")
    (tmp_path / "params.yaml").write_text(params)
    write_labelme(tmp_path / "data" / "raw" / "mine")
    (tmp_path / "data/raw/mine/images/a.jpg").write_bytes(b"no photo")
    assert main(["add", "mine", "data/raw/mine", "--task", "part"]) == 0
    *_, told, last = capsys.readouterr().out.splitlines()
    assert last == "1 problem(s): stage ingest will stop there; mend them or set ingest.on_bad: skip in params.yaml."
    assert told.endswith("out of budgets.small, budgets.medium, budgets.large before `python -m sum remove mine`.")
    assert main(["remove", "mine"]) == 2
    told = capsys.readouterr().err
    assert "'mine' is used by budgets.small, budgets.medium, budgets.large of params.yaml; put another" in told


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
@pytest.mark.usefixtures("dvc_project")
def test_a_folder_elsewhere_and_a_budget_that_uses_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    export = tmp_path_factory.mktemp("export")
    write_yolo_splits(export)
    before, params = all_files(export), (tmp_path / "params.yaml").read_bytes()
    assert main(["add", "mine", str(export), "--task", "part"]) == 0
    assert all_files(tmp_path / "data" / "raw" / "mine") == before
    copies = list((tmp_path / "data" / "raw" / "mine").rglob("*.jpg"))
    assert all(path.stat().st_nlink > 1 for path in copies) or sys.platform != "linux"  # one copy, with DVC's cache
    after = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(after.replace("human: [demo_salient", "human: [mine"))
    assert main(["remove", "mine"]) == 2
    assert "'mine' is used by budgets.small, budgets.medium, budgets.large of" in capsys.readouterr().err
    (tmp_path / "params.yaml").write_text(after)
    assert main(["remove", "mine"]) == 0
    assert (tmp_path / "params.yaml").read_bytes() == params
    assert not (tmp_path / "data" / "raw" / "mine").exists()  # a copy, made by `add`
    assert all_files(export) == before
    assert all(path.stat().st_mode & 0o200 and path.stat().st_nlink == 1 for path in export.rglob("*.jpg"))  # its own
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
            (tmp_path / "data" / "raw" / "mine.dvc").write_text("outs: [{md5: 1.dir, path: mine}]\n")
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
