"""Stage evaluate in a project of its own: a few drawn scenes, random `tiny` weights, a stand-in for MLflow."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from sum import evaluation
from sum.config import load_config
from sum.core.clicks import farthest_point
from sum.core.first_prompts import FIRST_PROMPTS, boundary_point, first_draw, random_point
from sum.core.metrics import clicks_needed, iou
from sum.data.records import ImageRecord, MaskRecord, decode_mask, read_manifest, write_manifest
from sum.data.score_tables import (
    EVERYTHING_SCHEMA,
    FIDELITY,
    FIDELITY_SCHEMA,
    GENERATED,
    MAP_SCHEMA,
    MAPS,
    PREDICTION_SCHEMA,
    PREDICTIONS,
    of_game,
    read_rows,
    read_table,
)
from sum.errors import ConfigError, DataError, MissingInput, TrackingError
from sum.evaluation import Bench, Records
from sum.models.checkpoint import load_segmenter
from sum.models.generator import generate
from sum.models.refiner import load_refiner, save_refiner
from sum.models.segmenter import TASKS
from sum.stages import evaluate
from sum.storage import sha256_file
from tests.bench_world import BARE, PARAMS, configured, make_manifest, make_weights, tuned_weights

OUT = Path("data/evaluation/base")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_weights(tmp_path_factory.mktemp("weights"))


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
    monkeypatch.chdir(tmp_path)
    make_manifest()
    return tmp_path


def with_refiner(weights: tuple[Path, Path]) -> None:
    evaluate.REFINER.parent.mkdir(parents=True)
    evaluate.REFINER.write_bytes(weights[1].read_bytes())


def test_a_row_a_mask_round_and_output(project: Path, weights: tuple[Path, Path], mlflow: FakeRun) -> None:
    with_refiner(weights)
    assert evaluate.run(configured(weights), model="base") == OUT
    rows = read_rows(OUT, reader="test")
    assert len(rows) == 9 * (3 * (2 * 2 + 1) + 1)
    assert not rows.duplicated(["mask_id", "prompt", "task_prompt", "round", "output"]).any()
    played = rows.groupby(["task", "prompt", "task_prompt"]).size().to_dict()
    assert {key: count // 5 for key, count in played.items() if key[1] != "everything"} == {
        (task, prompt, words): {"entity": 6, "part": 3}[task]
        for task in ("entity", "part")
        for prompt, words in (("point", task), ("point", "unspecified"), ("box", task))
    }
    assert set(rows["dataset"]) == {"things", "pieces"}
    assert set(rows["model"]) == {"base"}
    predictions = read_table(OUT / PREDICTIONS, PREDICTION_SCHEMA, reader="test", maker="test")
    assert len(predictions) == 9 * 2
    rows = of_game(rows, prompt="point")
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
    check_clicks(rows, summary)
    check_mlflow(mlflow, summary)
    check_times(mlflow)


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


def check_clicks(rows: pd.DataFrame, summary: Mapping[str, Any]) -> None:
    """NoC and NoF of `things`, mask by mask."""
    mine = rows[(rows["output"] == "oracle") & (rows["dataset"] == "things")].sort_values("round")
    needed = [clicks_needed(part.tolist(), 0.80) for _, part in mine.groupby("mask_id")["iou"]]
    found = summary["dataset"]["things"]
    assert found["noc@80"]["mean"] == pytest.approx(np.mean([count or 2 for count in needed]), abs=1e-6)
    assert found["nof@80"]["count"] == needed.count(None)
    assert 1 <= found["noc@95"]["low"] <= found["noc@95"]["mean"] <= found["noc@95"]["high"] <= 2
    parts = [summary["dataset"][name]["nof@95"]["count"] for name in ("things", "pieces")]
    assert summary["overall"]["nof@95"]["count"] == sum(parts)


def check_times(mlflow: FakeRun) -> None:
    found = json.loads(Path("data/timing/base.json").read_text())
    assert (found["device"], found["images"]) == ("cpu", 3)
    assert found["mask_rounds"] >= 9 * 2 * 2  # the first round's two calls; a mask that is perfect needs no second
    for step in ("encode", "decode", "everything"):
        assert 0 < found[f"{step}_ms_median"] <= found[f"{step}_ms_p95"]
        assert mlflow.seen[0][0]["all"][f"{step}_ms_p95"] == found[f"{step}_ms_p95"]


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
    assert metrics["task-part"]["box_iou_at_1"] == summary["games"]["box"]["task"]["part"]["iou@1"]["mean"]
    assert metrics["all"]["nof_at_90"] == summary["overall"]["nof@90"]["count"]
    assert all(re.fullmatch(r"[\w\-. /:]+", f"{name}/{key}") for name, values in metrics.items() for key in values)
    assert digest == read_manifest(Path("data/manifest"), reader="test").select(split="test").fingerprint


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    project: Path, weights: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "SHARD", 1)  # with one image a shard there is one thread's work at a time
    played: list[str] = []
    original = Bench.image

    def image(self: Bench, record: ImageRecord, masks: Sequence[MaskRecord]) -> Records:
        played.append(record.image_id)
        if len(played) == 2:
            raise KeyboardInterrupt
        return original(self, record, masks)

    monkeypatch.setattr(Bench, "image", image)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(configured(weights), model="base")
    assert not OUT.exists()
    evaluate.run(configured(weights), model="base")
    assert played == ["pieces/2", "things/0", "things/0", "things/1"]
    resumed = {path.name: path.read_bytes() for path in OUT.iterdir()}
    evaluate.run(configured(weights), model="base")
    assert {path.name: path.read_bytes() for path in OUT.iterdir()} == resumed
    tables = {"rows.parquet", "predictions.parquet", "fidelity.parquet", "everything.parquet"}
    assert set(resumed) == {*tables, "summary.json", "figures.json", "curves.csv", "protocol.json"}


def test_mlflow_away_costs_nothing_but_the_message(
    project: Path, weights: tuple[Path, Path], mlflow: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.away = True
    with pytest.raises(TrackingError):
        evaluate.run(configured(weights), model="base")
    assert (OUT / "rows.parquet").is_file()
    mlflow.away = False
    monkeypatch.setattr(Bench, "image", lambda *_: pytest.fail("played again"))
    evaluate.run(configured(weights), model="base")
    assert len(mlflow.seen) == 1


def test_a_tuned_model_is_read_from_its_folder(project: Path, weights: tuple[Path, Path]) -> None:
    with pytest.raises(MissingInput, match=r"dvc repro finetune@small"):
        evaluate.run(configured(weights), model="small")
    tuned = Path("data/models/small/model.safetensors")
    tuned.parent.mkdir(parents=True)
    tuned.write_bytes(weights[0].read_bytes())
    with_refiner(weights)
    folder = evaluate.run(configured(weights, rounds=1, report_rounds=[1], **BARE), model="small")
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


def first_clicks(rows: pd.DataFrame) -> dict[str, tuple[int, int, int] | None]:
    """Mask -> x, y, label of the first round, the same for all outputs; None for a box."""
    first = rows[rows["round"] == 1][["mask_id", "click_x", "click_y", "click_label"]]
    assert (first.groupby("mask_id").nunique(dropna=False) == 1).all(axis=None)
    return {
        str(mask_id): None if np.isnan(click[0]) else tuple(int(value) for value in click)
        for mask_id, *click in first.drop_duplicates().itertuples(index=False)
    }


@pytest.mark.parametrize("kind", ["point", "box", "boundary", "random"])
def test_every_first_prompt_through_the_stage(kind: str, project: Path, weights: tuple[Path, Path]) -> None:
    config = configured(weights, prompts=[kind], prompt_seed=5, **BARE)
    folder = evaluate.run(config, model="base")
    rows = read_rows(folder, reader="test")
    manifest = read_manifest(Path("data/manifest"), reader="test").select(split="test")
    sizes = {image.image_id: (image.height, image.width) for image in manifest.images}
    want: dict[str, tuple[int, int, int] | None] = {}
    for mask in manifest.masks:
        height, width = sizes[mask.image_id]
        truth = decode_mask(mask.rle, height=height, width=width)
        point = {
            "point": lambda truth, _: farthest_point(truth),
            "box": lambda *_: None,
            "boundary": lambda truth, _: boundary_point(truth),
            "random": lambda truth, name: random_point(truth, first_draw(5, name)),
        }[kind](truth, mask.mask_id)
        want[mask.mask_id] = point and (*point, 1)
    assert first_clicks(rows) == want
    assert rows[rows["round"] == 2]["click_x"].notna().any()  # a box, too, is followed by clicks
    protocol = json.loads((folder / "protocol.json").read_text())
    assert (protocol["prompts"], protocol["prompt_seed"]) == ([kind], 5)
    assert protocol["choices"][f"first prompt {kind}"] == FIRST_PROMPTS[kind]
    summary = json.loads((folder / "summary.json").read_text())
    assert 1 <= summary["overall"]["noc@80"]["mean"] <= 2  # of two rounds, a box being the first


@pytest.mark.slow
def test_random_first_clicks_hang_on_no_batch(project: Path, weights: tuple[Path, Path]) -> None:
    found = []
    for batch_masks in (1, 2, 64):
        folder = evaluate.run(configured(weights, prompts=["random"], batch_masks=batch_masks, **BARE), model="base")
        found.append(first_clicks(read_rows(folder, reader="test")))
    assert found[0] == found[1] == found[2]
    folder = evaluate.run(configured(weights, prompts=["random"], prompt_seed=1, **BARE), model="base")
    assert first_clicks(read_rows(folder, reader="test")) != found[0]


def test_two_runs_of_random_clicks_give_the_same_bytes(project: Path, weights: tuple[Path, Path]) -> None:
    contents = []
    for _ in range(2):
        folder = evaluate.run(configured(weights, prompts=["random"], **BARE), model="base")
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("rounds", [0, 10])
def test_rounds_are_one_to_nine(rounds: int, weights: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match=f"evaluate: rounds must lie in 1..9, got {rounds}"):
        configured(weights, rounds=rounds)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 9])
def test_one_round_and_nine(rounds: int, project: Path, weights: tuple[Path, Path]) -> None:
    folder = evaluate.run(configured(weights, rounds=rounds, report_rounds=[1, rounds], **BARE), model="base")
    rows = read_rows(folder, reader="test")
    assert sorted(set(rows["round"])) == list(range(1, rounds + 1))
    assert json.loads((folder / "summary.json").read_text())["overall"]["noc@80"]["high"] <= rounds


def test_the_command_line_sets_the_draw() -> None:
    """params.yaml leaves `prompt_seed` out."""
    found = load_config(["evaluate.prompts=[random]", "evaluate.prompt_seed=3"], root=PARAMS.parent).evaluate
    assert (found.prompts, found.prompt_seed) == (["random"], 3)
    with pytest.raises(ConfigError, match="prompt_seed must be at least 0"):
        load_config(["evaluate.prompt_seed=-1"], root=PARAMS.parent)


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_workers_change_no_byte(workers: int, project: Path, weights: tuple[Path, Path]) -> None:
    with_refiner(weights)
    folder = evaluate.run(configured(weights), model="base")
    usual = {path.name: path.read_bytes() for path in folder.iterdir()}
    evaluate.run(configured(weights, workers=workers), model="base")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == usual
    assert json.loads(Path("data/timing/base.json").read_text())["workers"] == workers


def test_an_error_in_a_worker_is_the_stage_s(
    project: Path, weights: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Bench, record: ImageRecord, masks: Sequence[MaskRecord]) -> Records:
        raise DataError(f"{record.image_id} is bad")

    monkeypatch.setattr(Bench, "image", fail)
    with pytest.raises(DataError, match="pieces/2 is bad"):
        evaluate.run(configured(weights), model="base")
    assert not OUT.exists()


@pytest.mark.slow
def test_unspecified_is_the_game_without_task_prompts(project: Path, weights: tuple[Path, Path]) -> None:
    """The same as the own game of weights whose task prompts were set to zero; of these it is the same game."""
    figures = ["iou", "boundary_iou", "predicted_iou", "click_x", "click_y", "click_label"]
    games = {}
    for prompt in (0.5, 0.0):
        tuned_weights(weights, Path("data/models/small/model.safetensors"), prompt=prompt)
        rows = read_rows(evaluate.run(configured(weights), model="small"), reader="test")
        own, without = (of_game(rows, prompt="point", unspecified=asked) for asked in (False, True))
        assert set(without["task_prompt"]) == {"unspecified"}
        assert (own["task_prompt"] == own["task"]).all()
        assert own["mask_id"].tolist() == without["mask_id"].tolist()
        games[prompt] = own[figures].to_numpy(), without[figures].to_numpy()
    np.testing.assert_array_equal(games[0.5][1], games[0.0][0])
    np.testing.assert_array_equal(games[0.0][1], games[0.0][0])
    assert (games[0.5][0] != games[0.5][1]).any()


def test_everything_is_the_generator_s_best(project: Path, weights: tuple[Path, Path]) -> None:
    folder = evaluate.run(configured(weights), model="base")
    rows = of_game(read_rows(folder, reader="test"), prompt="everything").set_index("mask_id")
    counts = read_table(folder / GENERATED, EVERYTHING_SCHEMA, reader="test", maker="test").set_index("image_id")
    settings = evaluate.suite_of(configured(weights)).everything
    assert settings is not None
    model = load_segmenter(weights[0], backbone="tiny").eval()
    manifest = read_manifest(Path("data/manifest"), reader="test").select(split="test")
    for image in manifest.images:
        made = generate(model, np.array(Image.open(image.path)), settings=settings)
        assert counts.loc[image.image_id, "generated"] == len(made) > 0
        masks = [decode_mask(mask.rle, height=image.height, width=image.width) for mask in made]
        for mask in manifest.masks_of()[image.image_id]:
            truth = decode_mask(mask.rle, height=image.height, width=image.width)
            assert rows.loc[mask.mask_id, "iou"] == pytest.approx(max(iou(found, truth) for found in masks))
            assert rows.loc[mask.mask_id, "area"] == truth.sum()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["generated"]["overall"] == pytest.approx(counts["generated"].mean(), abs=1e-6)
    means = rows.groupby("dataset")["iou"].mean()
    assert summary["games"]["everything"]["overall"]["iou@1"]["mean"] == pytest.approx(means.mean(), abs=1e-6)


def test_shares_of_checks_passed_are_means_over_masks_then_sets(project: Path, weights: tuple[Path, Path]) -> None:
    folder = evaluate.run(configured(weights), model="base")
    rows = read_table(folder / FIDELITY, FIDELITY_SCHEMA, reader="test", maker="test")
    assert set(rows["check"]) >= {"background", "swap"}
    summary = json.loads((folder / "summary.json").read_text())
    for check, part in rows.groupby("check"):
        of_sets = part.groupby("dataset")["passed"].mean()
        found = summary["fidelity"][check]["overall"]
        assert found["mean"] == pytest.approx(of_sets.mean(), abs=1e-6)
        assert found["masks"] == len(part)
        assert found["low"] <= found["mean"] <= found["high"]


def test_checks_are_asked_with_the_task_prompt_of_the_data_set(
    project: Path, weights: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = evaluation.examine

    def noted(*arguments: Any, task: int, **options: Any) -> Any:
        asked.append(task)
        return original(*arguments, task=task, **options)

    monkeypatch.setattr(evaluation, "examine", noted)
    evaluate.run(configured(weights, workers=1), model="base")
    assert sorted(asked) == sorted([TASKS["part"], TASKS["entity"], TASKS["entity"]])


@pytest.mark.slow
def test_another_refinement_module_makes_other_maps(project: Path, weights: tuple[Path, Path]) -> None:
    """What was played with the module of before is not gone on with."""
    with_refiner(weights)
    folder = evaluate.run(configured(weights, **BARE), model="base")
    before = (folder / MAPS).read_bytes()
    base = load_segmenter(weights[0], backbone="tiny")
    origin = sha256_file(weights[0])
    refiner = load_refiner(weights[1], base=base, origin=origin)
    with torch.no_grad():
        refiner.core.sam.mask_decoder.mask_tokens.weight -= 3
    save_refiner(evaluate.REFINER, refiner, origin=origin, about={})
    evaluate.run(configured(weights, **BARE), model="base")
    assert (folder / MAPS).read_bytes() != before


def test_parts_that_are_off_leave_no_rows(project: Path, weights: tuple[Path, Path]) -> None:
    folder = evaluate.run(configured(weights, prompts=["box"], **BARE), model="base")
    assert {path.name for path in folder.iterdir()} == {
        "rows.parquet",
        "predictions.parquet",
        "summary.json",
        "figures.json",
        "curves.csv",
        "protocol.json",
    }
    rows = read_rows(folder, reader="test")
    assert set(zip(rows["prompt"], rows["task_prompt"], strict=True)) == {("box", "entity"), ("box", "part")}
    with pytest.raises(DataError, match=r"no game with first prompt 'point' .* there are box"):
        of_game(rows, prompt="point")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["games"] == {}
    assert not {"fidelity", "generated"} & set(summary)


@pytest.mark.parametrize("prompts", [[], ["point", "point"]])
def test_every_first_prompt_is_named_once(prompts: list[str], weights: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="prompts must name at least one first prompt, each once"):
        configured(weights, prompts=prompts)


def one_image_shards(weights: tuple[Path, Path]) -> dict[str, str]:
    """Write params.yaml and small_shards.py, which evaluates the base a shard an image; returns its environment."""
    tree = yaml.safe_load(PARAMS.read_text())
    wanted = asdict(configured(weights))
    tree |= {section: wanted[section] for section in ("device", "model", "evaluate", "pseudo_label", "register")}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    lines = ["import sys", "from sum.cli import main", "from sum.stages import evaluate", "evaluate.SHARD = 1"]
    Path("small_shards.py").write_text("\n".join([*lines, "sys.exit(main(['evaluate', 'base']))"]))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PARAMS.parent)}


def evaluated(start: list[str], environment: dict[str, str]) -> dict[str, bytes]:
    """Run small_shards.py to its end; file name -> what it wrote."""
    command = [sys.executable, *start, "small_shards.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: path.read_bytes() for path in OUT.iterdir()}


@pytest.mark.slow
def test_one_process_three_and_a_killed_one_give_the_same_bytes(project: Path, weights: tuple[Path, Path]) -> None:
    """Three shards of an image each, so that each process of torchrun can have one; then SIGKILL after the first."""
    environment = one_image_shards(weights)
    alone = evaluated([], environment)
    assert {"rows.parquet", "predictions.parquet", "fidelity.parquet", "everything.parquet"} < set(alone)
    work = Path("work/evaluate")
    shutil.rmtree(work)  # or the others would find it all played
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    assert evaluated(together, environment) == alone
    shutil.rmtree(work)
    shutil.rmtree(OUT)
    process = subprocess.Popen([sys.executable, "small_shards.py"], env=environment)
    while not (made := list(work.glob("*/*.zip"))):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not OUT.exists()
    content = made[0].read_bytes()
    made[0].write_bytes(content[: len(content) // 2])  # as a disk that lost power leaves it
    assert evaluated([], environment) == alone
