"""The dry run and `add` on folders that are partly broken or laid out by split: nothing is lost silently."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from sum.cli import main
from tests.commands.test_dry_run import dry_run, pasted
from tests.data.written import BOX, grey, photo, write_coco, write_images

pytestmark = pytest.mark.usefixtures("project")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_pairs(folder: Path, names: str) -> None:
    for index, name in enumerate(names):
        photo(folder / f"images/{name}.jpg", index)
        grey(folder / f"masks/{name}.png", BOX * 255)


def test_one_broken_mask_does_not_turn_masks_into_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(tmp_path / "set", "abcd")
    cut(tmp_path / "set/masks/a.png")
    said = dry_run(capsys, "set")
    assert pasted(said)["set"]["kind"] == "raster"
    assert "masks/a.png" in said


def test_masks_that_were_promised_and_not_found_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "set")
    before = (tmp_path / "params.yaml").read_bytes()
    assert main(["add", "mine", "set", "--task", "part"]) == 1
    said = capsys.readouterr().err
    assert "--task part says that there are masks and none was found" in said
    assert "--unlabelled" in said
    assert (tmp_path / "params.yaml").read_bytes() == before


def test_a_broken_annotation_file_beside_a_good_one_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_coco(tmp_path / "set")
    (good,) = (tmp_path / "set").rglob("*.json")
    shutil.copy(good, good.with_name("test.json"))
    good.rename(good.with_name("train.json"))
    cut(good.with_name("train.json"))
    said = dry_run(capsys, "set")
    assert "NOT READ" in said
    assert "train.json" in said
    assert main(["add", "mine", "set", "--task", "part"]) == 1
    assert "1 file(s) that may be of the set cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["abcd", "efgh"])
def test_a_split_that_lies_above_photos_and_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: str
) -> None:
    """train/images, train/masks, test/images, test/masks, with equal or with other file names."""
    write_pairs(tmp_path / "set/train", "abcd")
    write_pairs(tmp_path / "set/test", names)
    found = pasted(dry_run(capsys, "set"))
    places = {entry["split"]: (entry["images"], entry["masks"]) for entry in found.values()}
    assert places == {"train": ("train/images", "train/masks"), "test": ("test/images", "test/masks")}


def test_a_path_that_is_not_there_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever lies beside it: here links that lead round in circles."""
    circle = tmp_path / "beside"
    circle.mkdir()
    for number in range(12):
        (circle / f"{number}").symlink_to(circle, target_is_directory=True)
    assert main(["ingest", "--dry-run", "nowhere"]) == 1
    assert "nowhere does not exist or is not a folder" in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "params.yaml").read_text())["datasets"]
