"""Stage refine on a few demo scenes and steps: what it leaves, and that every figure comes from its tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

from sum.config import check_config
from sum.core.uncertainty import OTHERS
from sum.data.refined import read_tables
from sum.data.verdicts import manifest_fingerprint
from sum.errors import ConfigError
from sum.settings import Config
from sum.stages import demo, ingest, refine
from sum.storage import write_json

PROJECT = Path(__file__).parents[2]
OUT = Path("data/refiner")


def configured(*discrepancy: str, **optim: float) -> Config:
    tree = yaml.safe_load((PROJECT / "params.yaml").read_text())
    tree["device"] = "cpu"
    tree["model"]["checkpoint"] = str(PROJECT / "sum/models/weights/tiny.safetensors")
    tree["demo"]["scenes"] = dict.fromkeys(tree["demo"]["scenes"], 0) | {
        "salient_train": 6,
        "entity_train": 6,
        "unlabelled": 1,
    }
    names = ("demo_salient", "demo_entity")
    tree["datasets"] = {name: entry for name, entry in tree["datasets"].items() if name in (*names, "demo_unlabelled")}
    tree["budgets"] = {"small": {"human": [*names], "unlabelled": ["demo_unlabelled"]}}
    small = {"steps": 3, "warmup_steps": 0, "decay_steps": 0, "images_per_batch": 2, "masks_per_image": 2}
    tree["refine"]["optim"] |= {**small, "checkpoint_every": 1, **optim}
    tree["refine"] |= {"holdout_share": 0.5, "resamples": 20, "pictures": 3, "discrepancy": [*discrepancy]}
    return check_config(tree, source="params.yaml")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    config = configured()
    demo.run(config)
    ingest.run(config)
    about = manifest_fingerprint(Path("data/manifest"))
    write_json(Path("data/validation/report.json"), {"success": True, "manifest": about})
    return tmp_path


def test_report_is_a_group_by_and_the_discrepancies_are_made_when_asked_for(project: Path) -> None:
    refine.run(configured())
    assert not [name for name in OTHERS.values() if (OUT / f"{name}.safetensors").exists()]
    plain = load_file(OUT / "model.safetensors")
    report = json.loads((OUT / "report.json").read_text())
    masks, pixels = read_tables(OUT, reader="test")
    pairs = masks[masks["iou_sam"] >= 0.7]
    assert report["held_out_masks"] == len(pairs) > 0
    assert report["all"]["boundary_refined"]["mean"] == pytest.approx(pairs["boundary_refined"].mean(), abs=1e-5)
    counts = pixels[
        pixels["mask_id"].isin(pairs["mask_id"]) & (pixels["region"] == "image") & (pixels["method"] == "confidence")
    ]
    wrong, right = (np.stack(counts[name].to_list())[:, :51].sum() for name in ("wrong", "right"))
    assert report["uncertainty confidence"]["certain_accuracy_0.8"] == pytest.approx(right / (wrong + right), abs=1e-5)
    told = json.loads((OUT / "pictures.json").read_text())
    assert told
    assert {path.name for path in (OUT / "pictures").iterdir()} == {entry["file"] for entry in told}
    assert (OUT / "risk-coverage-image.svg").read_text().startswith("<svg xmlns=")

    refine.run(configured("teacher", "decoders"))
    student, decoder, again = (load_file(OUT / f"{name}.safetensors") for name in ("student", "decoder", "model"))
    name = "mask_decoder.mask_tokens.weight"
    assert all((again[key] == value).all() for key, value in plain.items())  # what is compared is left as it was
    assert (student[name] != plain[name]).any()  # the last weights, beside their average
    assert (decoder[name] != student[name]).any()  # another order of the data
    methods = set(pd.read_csv(OUT / "evidence.csv", keep_default_na=False)["method"])
    assert methods >= {"discrepancy_teacher", "discrepancy_decoders", "refinement", "confidence", "none"}


def test_without_a_held_out_mask_that_passes_there_is_a_report_and_no_figure(project: Path) -> None:
    tree = configured()
    object.__setattr__(tree.refine, "pred_iou_thresh", 9.0)  # nothing is predicted to be so good
    refine.run(tree)
    report = json.loads((OUT / "report.json").read_text())
    assert report["held_out_masks"] == report["held_out_filtered"] == 0
    assert not (OUT / "evidence.csv").exists()


def test_a_method_wants_its_refiner_in_the_settings() -> None:
    tree = yaml.safe_load((PROJECT / "params.yaml").read_text())
    for made in ("teacher", "decoders"):
        tree["uncertainty"]["method"], tree["refine"]["discrepancy"] = f"discrepancy_{made}", []
        with pytest.raises(ConfigError, match=rf"discrepancy_{made}: refine\.discrepancy must name {made}"):
            check_config(tree, source="params.yaml")
        tree["refine"]["discrepancy"] = [made]
        check_config(tree, source="params.yaml")
    tree["refine"] |= {"discrepancy": ["teacher"]}
    tree["refine"]["optim"]["ema"] = 0.0
    with pytest.raises(ConfigError, match=r"optim\.ema must be above 0"):
        check_config(tree, source="params.yaml")


@pytest.mark.slow  # imports torch once more
def test_the_stage_needs_none_of_the_platform() -> None:
    code = "import sys\nfrom sum.stages import refine\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert not {"dvc", "mlflow", "prefect", "great_expectations"} & set(done.stdout.split())
