"""contact-sheet: its size, where the colours and the heat lie, who is drawn."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from sum.cli import main
from tests.commands.stored import HW, draw, make_store

ROW, COLUMN = 196, 260  # px from one picture to the next: 192 x 256 and 4 of white


@pytest.fixture(autouse=True)
def store(project: Path) -> Path:
    make_store(project)
    return project


def sheet(capsys: pytest.CaptureFixture[str], *words: str, name: str = "sheet.png") -> tuple[np.ndarray, list[str]]:
    """The picture, and whose row is which."""
    assert main(["contact-sheet", name, *words]) == 0
    ids = [line.strip() for line in capsys.readouterr().out.splitlines()[1:]]
    with Image.open(name) as opened:
        assert opened.mode == "RGB"
        return np.asarray(opened), ids


def cells(picture: np.ndarray, row: int, hw: tuple[int, int]) -> list[np.ndarray]:
    """The three pictures of a row without the white around."""
    scale = min(192 / hw[0], 256 / hw[1])
    height, width = (round(length * scale) for length in hw)
    top = row * ROW + (192 - height) // 2
    lefts = [column * COLUMN + (256 - width) // 2 for column in range(3)]
    return [picture[top : top + height, left : left + width].astype(int) for left in lefts]


def test_colours_lie_where_the_masks_are(capsys: pytest.CaptureFixture[str]) -> None:
    picture, ids = sheet(capsys)
    assert sorted(ids) == sorted(HW)
    assert picture.shape == (4 * ROW - 4, 3 * COLUMN - 4, 3)
    shown = np.zeros(picture.shape[:2], dtype=bool)
    for row, image_id in enumerate(ids):
        photo, masks, _ = cells(picture, row, HW[image_id])
        with Image.open(f"data/raw/{list(HW).index(image_id)}.png") as opened:
            plain = cv2.resize(np.asarray(opened), photo.shape[1::-1], interpolation=cv2.INTER_AREA).astype(int)
        assert np.abs(photo - plain).mean() < 6  # another way of resizing
        union = np.zeros(HW[image_id], dtype=np.uint8)
        for one in draw(image_id):
            union |= one.mask
        size = photo.shape[1::-1]
        big = cv2.resize(union * 255, size, interpolation=cv2.INTER_LINEAR)
        border = cv2.dilate(((big > 5) & (big < 250)).astype(np.uint8), np.ones((3, 3))).astype(bool)
        changed = np.abs(masks - photo).max(axis=2)
        assert np.array_equal(changed[~border] > 12, (big > 127)[~border])
        assert (changed[(big < 128) & ~border] == 0).all()  # nothing outside, the hole included
        for cell in range(3):
            height, width = photo.shape[:2]
            top, left = row * ROW + (192 - height) // 2, cell * COLUMN + (256 - width) // 2
            shown[top : top + height, left : left + width] = True
    assert (picture[~shown] == 255).all()


def test_masks_have_colours_of_their_own_and_outlines(capsys: pytest.CaptureFixture[str]) -> None:
    picture, ids = sheet(capsys)
    photo, masks, _ = cells(picture, ids.index("s/b"), HW["s/b"])
    scale = photo.shape[0] / HW["s/b"][0]
    colours = []
    for one in draw("s/b")[::2]:  # those without a hole; their middles lie apart
        ys, xs = np.nonzero(one.mask)
        y, x = round(ys.mean() * scale), round(xs.mean() * scale)
        colours.append(2 * masks[y, x] - photo[y, x])  # half photo, half colour
    assert np.abs(colours[0] - colours[1]).max() > 100
    pure = np.array([255, 25.5, 25.5])  # the colour of mask 0, on its outline alone
    ring = (np.abs(masks - pure) < 1).all(axis=2)
    assert ring.sum() >= 20
    first = draw("s/b")[0].mask.astype(np.uint8)
    wide = cv2.dilate(cv2.resize(first, photo.shape[1::-1], interpolation=cv2.INTER_NEAREST), np.ones((3, 3)))
    deep = cv2.erode(cv2.resize(first, photo.shape[1::-1], interpolation=cv2.INTER_NEAREST), np.ones((5, 5)))
    assert not (ring & (wide == 0)).any()
    assert not (ring & (deep == 1)).any()


def test_heat_follows_the_largest_uncertainty_of_the_masks(capsys: pytest.CaptureFixture[str]) -> None:
    picture, ids = sheet(capsys)
    for image_id in ("s/z/../c", "s/none"):
        photo, _, heat = cells(picture, ids.index(image_id), HW[image_id])
        warmth = heat - 0.2 * photo.mean(axis=2, keepdims=True)
        if image_id == "s/none":
            assert warmth.max() < 6  # black under a faint photo: inferno begins at 0, 0, 4
            continue
        u = np.max([np.abs(one.sam.astype(int) - one.refined) for one in draw(image_id) if one.has_map], axis=0)
        want = cv2.resize(u.astype(np.float32), photo.shape[1::-1])  # a square photo: the frame is the photo
        assert np.corrcoef(warmth.sum(axis=2).ravel(), want.ravel())[0, 1] > 0.95


def test_the_lot_is_the_seed_s(capsys: pytest.CaptureFixture[str]) -> None:
    first, two = sheet(capsys, "--images", "2", name="a.png")
    again, same = sheet(capsys, "--images", "2", name="b.png")
    assert first.shape == (2 * ROW - 4, 3 * COLUMN - 4, 3)
    assert two == same
    assert np.array_equal(first, again)
    drawn = {tuple(sheet(capsys, "--images", "2", "--seed", str(seed))[1]) for seed in range(4)}
    assert len(drawn) > 1
    assert sheet(capsys, "--images", "4")[1][:2] == two


def test_a_jpeg_replaces_the_old_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("Sheet.JPG").write_bytes(b"old")
    lossy, ids = sheet(capsys, name="Sheet.JPG")
    exact, _ = sheet(capsys)
    assert lossy.shape == exact.shape
    assert 0 < np.abs(lossy.astype(int) - exact).mean() < 4
    assert Path("Sheet.JPG").read_bytes()[:2] == b"\xff\xd8"
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sheet.gif"], "contact-sheet: sheet.gif: wanted a name that ends in .jpg, .jpeg, .png"),
        (["sheet"], "wanted a name that ends in"),
        (["sheet.jpg", "--images", "61"], "--images 61: at most 60 fit on a sheet"),
        (["sheet.jpg", "--images", "0"], "wanted a number of at least 1, got '0'"),
    ],
)
def test_a_bad_command_line_writes_nothing(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["contact-sheet", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(Path().glob("*sheet*"))


def test_an_error_leaves_the_old_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    Path("sheet.png").write_bytes(b"old")
    Image.new("RGB", (90, 60)).save("data/raw/0.png")
    assert main(["contact-sheet", "sheet.png"]) == 1
    assert "data/raw/0.png is not what it was at ingest" in capsys.readouterr().err
    assert Path("sheet.png").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("folder", "maker"), [("manifest", "ingest"), ("pseudo_labels", "pseudo_label"), ("uncertainty", "uncertainty")]
)
def test_a_missing_input_names_the_stage(folder: str, maker: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(Path("data") / folder)
    assert main(["contact-sheet", "sheet.png"]) == 1
    assert f"Run `dvc repro {maker}`." in capsys.readouterr().err
    assert not Path("sheet.png").exists()
