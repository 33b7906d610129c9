"""export-labels: what pycocotools reads back is what the store holds, and a failure leaves nothing."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rles
from pycocotools.coco import COCO

from sum.cli import main
from sum.data.shards import shard_name
from tests.commands import stored
from tests.commands.stored import HW, LOW, SIDE, draw, make_store, pseudo

OUT = Path("out/here")
ORDER = sorted(HW)


@pytest.fixture(autouse=True)
def store(project: Path) -> Path:
    make_store(project)
    return project


def bilinear(values: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Enlarge or shrink as a straight line between pixel centres says, the edge carried on."""
    for axis, new in enumerate(hw):
        old = values.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        share = np.expand_dims(at - low, 1 - axis)
        below, above = np.take(values, low, axis), np.take(values, np.minimum(low + 1, old - 1), axis)
        values = below * (1 - share) + above * share
    return values


def enlarged(codes: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """A map over the padded frame at the photo's size: whole frame up to S, padding off, to the photo."""
    inner = [max(1, int(length * SIDE / max(hw) + 0.5)) for length in hw]
    return bilinear(bilinear(codes.astype(np.float64), (SIDE, SIDE))[: inner[0], : inner[1]], hw)


def test_the_images_of_some_data_sets_only(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [image_id for image_id in ORDER if image_id.startswith("s/")]
    assert len(wanted) > 0
    assert main(["export-labels", str(OUT), "--datasets", "s"]) == 0
    coco = COCO(str(OUT / "labels.json"))
    assert [image["image_id"] for image in coco.imgs.values()] == wanted
    assert main(["contact-sheet", "sheet.png", "--datasets", "s", "--images", "1"]) == 0
    capsys.readouterr()
    assert main(["export-labels", "elsewhere", "--datasets", "shop"]) == 2
    assert "no labelled image in data set 'shop'. There are some of s" in capsys.readouterr().err


def test_the_documented_lines_read_the_store() -> None:
    """The Python block of docs/labelling.md, and its last sentence: codes at a photo's size."""
    text = (Path(__file__).parents[2] / "docs" / "labelling.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    counted = block.replace("for image_id in store.image_ids:", "for image_id in seen(store.image_ids):")
    drawn = [image_id for image_id in ORDER if draw(image_id)]
    found: dict[str, object] = {"seen": lambda ids: [i for i in ids if i in drawn]}
    exec(counted, found)
    image = found["image"]
    truth = draw(image.image_id)[-1].mask  # type: ignore[attr-defined]
    assert np.array_equal(found["pixels"], truth)  # type: ignore[arg-type]
    ys, xs = np.nonzero(truth)
    assert (found["x0"], found["y0"], found["x1"], found["y1"]) == (xs.min(), ys.min(), xs.max(), ys.max())
    assert found["sam"].shape == found["u"].shape == (1, LOW, LOW)  # type: ignore[attr-defined]


def test_pycocotools_reads_back_the_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-labels", str(OUT)]) == 0
    assert "out/here/labels.json: 9 masks of 4 of 4 labelled images, 6 uncertainty maps" in capsys.readouterr().out
    coco = COCO(str(OUT / "labels.json"))
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "pseudo-label"}]
    assert coco.getImgIds() == [1, 2, 3, 4]
    for number, image_id in enumerate(ORDER, 1):
        image = coco.imgs[number]
        assert (image["height"], image["width"]) == HW[image_id]
        assert image["image_id"] == image_id
        assert image["file_name"] == f"data/raw/{list(HW).index(image_id)}.png"
        rows, drawn = coco.loadAnns(coco.getAnnIds(imgIds=number)), draw(image_id)
        assert len(rows) == len(drawn)
        for k, (row, one) in enumerate(zip(rows, drawn, strict=True)):
            want = pseudo(image_id, k, one.mask)
            assert row["segmentation"] == {"size": list(HW[image_id]), "counts": want.rle}
            assert np.array_equal(coco.annToMask(row), one.mask)
            assert row["bbox"] == rles.toBbox(coco.annToRLE(row)).tolist()
            assert row["area"] == int(rles.area(coco.annToRLE(row)))
            assert (row["iscrowd"], row["category_id"]) == (0, 1)
            assert (row["score"], row["stability"]) == (want.predicted_iou, want.stability)
            assert row["point"] == list(want.point)


def test_a_map_is_the_enlarged_distance_of_refined_to_sam() -> None:
    assert main(["export-labels", str(OUT)]) == 0
    rows = json.loads((OUT / "labels.json").read_text())["annotations"]
    named = set()
    for row in rows:
        image_id = ORDER[row["image_id"] - 1]
        drawn = draw(image_id)
        k = [pseudo(image_id, k, one.mask).rle for k, one in enumerate(drawn)].index(row["segmentation"]["counts"])
        assert ("uncertainty" in row) == drawn[k].has_map
        if not drawn[k].has_map:
            continue
        assert row["uncertainty"] == f"uncertainty/{row['image_id']:06d}/{k}.png"
        named.add(row["uncertainty"])
        with Image.open(OUT / row["uncertainty"]) as opened:
            assert opened.mode == "L"
            found = np.asarray(opened)
        assert found.shape == HW[image_id]
        codes = np.abs(drawn[k].sam.astype(int) - drawn[k].refined.astype(int))
        assert codes.shape == (LOW, LOW)
        want = enlarged(codes, HW[image_id])
        assert want.max() > 100  # it is no empty map
        assert np.abs(found - want).max() < 0.501  # rounded to the nearest, float32 against float64
    assert named == {str(path.relative_to(OUT)) for path in OUT.rglob("*.png")}
    assert len(named) == 6


def test_ids_with_slashes_and_dots_lead_nowhere(store: Path) -> None:
    before = {path for path in store.rglob("*") if path.is_file()}
    assert main(["export-labels", str(OUT)]) == 0
    new = {path for path in store.rglob("*") if path.is_file()} - before
    assert {path.relative_to(store / OUT).parts[0] for path in new} == {"labels.json", "uncertainty"}
    assert {path.name for path in (OUT / "uncertainty").iterdir()} == {"000001", "000002", "000004"}


def test_the_first_images_without_maps() -> None:
    shutil.rmtree("data/uncertainty")
    assert main(["export-labels", str(OUT), "--images", "2", "--no-uncertainty"]) == 0
    tree = json.loads((OUT / "labels.json").read_text())
    assert [image["image_id"] for image in tree["images"]] == ORDER[:2]
    assert {row["image_id"] for row in tree["annotations"]} == {1, 2}
    assert [row["id"] for row in tree["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert not any("uncertainty" in row for row in tree["annotations"])
    assert [path.name for path in OUT.iterdir()] == ["labels.json"]


@pytest.mark.parametrize("words", [["--images", "0"], ["--images", "-1"], ["--images", "two"]])
def test_a_bad_number_is_refused(words: list[str]) -> None:
    assert main(["export-labels", str(OUT), *words]) == 2
    assert not OUT.exists()


@pytest.mark.parametrize("kind", ["full", "file", "link"])
def test_what_is_there_is_not_touched(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    OUT.parent.mkdir()
    if kind == "full":
        OUT.mkdir()
        (OUT / "mine.txt").write_text("mine")
    elif kind == "file":
        OUT.write_text("mine")
    else:
        Path("elsewhere").mkdir()
        OUT.symlink_to(Path("elsewhere").absolute())
    before = OUT.is_dir() and sorted(OUT.iterdir())
    assert main(["export-labels", str(OUT)]) == 2
    told = capsys.readouterr().err
    assert told == "error: export-labels: out/here is there and is no empty folder; name a new one\n"
    assert (OUT.is_dir() and sorted(OUT.iterdir())) == before
    assert not list(Path("elsewhere").glob("*"))


def test_an_empty_folder_is_taken() -> None:
    OUT.mkdir(parents=True)
    assert main(["export-labels", str(OUT)]) == 0
    assert len(COCO(str(OUT / "labels.json")).anns) == 9


def test_an_error_midway_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """The maps of s/b, the second image, are damaged: those of the first are on the disk by then."""
    path = Path("data/uncertainty") / shard_name(1)
    data = bytearray(path.read_bytes())
    place = data.index(b"s/b")  # metadata of its batch; the checksum covers what follows
    data[place] ^= 1
    path.write_bytes(data)
    assert main(["export-labels", str(OUT)]) == 1
    told = capsys.readouterr().err
    assert "data/uncertainty/shard-00001.arrow: not what stage 'uncertainty' writes" in told
    assert "'s/b'" in told
    assert list(OUT.parent.iterdir()) == []


def test_a_photo_of_another_size_is_noticed(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setitem(HW, "s/b", (200, 121))
    shutil.rmtree("data/manifest")
    kept = Path("data/pseudo_labels"), Path("data/uncertainty")
    for folder in kept:
        folder.rename(folder.with_name(f"{folder.name}.old"))
    make_store(Path())
    for folder in kept:
        shutil.rmtree(folder)
        folder.with_name(f"{folder.name}.old").rename(folder)
    assert main(["export-labels", str(OUT)]) == 1
    told = capsys.readouterr().err
    assert "of image 's/b' covers 24000 pixels, the manifest's photo has 200 x 121" in told
    assert not OUT.exists()


def test_a_score_that_is_no_number_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """JSON has no NaN."""
    monkeypatch.setattr(stored, "pseudo", lambda *words: replace(pseudo(*words), stability=float("nan")))
    shutil.rmtree("data")
    make_store(Path())
    assert main(["export-labels", str(OUT)]) == 1
    assert "pseudo-label 0 of image 's/a#1/x' has a score or point that is not finite" in capsys.readouterr().err
    assert not OUT.exists()


@pytest.mark.parametrize(
    ("folder", "maker"), [("manifest", "ingest"), ("pseudo_labels", "pseudo_label"), ("uncertainty", "uncertainty")]
)
def test_a_missing_input_names_the_stage(folder: str, maker: str, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(Path("data") / folder)
    assert main(["export-labels", str(OUT)]) == 1
    told = capsys.readouterr().err
    assert f"data/{folder}" in told
    assert f"Run `dvc repro {maker}`." in told
    assert len(told.splitlines()) == 1
    assert not OUT.exists()
