"""`python -m sum plan evaluate` in a project of its own: counts, verdict, and the real evaluation's time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sum.cli import main
from sum.commands import plan_evaluation
from sum.commands.plan_evaluation import draw, plan
from sum.config import check_config
from sum.data.records import write_manifest
from sum.errors import ConfigError
from sum.evaluation_time import Estimate
from sum.models import interact
from sum.models.checkpoint import load_segmenter, save_segmenter
from sum.settings import Config
from sum.stages import evaluate

PROJECT = Path(__file__).parents[2]
WEIGHTS = PROJECT / "sum/models/weights/tiny.safetensors"
SET = {"kind": "raster", "root": "nowhere", "split": "test", "task": "salient", "licence": "MIT"}
POINTS = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_thresh": 0.0}


def tree_of(**changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((PROJECT / "params.yaml").read_text())
    tree["model"]["checkpoint"] = str(WEIGHTS)
    tree["device"] = "cpu"
    tree["pseudo_label"] |= POINTS
    tree["evaluate"] |= {"rounds": 2, "report_rounds": [1], "resamples": 20, **changes}
    tree["register"]["rounds"] = [1]
    return tree


def configured(**changes: Any) -> Config:
    return check_config(tree_of(**changes), source="params.yaml")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(count: int, *, side: int = 96) -> int:
    """A manifest of so many test photos with 1, 2, 3, 4, 1, ... masks, and one to train on; the number of masks."""
    folder = Path("data/raw")
    folder.mkdir(parents=True)
    pairs = [draw(folder, number, side=side, masks=1 + number % 4) for number in range(count + 1)]
    image, masks = pairs.pop()
    taught = replace(image, split="train"), [replace(mask, split="train") for mask in masks]
    everyone = [*pairs, taught]
    write_manifest(
        Path("data/manifest"), [pair[0] for pair in everyone], [mask for pair in everyone for mask in pair[1]]
    )
    return len([mask for _, masks in pairs for mask in masks])


def test_images_and_masks_are_counted_in_the_manifest(project: Path) -> None:
    masks = drawn(6)
    assert masks == 1 + 2 + 3 + 4 + 1 + 2
    (line,) = plan(configured(prompts=["box", "point", "random"]), limit=0)
    assert "tiny at 128 px, 6 images with 13 masks (data/manifest)" in line
    assert "box (TASK), box (unspecified), point (TASK), random (TASK) of 2 rounds" in line
    assert f"at most {13 * 4 * 2 * 2} mask-rounds, everything, fidelity" in line
    (line,) = plan(configured(unspecified=False, everything=False, fidelity=False), limit=0)
    assert line.endswith(f"at most {13 * 2 * 2 * 2} mask-rounds")


def test_without_a_manifest_they_are_those_expected(project: Path) -> None:
    tree = tree_of()
    tree["datasets"] = {
        "one": {**SET, "expect": {"images": 30, "masks": 45}},
        "two": {**SET, "expect": {"images": 10}},
        "three": {**SET, "expect": {"point_miou": 50.0}},
        "taught": {**SET, "split": "train", "expect": {"images": 1000, "masks": 1000}},
    }
    tree["budgets"] = {}
    config = check_config(tree, source="params.yaml")
    (line,) = plan(config, masks=7, limit=0)
    assert f"40 images with {45 + 70} masks" in line
    assert "`expect` of 2 of 3 test sets; 7 masks an image supposed for 1 of them, --masks; drawn at 1500 px" in line
    told = plan(config, side=64, masks=7, limit=0.01)
    assert "measured: 2 masks of 1 image" in told[1]  # 3 masks an image, of which there is time for 2
    assert "of one image, so nobody knows how far others differ" in told[-1] + told[-2]
    for sizes in ({"side": 20}, {"masks": 0}):
        with pytest.raises(ConfigError, match="--side wants at least 48 px and --masks at least 1, got"):
            plan(config, limit=0, **sizes)
    tree["datasets"] = {"three": tree["datasets"]["three"]}
    with pytest.raises(ConfigError, match=r"no test set of params.yaml has `expect: \{images: ...\}`"):
        plan(check_config(tree, source="params.yaml"), limit=0)


def test_the_paper_is_planned_from_its_counts(project: Path) -> None:
    config = check_config(yaml.safe_load((PROJECT / "examples/paper.yaml").read_text()), source="params.yaml")
    (line,) = plan(config, limit=0)
    assert "vit_h at 1024 px" in line
    assert "`expect` of 19 of 22 test sets" in line


def test_no_weights_are_needed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(2, side=64)
    tree = tree_of()
    tree["model"]["checkpoint"] = "checkpoints/none.pth"
    told = plan(check_config(tree, source="params.yaml"), limit=5)
    assert "random weights (checkpoints/none.pth is not here)" in told[1]
    assert "time: " in "\n".join(told)


def test_the_verdict_hangs_on_clicks_and_scores(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only decoder and boundary IoU move: so many seconds of each, and so many workers."""
    drawn(3, side=64)
    now = [0.0]

    def taking(seconds: float, call: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: object, **options: object) -> object:
            now[0] += seconds
            return call(*args, **options)

        return slow

    config = configured(everything=False, fidelity=False, unspecified=False, prompts=["point"], workers=2)
    score = interact.boundary_iou
    monkeypatch.setattr(plan_evaluation.Segmenter, "decode", taking(1.0, plan_evaluation.Segmenter.decode))
    monkeypatch.setattr(interact, "boundary_iou", taking(0.01, score))
    told = "\n".join(plan(config, limit=1e9, clock=lambda: now[0]))
    assert "measured: 6 masks of 3 images" in told
    assert "bound by the model: clicks and scores take 2% of its time, workers 2 do them beside it" in told
    monkeypatch.setattr(interact, "boundary_iou", taking(1.6, score))
    told = "\n".join(plan(config, limit=1e9, clock=lambda: now[0]))
    calls, scores = 3 * 2 * 2, 6 * (3 + 2)  # a call an image, round and output; a score a mask, round and output
    share = 1.6 * scores / calls
    assert f"clicks and scores: they take {share:.0%} of the model's time, evaluate.workers=5 would do" in told
    assert 3 < share <= 4


def test_words_that_do_not_go_together_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(tree_of()))
    drawn(2, side=64)
    assert main(["plan", "evaluat"]) == 2
    assert "wants finetune, evaluate or none of them" in capsys.readouterr().err
    assert main(["plan", "evaluate", "--card", "80"]) == 2
    assert "--card is of fine-tuning's memory" in " ".join(capsys.readouterr().err.split())
    for words in (["--side", "20"], ["--masks", "0"]):  # with a manifest nothing is drawn
        assert main(["plan", "evaluate", "--no-time", *words]) == 0
    capsys.readouterr()
    assert main(["plan", "evaluate", "evaluate.rounds=3", "--no-time"]) == 0
    assert "of 3 rounds" in capsys.readouterr().out


@pytest.mark.slow
def test_the_time_of_a_real_evaluation_is_predicted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of the processor with one thread and one worker: other work on the machine does not count."""
    drawn(40, side=128)
    model = load_segmenter(WEIGHTS, backbone="tiny")
    model.task_prompt.data += plan_evaluation.TINY_TASK  # so that no game is a copy
    save_segmenter(Path("tuned.safetensors"), model, about={})
    tree = tree_of(rounds=6, workers=1)
    tree["pseudo_label"] |= {"points_per_side": 8, "pred_iou_thresh": 0.3, "stability_thresh": 0.3}
    tree["model"]["checkpoint"] = "tuned.safetensors"
    config = check_config(tree, source="params.yaml")
    monkeypatch.setattr(evaluate, "_log_to_mlflow", lambda *_, **__: None)
    found: list[Estimate] = []
    keep = plan_evaluation.estimate
    monkeypatch.setattr(plan_evaluation, "estimate", lambda *a, **o: found.append(keep(*a, **o)) or found[-1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        told = plan(config, limit=8, clock=time.process_time)
        began = time.process_time()
        evaluate.run(config, model="base")
        took = time.process_time() - began
    finally:
        torch.set_num_threads(threads)
    predicted = found[0].model + found[0].beside
    print(f"\npredicted {predicted:.1f} s, took {took:.1f} s", *told, sep="\n")  # noqa: T201
    assert re.search(r"of (?!40)\d+ images", told[1])  # not all of them
    assert 1 / 1.3 < predicted / took < 1.3
