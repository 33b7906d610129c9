"""Stage report on made-up evaluations of drawn scenes: what the page says, and that it needs no network."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from sum.config import check_config
from sum.core.first_prompts import FIRST_PROMPTS
from sum.core.metrics import iou
from sum.data import report_page
from sum.data.demo import make_scene
from sum.data.records import ImageRecord, MaskRecord, encode_mask, write_manifest
from sum.data.refined import CURVES, FIGURES
from sum.data.refined_pages import NUMBERS
from sum.data.score_tables import (
    EVERYTHING_SCHEMA,
    FIDELITY,
    FIDELITY_SCHEMA,
    GENERATED,
    MAP_SCHEMA,
    MAPS,
    PREDICTION_SCHEMA,
    PREDICTIONS,
    ROW_SCHEMA,
    ROWS,
    write_table,
)
from sum.data_settings import ExpectConfig
from sum.errors import DataError, MissingInput
from sum.settings import Config
from sum.stages import report
from sum.storage import sha256_file, write_json

PARAMS = Path(__file__).parents[2] / "params.yaml"
MODELS = ("base", "small", "large")
PAGE = Path("data/report/index.html")
LEVEL = {"base": 0.5, "small": 0.7, "large": 0.3}  # how much of the truth a model finds


def configured(**changes: Any) -> Config:
    tree = yaml.safe_load(PARAMS.read_text())
    tree["budgets"].pop("medium")
    tree["evaluate"] |= {"rounds": 3, "report_rounds": [1, 3], "resamples": 20, "pictures": 3, **changes}
    tree["register"]["rounds"] = [1]
    tree["datasets"]["demo_part_test"]["licence"] = "<b>none</b>"
    return check_config(tree, source="params.yaml")


class FakeRun:
    """Keeps the names of what it is given."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.metrics: dict[str, float] = {}
        self._waiting: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], *, step: int) -> None:
        assert step == 0
        self._waiting |= metrics

    def flush(self) -> None:
        self.metrics |= self._waiting

    def log_file(self, path: Path, *, folder: str) -> None:
        assert path.is_file()
        self.names.append(f"{folder}/{path.name}")

    def log_image(self, image: np.ndarray, *, name: str) -> None:
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        self.names.append(name)


def quiet(patch: pytest.MonkeyPatch) -> dict[str, FakeRun]:
    """No MLflow, and no matplotlib, which takes a second: tests/data/test_showcase.py draws. Returns the runs."""
    runs: dict[str, FakeRun] = {}
    patch.setattr(report_page, "curves", lambda *_, **__: b"PNG")
    patch.setattr(report, "run_of_weights", lambda *_, name, **__: runs.setdefault(name, FakeRun()))
    return runs


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeRun]:
    return quiet(monkeypatch)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow: dict[str, FakeRun]) -> Path:
    """A project of its own for a test that changes it."""
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)
    return tmp_path


@dataclass(frozen=True)
class Built:
    """A report as it comes of the project as it is laid out."""

    folder: Path
    runs: dict[str, FakeRun]

    @property
    def page(self) -> str:
        return (self.folder / PAGE).read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built once, for the tests that only read it: a page takes seconds."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runs = quiet(patch)
        lay_out(folder)
        assert report.run(configured()) == Path("data/report")
    return Built(folder, runs)


def lay_out(folder: Path) -> None:
    """Two data sets of two pictures, one of them wide, and what evaluate, register and finetune left behind."""
    truths: dict[str, np.ndarray] = {}
    images, masks = [], []
    for number, (dataset, task) in enumerate([("demo_salient_test", "salient"), ("demo_part_test", "part")] * 2):
        scene = make_scene(number, side=64)
        height = 64 if number else 40
        path = folder / f"{number}.png"
        Image.fromarray(scene.image[:height]).save(path)
        place = {"image_id": f"{dataset}/{number}", "dataset": dataset, "task": task, "split": "test"}
        size = {"height": height, "width": 64}
        images.append(ImageRecord(path=path.name, sha256=sha256_file(path), licence="MIT", **size, **place))
        found = [scene.salient] if task == "salient" else scene.parts
        for index, truth in enumerate([truth[:height] for truth in found if truth[:height].any()][:2]):
            mask_id = f"{dataset}/{number}#{index}"
            truths[mask_id] = truth
            y, x = np.nonzero(truth)
            box = {"x0": int(x.min()), "x1": int(x.max()), "y0": int(y.min()), "y1": int(y.max())}
            about = {"area": int(truth.sum()), "rle": encode_mask(truth), "category": "<i>thing</i>", "source": ""}
            masks.append(MaskRecord(mask_id=mask_id, **place, **box, **about))
    write_manifest(Path("data/manifest"), images, masks)
    for model in MODELS:
        leave_evaluation(model, masks, truths)
    for budget, word in (("small", "promoted"), ("large", "refused")):
        reasons = [f"because of <reason> {budget}"]
        write_json(Path(f"data/registry/{budget}.json"), {"budget": budget, "verdict": word, "reasons": reasons})
        write_json(Path(f"data/models/{budget}/summary.json"), {"steps": 1234, "final": {"loss": 0.25}})
        Path(f"data/models/{budget}/model.safetensors").write_bytes(b"weights")
    write_json(Path("data/refiner/report.json"), {"all": {"iou_refined": 0.8125}})


def leave_evaluation(model: str, masks: list[MaskRecord], truths: dict[str, np.ndarray]) -> None:
    """Predictions that hold the left part of each truth; the last mask goes the other way round."""
    folder = Path("data/evaluation") / model
    folder.mkdir(parents=True)
    rows, predictions, maps = [], [], []
    for mask in masks:
        truth = truths[mask.mask_id]
        share = LEVEL[model] if mask is not masks[-1] else 1 - LEVEL[model]
        columns = np.flatnonzero(truth.any(axis=0))
        prediction = truth.copy()
        prediction[:, columns[0] + int(share * len(columns)) + 1 :] = False
        y, x = np.argwhere(truth)[0].tolist()
        place = {"dataset": mask.dataset, "task": mask.task, "image_id": mask.image_id, "mask_id": mask.mask_id}
        value = iou(prediction, truth)
        for number in (1, 2, 3):
            for output in ("oracle", "single", "confident")[: 3 if number == 1 else 2]:
                score = {
                    "iou": value,
                    "boundary_iou": value / 2,
                    "predicted_iou": 0.5,
                    "click_x": x,
                    "click_y": y,
                    "click_label": 1,
                }
                row = {"model": model, **place, "area": mask.area, "round": number, "output": output, **score}
                rows += [{**row, "prompt": prompt, "task_prompt": mask.task} for prompt in FIRST_PROMPTS]
        predictions.append({"mask_id": mask.mask_id, "round": 1, "output": "oracle", "rle": encode_mask(prediction)})
        maps.append(
            {"mask_id": mask.mask_id, "png": cv2.imencode(".png", np.full((64, 64), 128, np.uint8))[1].tobytes()}
        )
    write_table(folder / ROWS, rows, ROW_SCHEMA)
    write_table(folder / PREDICTIONS, predictions, PREDICTION_SCHEMA)
    if model == "base":
        write_table(folder / MAPS, maps, MAP_SCHEMA)
    rules = {
        "rounds": 3,
        "prompts": ["point", "box"],
        "boundary_ratio": 0.02,
        "choices": {"mask": "logits cut at 0"},
        "versions": {"torch": "2"},
    }
    write_json(
        folder / "protocol.json", {"model": model, "weights_sha256": f"hash of {model}", "device": "cpu", **rules}
    )


def test_page_says_what_happened(built: Built) -> None:
    page = built.page
    table = pd.read_csv(built.folder / "data/report/table.csv", index_col="model")
    assert list(table.index) == list(MODELS)
    for column in ("salient mIoU@1", "all mBIoU@3"):
        assert f"{table.loc['small', column]:.1f} ±" in page
    for text in (
        "small: promoted",
        "large: refused",
        "because of &lt;reason&gt; large",
        "&lt;b&gt;none&lt;/b&gt;",  # licences come from outside
        "1234",  # training steps
        "0.8125",  # the refinement module's report
        "logits cut at 0",
        "hash of small",
        "part: where it got better",
        "part: where it got worse",
        "part: picked at random",
    ):
        assert text in page
    assert "<i>thing" not in page


def test_page_opens_without_a_network(built: Built) -> None:
    page = built.page
    assert not re.search(r"https?://", page)
    assert not re.search(r"<(script|link|iframe|object)\b", page)
    assert not re.search(r"@import|url\(", page)
    sources = re.findall(r'src="(.{5})', page)
    assert set(sources) == {"data:"}
    assert len(sources) > 1


def test_links_within_the_page_lead_somewhere(built: Built) -> None:
    wanted = re.findall(r'href="#([^"]*)"', built.page)
    assert len(wanted) > 10
    assert set(wanted) <= set(re.findall(r'id="([^"]*)"', built.page))


@pytest.mark.slow
def test_same_input_same_bytes(built: Built, project: Path) -> None:
    report.run(configured())
    first = {path.name: path.read_bytes() for path in (built.folder / "data/report").iterdir()}
    assert set(first) == {"index.html", "curves.png", "table.md", "table.csv"}
    assert {path.name: path.read_bytes() for path in Path("data/report").iterdir()} == first


def test_table_is_ready_for_a_terminal(built: Built) -> None:
    lines = (built.folder / "data/report/table.md").read_text().splitlines()
    assert lines[0].startswith("| points | model")
    assert "- large: refused: because of <reason> large" in lines


def played(prompts: list[str]) -> None:
    """Let the protocols of all models say so."""
    for model in MODELS:
        path = Path("data/evaluation") / model / "protocol.json"
        write_json(path, json.loads(path.read_text()) | {"prompts": prompts})


@pytest.mark.slow
def test_box_first_is_said(project: Path) -> None:
    played(["box"])
    report.run(configured())
    assert Path("data/report/table.md").read_text().startswith("| prompts | model")
    assert "its box, then a click a round" in PAGE.read_text()


@pytest.mark.parametrize("kind", ["boundary", "random"])
def test_other_clicks_first_are_points_too(kind: str, project: Path) -> None:
    played([kind])
    report.run(configured())
    assert Path("data/report/table.md").read_text().startswith("| points | model")


def test_mlflow_gets_page_and_pictures_of_each_budget(built: Built) -> None:
    assert sorted(built.runs) == ["sum-ft-large", "sum-ft-small"]
    for run in built.runs.values():
        assert run.names[:3] == ["report/index.html", "report/curves.png", "refiner/report.json"]
        assert any(re.fullmatch(r"pictures/part-\d\d-worse.png", name) for name in run.names)


def test_the_evidence_on_uncertainty_is_shown_and_logged(project: Path, mlflow: dict[str, FakeRun]) -> None:
    folder = Path("data/refiner")
    figures = {"masks": "pairs", "region": "image", "task": "all", "kind": "uncertainty", "method": "refinement"}
    pd.DataFrame([{**figures, **dict.fromkeys(NUMBERS, 0.987654)}]).to_csv(folder / FIGURES, index=False)
    (folder / CURVES).write_text("masks\n")
    (folder / "change.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><text>changed here</text></svg>')
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.jpg").write_bytes(b"jpeg")
    entry = {"file": "a.jpg", "task": "part", "kind": "Where it got worse", "mask_id": "<m>", "iou": "SAM 80.0"}
    write_json(folder / "pictures.json", [entry])
    report.run(configured())
    page = PAGE.read_text()
    for text in ("changed here", "98.77 %", "part, where it got worse: SAM 80.0; &lt;m&gt;", "risk-coverage"):
        assert text in page
    assert not re.search(r"https?://", page)
    for run in mlflow.values():
        assert {"refiner/change.svg", "refiner/evidence.csv", "refiner/report.json"} <= set(run.names)
        assert run.metrics["refiner/refinement/aurc"] == 0.987654


def test_without_maps_and_verdicts(project: Path) -> None:
    (Path("data/evaluation/base") / MAPS).unlink()
    Path("data/registry/large.json").unlink()
    report.run(configured())
    page = PAGE.read_text()
    assert "<b>uncertainty</b>" not in page
    assert "large: undecided" in page
    assert "dvc repro register@large" in page


def test_what_was_not_evaluated_is_said(built: Built) -> None:
    page = built.page
    assert "hold no checks of obedience: see evaluate.fidelity" in page
    assert "hold no automatic generation: see evaluate.everything" in page
    assert "There is no table of this decision" in page
    assert "1 point" in page
    assert "box + 2 points" in page
    assert "no task prompt" not in page


def test_checks_yield_and_the_gates_table_are_shown(project: Path) -> None:
    place = {"dataset": "demo_part_test", "task": "part", "image_id": "demo_part_test/1"}
    for model in MODELS:
        folder = Path("data/evaluation") / model
        check = {"model": model, **place, "mask_id": "a", "check": "swap", "passed": model != "large"}
        write_table(folder / FIDELITY, [check], FIDELITY_SCHEMA)
        kept = {"base": 8, "small": 6, "large": 2}[model]
        write_table(folder / GENERATED, [{"model": model, **place, "generated": kept}], EVERYTHING_SCHEMA)
    path = Path("data/registry/large.json")
    row = {"kind": "<box>", "scope": "task", "name": "part", "base": 0.521, "tuned": 0.502, "gain": -0.019}
    row |= {"low": -0.026, "high": -0.011, "p": 0.002, "masks": 1372, "images": 40, "limit": -0.01, "ok": False}
    write_json(path, json.loads(path.read_text()) | {"table": [row], "not_looked_at": ["<everything>"]})
    report.run(configured())
    page = PAGE.read_text()
    for text in (
        "&lt;box&gt;",
        "<small>-2.6 to -1.1</small>",
        '<td class="worse"><span class="fails">✗</span> -1.9',
        "1,372",
        "Not looked at: &lt;everything&gt;",
        "× 0.25",
        "-100.0 ±0.0 ▼",
    ):
        assert text in page
    assert "hold no" not in page


def test_published_figures_stand_beside_sets_that_are_the_papers(project: Path) -> None:
    for model in MODELS:
        path = Path("data/evaluation") / model / ROWS
        rows = pd.read_parquet(path)
        rows["dataset"] = rows["dataset"].replace({"demo_salient_test": "coift"})
        write_table(path, rows.to_dict("records"), ROW_SCHEMA)
    tree = configured()
    report.run(tree)
    assert ", published" not in PAGE.read_text()
    entry = replace(tree.datasets["demo_salient_test"], expect=ExpectConfig(point_miou=93.7))
    report.run(replace(tree, datasets={**tree.datasets, "coift": entry}))
    page = PAGE.read_text()
    assert "SAM ViT-H, published" in page
    assert '<td class="">93.7</td>' in page
    assert "tables 14, 17 of Liu" in page


def test_pages_stay_small(built: Built) -> None:
    assert (built.folder / PAGE).stat().st_size < 700_000  # eight masks with all their pictures, without the curves


def test_missing_evaluation_names_the_stage(project: Path) -> None:
    (Path("data/evaluation/large") / ROWS).unlink()
    with pytest.raises(MissingInput, match="dvc repro evaluate@large"):
        report.run(configured())


def test_evaluations_by_different_rules_are_not_compared(project: Path) -> None:
    path = Path("data/evaluation/large/protocol.json")
    write_json(path, json.loads(path.read_text()) | {"rounds": 9, "versions": {"torch": "3"}})
    said = r"base and .*large were made by different rules \(rounds: 3 and 9; versions: torch: 2 and 3\)"
    with pytest.raises(DataError, match=said):
        report.run(configured())
    assert not PAGE.exists()
