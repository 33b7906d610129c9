"""Stage evaluate in a project of its own: a few drawn scenes, random `tiny` weights, a stand-in for MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from sum.config import check_config
from sum.core.geometry import mask_to_box
from sum.core.metrics import iou
from sum.data.demo import make_scene
from sum.data.records import ImageRecord, MaskRecord, decode_mask, encode_mask, read_manifest, write_manifest
from sum.data.scores import MAP_SCHEMA, MAPS, PREDICTION_SCHEMA, PREDICTIONS, read_rows, read_table
from sum.errors import ConfigError, DataError, MissingInput, TrackingError
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import save_segmenter
from sum.models.refiner import Refiner, save_refiner
from sum.models.segmenter import Segmenter
from sum.settings import Config
from sum.stages import evaluate
from sum.storage import sha256_file

PARAMS = Path(__file__).parents[2] / "params.yaml"
OUT = Path("data/evaluation/base")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random base and a refinement module that differs from it."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = Segmenter(BACKBONES["tiny"].build(), backbone="tiny")
    refiner = Refiner(model)
    with torch.no_grad():
        refiner.core.sam.mask_decoder.mask_tokens.weight += 1
    origin = save_segmenter(folder / "base.safetensors", model, about={})
    save_refiner(folder / "refiner.safetensors", refiner, origin=origin, about={})
    return folder / "base.safetensors", folder / "refiner.safetensors"


def configured(weights: tuple[Path, Path], **changes: Any) -> Config:
    tree = yaml.safe_load(PARAMS.read_text())
    tree["model"]["checkpoint"] = str(weights[0])
    tree["device"] = "cpu"
    tree["evaluate"] |= {"rounds": 2, "report_rounds": [1, 2], "resamples": 20, **changes}
    tree["register"]["rounds"] = [1]
    return check_config(tree, source="params.yaml")


class FakeRun:
    """Takes what MLflow would be given."""

    def __init__(self) -> None:
        self.seen: list[tuple[Mapping[str, Mapping[str, float]], str]] = []
        self.away = False

    def log_evaluation(self, metrics: Mapping[str, Mapping[str, float]], *, digest: str) -> None:
        if self.away:
            raise TrackingError("nobody answers")
        self.seen.append((metrics, digest))


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeRun:
    run = FakeRun()
    monkeypatch.setattr(evaluate, "run_of_weights", lambda *_, **__: run)
    return run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow: FakeRun) -> Path:
    """Three pictures of two tasks, one of them not square, and one for training that must not be looked at."""
    monkeypatch.chdir(tmp_path)
    images, masks = [], []
    for number, (dataset, task, split) in enumerate(
        [
            ("things", "entity", "test"),
            ("things", "entity", "test"),
            ("pieces", "part", "test"),
            ("old", "part", "train"),
        ]
    ):
        scene = make_scene(number, side=64)
        height = 64 if number else 48
        path = Path("data/raw") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image[:height]).save(path)
        place = {"image_id": f"{dataset}/{number}", "dataset": dataset, "task": task, "split": split}
        size = {"height": height, "width": 64}
        images.append(ImageRecord(path=str(path), sha256=sha256_file(path), licence="MIT", **size, **place))
        truths = scene.entities if task == "entity" else scene.parts
        cut = [truth[:height] for truth in truths if truth[:height].any()][:3]
        for index, truth in enumerate(cut):
            box = dict(
                zip(("x0", "y0", "x1", "y1"), mask_to_box(torch.from_numpy(truth)[None])[0].tolist(), strict=True)
            )
            about = {"area": int(truth.sum()), "rle": encode_mask(truth), "category": "", "source": ""}
            masks.append(MaskRecord(mask_id=f"{dataset}/{number}#{index}", **place, **box, **about))
    write_manifest(Path("data/manifest"), images, masks)
    return tmp_path


def with_refiner(weights: tuple[Path, Path]) -> None:
    evaluate.REFINER.parent.mkdir(parents=True)
    evaluate.REFINER.write_bytes(weights[1].read_bytes())


def test_a_row_a_mask_round_and_output(project: Path, weights: tuple[Path, Path], mlflow: FakeRun) -> None:
    with_refiner(weights)
    assert evaluate.run(configured(weights), model="base") == OUT
    rows = read_rows(OUT, reader="test")
    assert len(rows) == 9 * (2 * 2 + 1)
    assert not rows.duplicated(["mask_id", "round", "output"]).any()
    assert set(rows["dataset"]) == {"things", "pieces"}
    assert set(rows["model"]) == {"base"}
    predictions = read_table(OUT / PREDICTIONS, PREDICTION_SCHEMA, reader="test", maker="test")
    assert len(predictions) == 9 * 2
    check_predictions(rows, predictions)
    check_maps()
    summary = json.loads((OUT / "summary.json").read_text())
    oracle = rows[(rows["output"] == "oracle") & (rows["round"] == 2)].groupby("dataset")["boundary_iou"].mean()
    assert summary["dataset"]["things"]["boundary_iou@2"]["mean"] == pytest.approx(oracle["things"], abs=1e-6)
    assert summary["overall"]["boundary_iou@2"]["mean"] == pytest.approx(oracle.mean(), abs=1e-6)
    assert (summary["masks"], summary["images"]) == (9, 3)
    protocol = json.loads((OUT / "protocol.json").read_text())
    assert protocol["rounds"] == 2
    assert "cut at 0" in protocol["choices"]["mask"]
    check_mlflow(mlflow, summary)
    assert not list(Path("work/evaluate").iterdir())


def check_predictions(rows: pd.DataFrame, predictions: pd.DataFrame) -> None:
    """What is stored is what was scored."""
    manifest = read_manifest(Path("data/manifest"), reader="test")
    sizes = {image.image_id: (image.height, image.width) for image in manifest.images}
    truths = {mask.mask_id: mask for mask in manifest.masks}
    scores = rows.set_index(["mask_id", "round", "output"])["iou"]
    for row in predictions.itertuples():
        truth = truths[row.mask_id]
        height, width = sizes[truth.image_id]
        pair = [decode_mask(rle, height=height, width=width) for rle in (row.rle, truth.rle)]
        assert iou(*pair) == pytest.approx(scores[row.mask_id, row.round, "oracle"])


def check_maps() -> None:
    maps = read_table(OUT / MAPS, MAP_SCHEMA, reader="test", maker="test")
    assert len(maps) == 9
    codes = [cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED) for png in maps["png"]]
    assert {code.shape for code in codes} == {(64, 64)}
    assert max(int(code.max()) for code in codes) > 0


def check_mlflow(mlflow: FakeRun, summary: Mapping[str, Any]) -> None:
    ((metrics, digest),) = mlflow.seen
    assert set(metrics) == {"all", "task-entity", "task-part", "things", "pieces"}
    assert metrics["things"]["iou_at_1"] == summary["dataset"]["things"]["iou@1"]["mean"]
    assert all(re.fullmatch(r"[\w\-. /:]+", f"{name}/{key}") for name, values in metrics.items() for key in values)
    assert digest == read_manifest(Path("data/manifest"), reader="test").select(split="test").fingerprint


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    project: Path, weights: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "SHARD", 1)
    played: list[str] = []
    original = evaluate.Bench.image

    def image(self: evaluate.Bench, record: ImageRecord, masks: list[MaskRecord]) -> evaluate.Records:
        played.append(record.image_id)
        if len(played) == 2:
            raise KeyboardInterrupt
        return original(self, record, masks)

    monkeypatch.setattr(evaluate.Bench, "image", image)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(configured(weights), model="base")
    assert not OUT.exists()
    evaluate.run(configured(weights), model="base")
    assert played == ["pieces/2", "things/0", "things/0", "things/1"]
    resumed = {path.name: path.read_bytes() for path in OUT.iterdir()}
    evaluate.run(configured(weights), model="base")
    assert {path.name: path.read_bytes() for path in OUT.iterdir()} == resumed
    assert set(resumed) == {"rows.parquet", "predictions.parquet", "summary.json", "protocol.json"}


def test_mlflow_away_costs_nothing_but_the_message(
    project: Path, weights: tuple[Path, Path], mlflow: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.away = True
    with pytest.raises(TrackingError):
        evaluate.run(configured(weights), model="base")
    assert (OUT / "rows.parquet").is_file()
    mlflow.away = False
    monkeypatch.setattr(evaluate.Bench, "image", lambda *_: pytest.fail("played again"))
    evaluate.run(configured(weights), model="base")
    assert len(mlflow.seen) == 1


def test_a_tuned_model_is_read_from_its_folder(project: Path, weights: tuple[Path, Path]) -> None:
    with pytest.raises(MissingInput, match=r"dvc repro finetune@small"):
        evaluate.run(configured(weights), model="small")
    tuned = Path("data/models/small/model.safetensors")
    tuned.parent.mkdir(parents=True)
    tuned.write_bytes(weights[0].read_bytes())
    with_refiner(weights)
    folder = evaluate.run(configured(weights, rounds=1, report_rounds=[1]), model="small")
    assert set(read_rows(folder, reader="test")["model"]) == {"small"}
    assert not (folder / MAPS).exists()


def test_changed_image_is_named(project: Path, weights: tuple[Path, Path]) -> None:
    Image.new("RGB", (20, 30)).save("data/raw/1.png")
    with pytest.raises(DataError, match=r"data/raw/1.png is not what it was at ingest .*the file has changed"):
        evaluate.run(configured(weights), model="base")


def test_nothing_to_evaluate_on(project: Path, weights: tuple[Path, Path]) -> None:
    manifest = read_manifest(Path("data/manifest"), reader="test").select(split="train")
    write_manifest(Path("data/manifest"), manifest.images, manifest.masks)
    with pytest.raises(DataError, match="no mask of split 'test'"):
        evaluate.run(configured(weights), model="base")


def test_report_rounds_beyond_the_last(project: Path, weights: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=r"evaluate.report_rounds must lie in 1..2 .*got \[1, 3\]"):
        evaluate.run(configured(weights, report_rounds=[1, 3]), model="base")
