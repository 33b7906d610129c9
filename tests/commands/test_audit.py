"""`python -m sum audit` on data sets written here: what it counts, what it says, how it ends, what SAM reaches."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter
from scipy.ndimage import distance_transform_edt
from segment_anything import SamPredictor

from sum.audits import REASONS, REST, SHOWN, Contents, audit_set
from sum.cli import main
from sum.data.demo import make_scene
from sum.data.images import read_image
from sum.data.sources import Note, Problem
from sum.data_settings import DatasetConfig
from sum.models.checkpoint import load_segmenter
from tests.data.miniatures.documents import DOCUMENTS
from tests.data.miniatures.raster import RASTER
from tests.data.written import BOX, HEIGHT, WIDTH, annotation, entry, grey, photo, write_json

PROJECT = Path(__file__).parents[2]
PAPER = PROJECT / "examples/paper.yaml"
TINY = PROJECT / "sum/models/weights/tiny.safetensors"
PART = {"split": "test", "task": "part", "licence": "CC0-1.0"}
Audit = Callable[..., tuple[int, str, str]]
DISC = np.hypot(*(np.mgrid[:HEIGHT, :WIDTH] - np.array([12, 15])[:, None, None])) < 8


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Audit:
    """Run the command on these data sets; returns the exit code, what was printed and what was complained of."""
    monkeypatch.chdir(tmp_path)

    def run(datasets: dict[str, Any], *words: str) -> tuple[int, str, str]:
        tree = yaml.safe_load((PROJECT / "params.yaml").read_text())
        train = {"kind": "raster", "root": "no", "split": "train", "task": "part", "licence": "x"}
        free = {"kind": "images", "root": "no", "split": "unlabelled", "licence": "x"}
        tree["datasets"] = datasets | {"human": train, "free": free}
        tree["budgets"] = {name: {"human": ["human"], "unlabelled": ["free"]} for name in ("small", "medium", "large")}
        tree["device"] = "cpu"
        Path("mine.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        code = main(["audit", *words, "--file", "mine.yaml"])
        told = capsys.readouterr()
        return code, told.out, "\n".join(line for line in told.err.splitlines() if " INFO " not in line)

    return run


def pairs(root: Path, count: int) -> dict[str, Any]:
    for number in range(count):
        photo(root / "images" / f"{number}.jpg", number)
        grey(root / "masks" / f"{number}.png", DISC * 255)
    return {"kind": "raster", "root": str(root), **PART}


def dirty(root: Path) -> dict[str, Any]:
    """Three images, four good masks; a crowd, a photo that is missing, and an annotation with a broken category."""
    for number in range(3):
        photo(root / "images" / f"{number}.jpg", number)
    rows = [annotation(number, BOX, id=number) for number in range(3)]
    rows += [annotation(0, DISC, id=10), annotation(0, BOX, id=11, iscrowd=1), annotation(1, BOX, id=12, category_id=9)]
    rows += [annotation(3, BOX, id=13)]
    write_json(root, images=[entry(number, f"{number}.jpg") for number in range(4)], annotations=rows)
    return {"kind": "coco", "root": str(root), **PART}


def row(printed: str, name: str) -> str:
    (line,) = [line for line in printed.splitlines() if line.split()[:1] == [name]]
    return " ".join(line.split())


def test_the_overview_says_what_is_there_what_agrees_and_what_is_absent(audit: Audit, tmp_path: Path) -> None:
    good = pairs(tmp_path / "good", 3) | {"expect": {"images": 3, "masks": 3}}
    code, printed, told = audit({"good": good, "away": good | {"root": "nowhere"}, "bare": pairs(tmp_path / "bare", 2)})
    assert (code, told) == (0, "")  # absent ones are no failure here
    assert row(printed, "good") == "good 3 / 3 3 / 3 0 as expected"
    assert row(printed, "away") == "away - / 3 - / 3 - absent: nowhere"
    assert row(printed, "bare") == "bare 2 / - 2 / - 0 read; no count to compare with"
    assert "2 of 5 sets found; 0 not as expected" in printed
    assert max(map(len, printed.splitlines())) <= 150
    assert "\x1b" not in printed  # reads well in a file


def test_what_differs_is_said_and_ends_with_1(audit: Audit, tmp_path: Path) -> None:
    sets = {
        "fewer": pairs(tmp_path / "fewer", 2) | {"expect": {"images": 3, "masks": 1}},
        "dirty": dirty(tmp_path / "dirty") | {"expect": {"images": 4, "masks": 4}},
        "broken": {"kind": "coco", "root": str(tmp_path / "fewer"), **PART},
    }
    code, printed, told = audit(sets)
    assert code == 1
    assert row(printed, "fewer") == "fewer 2 / 3 2 / 1 0 1 image fewer than expected; 1 mask more than expected"
    assert row(printed, "dirty") == "dirty 3 / 4 4 / 4 1 1 image fewer than expected; 2 unusable"
    assert "annotations.json does not exist" in " ".join(printed.split())
    assert told == "error: 3 of 5 data sets are not as expected: fewer, dirty, broken; see above"
    assert "3 not as expected" in printed


def test_a_named_set_is_told_in_full_with_first_files(audit: Audit, tmp_path: Path) -> None:
    entry = dirty(tmp_path / "dirty") | {"expect": {"images": 4}}
    code, printed, _ = audit({"dirty": entry, "other": entry}, "dirty", "--json", "out.json")
    assert code == 1
    assert "dirty: 1 image fewer than expected; 2 unusable" in printed
    assert "other" not in printed
    assert f"{HEIGHT} to {WIDTH}" in printed
    assert f"{BOX.sum()} to {DISC.sum()}" in printed
    text = " ".join(printed.split())
    assert "crowd region (iscrowd 1) left out" in text or "iscrowd" in text
    assert "the image is missing" in text
    assert "category_id 9 is not in 'categories'" in text
    (found,) = json.loads(Path("out.json").read_text())["sets"]
    assert (found["contents"]["images"], found["contents"]["masks"]) == (3, 4)
    assert sum(reason["count"] for reason in found["contents"]["problems"].values()) == 2
    assert found["differs"] == ["1 image fewer than expected", "2 unusable"]


def test_a_named_set_that_is_absent_is_a_failure_and_an_unknown_name_another(audit: Audit, tmp_path: Path) -> None:
    sets = {"good": pairs(tmp_path / "good", 1)}
    assert audit(sets, "good")[0] == 0
    code, printed, told = audit(sets, "good", "human")
    assert code == 1
    assert "human: absent" in printed
    assert told == "error: 1 of 2 data sets are not as expected: human (absent); see above"
    code, _, told = audit(sets, "goud")
    assert code == 2
    assert "mine.yaml: datasets: unknown 'goud'. Did you mean 'good'?" in told


def test_variants_stand_beside_the_expectation(audit: Audit, tmp_path: Path) -> None:
    root = tmp_path / "dirty"
    entry = dirty(root) | {"expect": {"images": 2, "masks": 2}, "select": {"images": 2}}
    entry["variants"] = {
        "large": {"min_area": int(BOX.sum()) + 1, "expect": {"images": 1, "masks": 1}},
        "one": {"select": {"images": 1}},
    }
    code, printed, _ = audit({"dirty": entry}, "dirty")
    assert code == 1
    assert row(printed, "large").startswith("large 1 / 1 1 / 1")
    assert row(printed, "one").startswith("one 1 / 2 2 / 2")
    assert "Counts fit: none." in printed  # of `large`, whose counts fit, one file is missing
    (root / "images" / "3.jpg").write_bytes((root / "images" / "0.jpg").read_bytes())
    tree = json.loads((root / "annotations.json").read_text())
    tree["annotations"] = [row for row in tree["annotations"] if row["id"] != 12]
    (root / "annotations.json").write_text(json.dumps(tree))
    _, printed, _ = audit({"dirty": entry}, "dirty")
    assert "Counts fit: large." in printed


@pytest.fixture(scope="module")
def table() -> dict[str, DatasetConfig]:
    return TypeAdapter(dict[str, DatasetConfig]).validate_python(yaml.safe_load(PAPER.read_text())["datasets"])


@pytest.mark.parametrize("name", RASTER | DOCUMENTS)
def test_a_miniature_has_what_its_writer_says(name: str, table: dict[str, DatasetConfig], tmp_path: Path) -> None:
    """The paper's sets in their original layout: counts and reasons, of an entry and of a variant."""
    want = (RASTER | DOCUMENTS)[name](tmp_path)
    key, _, variant = name.partition(" ")[0].partition("@")
    entry = replace(table[key].variant(variant) if variant else table[key], root=str(tmp_path))
    found = audit_set(key, entry, variant=variant)
    assert (found.found, found.error) == (True, "")
    assert (found.contents.images, found.contents.masks) == (len(want.masks), sum(map(len, want.masks.values())))
    assert {reason: told.count for reason, told in found.contents.notes.items()} == dict(want.notes)
    assert found.contents.unusable == len(want.problems)
    areas = [int(mask.sum()) for masks in want.masks.values() for mask in masks]
    assert found.contents.area == ((min(areas), max(areas)) if areas else (0, 0))


@pytest.fixture
def scenes(tmp_path: Path) -> dict[str, Any]:
    """Six drawn scenes with their largest part each, as a raster set."""
    root = tmp_path / "scenes"
    for number in range(6):
        scene = make_scene(number, side=64)
        mask = max(scene.parts, key=lambda part: int(part.sum()))
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(root / "images" / f"{number}.png")
        grey(root / "masks" / f"{number}.png", mask * 255)
    return {"kind": "raster", "root": str(root), **PART}


def best_of_three(image: Path, mask: Path) -> float:
    """By segment-anything's own predictor and plain NumPy: one click on the deepest pixel, the best of three."""
    truth = np.asarray(Image.open(mask)) > 127
    depth = distance_transform_edt(np.pad(truth, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    predictor = SamPredictor(load_segmenter(TINY, backbone="tiny").for_task("part"))
    predictor.set_image(read_image(str(image)))
    masks, _, _ = predictor.predict(np.array([[x, y]]), np.array([1]), multimask_output=True)
    return float(max((found & truth).sum() / (found | truth).sum() for found in masks))


def test_the_figure_is_what_segment_anything_reaches(audit: Audit, scenes: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "scenes"
    wanted = [best_of_three(root / "images" / f"{n}.png", root / "masks" / f"{n}.png") for n in range(6)]
    scenes["expect"] = {"point_miou": 50.0}
    scenes["variants"] = {"three": {"select": {"images": 3}}}
    code, printed, _ = audit({"scenes": scenes}, "scenes", "--checkpoint", str(TINY), "--json", "out.json")
    assert code == 0
    whole, three = json.loads(Path("out.json").read_text())["sets"]
    assert whole["figure"]["mean"] == pytest.approx(100 * np.mean(wanted), abs=0.5)
    assert three["figure"]["mean"] == pytest.approx(100 * np.mean(wanted[:3]), abs=0.5)
    assert (whole["figure"]["images"], three["figure"]["masks"]) == (6, 3)
    assert whole["figure"]["low"] <= whole["figure"]["mean"] <= whole["figure"]["high"]
    assert "that of tiny does not settle a definition" in printed


def test_a_limit_draws_the_same_images_of_every_variant(audit: Audit, scenes: dict[str, Any]) -> None:
    scenes["variants"] = {"split": {"min_area": 2}}
    words = ("scenes", "--checkpoint", str(TINY), "--limit", "2", "--json", "out.json")
    assert audit({"scenes": scenes}, *words)[0] == 0
    one, other = json.loads(Path("out.json").read_text())["sets"]
    assert (one["figure"]["images"], one["contents"]["images"]) == (2, 6)
    assert one["figure"] == other["figure"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", "2"), "--backbone and --limit belong to --checkpoint PATH"),
        (("--checkpoint", "x.pth", "--limit", "0"), "wanted a number of at least 1, got '0'"),
    ],
)
def test_a_bad_option_is_exit_2(audit: Audit, words: tuple[str, ...], message: str) -> None:
    code, _, told = audit({}, *words)
    assert code == 2
    assert message in told


def test_weights_of_another_model_are_refused_by_name(audit: Audit) -> None:
    code, _, told = audit({}, "--checkpoint", "nowhere.pth")
    assert code == 1
    assert "nowhere.pth: no such weights file" in told


def test_a_server_that_is_away_is_worth_another_try(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_MAX_ATTEMPTS": "1"}
    for name, value in (settings | {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(name, value)
    code, _, told = audit({"far": {"kind": "raster", "root": "s3://bucket/far", **PART}})
    assert code == 75
    assert "1 data set(s) could not be read: far: s3://bucket/far: no answer" in told


def test_counting_a_million_findings_keeps_a_few() -> None:
    contents = Contents()
    for number in range(20_000):
        contents.add(Problem(f"{number}.png", f"reason {number}", "mend"))
        contents.add(Note("left out", f"{number}.png"))
    assert contents.unusable == contents.left_out == 20_000
    assert len(contents.problems) == REASONS + 1
    assert contents.problems[REST].count == 20_000 - REASONS
    assert all(len(reason.files) <= SHOWN for table in (contents.problems, contents.notes) for reason in table.values())
