"""`python -m sum ablate` with a stand-in for its children: what is made, skipped, refused, told. No training here."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sum.claims import FolderClaims
from sum.cli import main
from sum.commands import ablate, ablate_inputs, ablate_runner
from sum.commands.ablate_inputs import shared_paths
from sum.config import load_config
from sum.data import ablation_page
from sum.data.score_tables import ROW_SCHEMA, ROWS, write_table
from sum.mlflow_client import absolute
from sum.storage import write_json
from tests.ablation_world import make_project

GRID = "ablation.grid=[{methods:[human_only,vanilla],archs:[full]}]"
CALL = ["ablate", GRID, "ablation.budgets=[small]"]
NAMES = {f"small-{method}-full-{seed}" for method in ("human_only", "vanilla") for seed in (0, 1)}


class Children:
    """In place of processes: writes the files that the two stages would, figures made up of the run's name."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.environments: dict[str, Mapping[str, str]] = {}
        self.codes: dict[tuple[str, str], list[int]] = {}

    def __call__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str], told: Path) -> int:
        command, model, *_ = words
        self.calls.append((folder.name, command))
        self.environments[folder.name] = environment
        codes = self.codes.get((folder.name, command), [])
        code = codes.pop(0) if codes else 0
        if code:
            told.write_text(f"starting\nerror: made to fail with {code}\n")
        elif command == "finetune":
            write_json(folder / f"data/models/{model}/summary.json", {"steps": 3, "trained": 1000})
            write_json(folder / f"data/models/{model}/run.json", {"seconds": 6.0, "peak_memory_mb": 100.0})
        else:
            evaluate(folder / "data/evaluation" / model)
        return code


def evaluate(folder: Path) -> None:
    """Rows of three images with two masks each, two rounds; of the base and of every run others."""
    chance = np.random.default_rng(sum_of(folder.parts[-4]))
    rows = [
        {
            "model": folder.name,
            "dataset": "test",
            "task": "entity",
            "prompt": "point",
            "task_prompt": "entity",
            "image_id": f"test/{image}",
            "mask_id": f"test/{image}#{mask}",
            "area": 9,
            "output": output,
            "round": number,
            "iou": chance.uniform(),
            "boundary_iou": chance.uniform(),
            "predicted_iou": 0.5,
        }
        for image in range(3)
        for mask in range(2)
        for number in (1, 2)
        for output in ("oracle", "single")
    ]
    folder.mkdir(parents=True)
    write_table(folder / ROWS, rows, ROW_SCHEMA)
    rules = {"prompts": ["point"], "rounds": 2, "boundary_ratio": 0.02, "unspecified": False}
    write_json(folder / "protocol.json", {"model": folder.name, **rules})


def sum_of(name: str) -> int:
    """A seed from a name."""
    return int.from_bytes(name.encode(), "little") % 2**32


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project; tests copy it."""
    folder = tmp_path_factory.mktemp("template") / "project"
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    make_project(folder)
    os.chdir(before)
    return folder


@pytest.fixture
def children(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Children:
    """A project that runs nothing: what would run is noted. Without MLflow, and the curves are not drawn."""
    monkeypatch.chdir(shutil.copytree(template, tmp_path / "project"))
    made = Children()
    monkeypatch.setattr(ablate_runner.Children, "call", lambda self, *words: made(*words))
    monkeypatch.setattr(ablate_runner, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(ablate, "_tracking", lambda config: "sqlite:////nowhere/mlflow.db")
    monkeypatch.setattr(ablation_page, "curves", lambda table, unit: b"PNG")
    return made


def rows_of(out: Path = Path("work/ablation")) -> set[str]:
    return set(pd.read_csv(out / "cost.csv")["row"])


def test_runs_are_made_once_and_a_changed_number_is_refused(children: Children, capsys) -> None:
    assert main([*CALL, "finetune.optim.lr=0.01"]) == 0
    both = ("finetune", "evaluate")
    assert sorted(children.calls) == sorted(
        [("base", "evaluate"), *((name, stage) for name in NAMES for stage in both)]
    )
    assert rows_of() == {"small-human_only-full", "small-vanilla-full"}
    children.calls.clear()
    assert main([*CALL, "finetune.optim.lr=0.01"]) == 0  # done
    assert main([*CALL, "finetune.optim.lr=0.01", "finetune.optim.workers=1", "register.tolerance=0.5"]) == 0
    assert not children.calls
    capsys.readouterr()
    before = Path("work/ablation/tables.csv").read_bytes()
    assert main([*CALL, "finetune.optim.lr=0.02"]) == 2
    told = capsys.readouterr().err
    assert "4 runs in" in told
    assert "small-human_only-full-0: finetune.optim.lr: 0.01, now 0.02" in told
    assert "Give another --out" in told
    assert main([*CALL, "finetune.optim.lr=0.02", "--out", "elsewhere"]) == 0
    assert len(children.calls) == 9
    assert Path("work/ablation/tables.csv").read_bytes() == before


@pytest.mark.slow
def test_other_labels_concern_only_rows_that_learn_from_them(children: Children, capsys) -> None:
    assert main(CALL) == 0
    path = Path("data/pseudo_labels/summary.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"content": "others"}))
    assert main([*CALL, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "small-vanilla-full-1: begun with something else: data/pseudo_labels/summary.json: " in told
    assert "small-human_only-full-1: done" in told
    assert main([*CALL, "--only", "human_only"]) == 0  # nothing to make; the tables say what is left out
    assert rows_of() == {"small-human_only-full"}
    assert "not in the tables, begun with something else: small-vanilla-full-0" in capsys.readouterr().out
    assert main(CALL) == 2


@pytest.mark.slow
def test_rows_are_added_without_making_others_again(children: Children) -> None:
    assert main([*CALL, "--only", "human_only"]) == 0
    assert {name for name, _ in children.calls} == {"base", "small-human_only-full-0", "small-human_only-full-1"}
    children.calls.clear()
    assert main([*CALL, "ablation.budgets=[small,medium]", "ablation.seeds=[0]", "--only", "vanilla"]) == 0
    assert {name for name, _ in children.calls} == {"small-vanilla-full-0", "medium-vanilla-full-0"}
    assert rows_of() == {"small-human_only-full", "small-vanilla-full", "medium-vanilla-full"}


def test_a_failing_run_is_listed_and_does_not_stop_the_others(children: Children, capsys) -> None:
    children.codes[("small-vanilla-full-0", "finetune")] = [1]
    assert main(CALL) == 1
    told = capsys.readouterr()
    assert "1 of 5 runs failed" in told.err
    assert "small-vanilla-full-0: finetune ended with 1: made to fail with 1" in told.err
    assert "failed: small-vanilla-full-0" in told.out
    assert rows_of() == {"small-human_only-full", "small-vanilla-full"}  # by its other seed
    seeds = pd.read_csv("work/ablation/tables.csv").groupby("row")["seeds"].first()
    assert seeds.to_dict() == {"base": 1, "small-human_only-full": 2, "small-vanilla-full": 1}
    children.calls.clear()
    assert main(CALL) == 0
    assert children.calls == [("small-vanilla-full-0", "finetune"), ("small-vanilla-full-0", "evaluate")]


@pytest.mark.slow
def test_what_may_pass_is_tried_again_and_what_is_trained_is_not_trained_again(children: Children, capsys) -> None:
    children.codes[("small-vanilla-full-0", "finetune")] = [75, 75]
    children.codes[("small-vanilla-full-1", "evaluate")] = [75, 75, 75]
    children.codes[("small-human_only-full-1", "evaluate")] = [2]
    assert main(CALL) == 1
    assert "2 of 5 runs failed" in capsys.readouterr().err
    assert children.calls.count(("small-vanilla-full-0", "finetune")) == 3
    children.calls.clear()
    assert main(CALL) == 0
    assert sorted(children.calls) == [("small-human_only-full-1", "evaluate"), ("small-vanilla-full-1", "evaluate")]


@pytest.mark.slow
def test_without_the_base_there_is_no_table(children: Children, capsys) -> None:
    children.codes[("base", "evaluate")] = [1]
    assert main(CALL) == 1
    assert "no row is done yet" in capsys.readouterr().out
    assert not Path("work/ablation/tables.md").exists()
    assert main(CALL) == 0


def test_a_second_one_in_the_folder_is_refused(children: Children, capsys) -> None:
    with FolderClaims(Path("work/ablation")).take(".running") as mine:
        assert mine
        assert main(CALL) == 75
    assert "another `python -m sum ablate` works here" in capsys.readouterr().err
    assert not children.calls


@pytest.mark.slow
def test_mlflow_is_one_place_for_all_folders(template: Path, tracking_uri: str, tmp_path: Path, monkeypatch) -> None:
    from sum.tracking import connect

    monkeypatch.chdir(tmp_path)
    config = load_config(["tracking.uri=sqlite:///mlflow.db"], root=template)
    assert ablate._tracking(config) == tracking_uri
    assert connect(tracking_uri).get_experiment_by_name("sum-ablation") is not None


def test_children_get_one_mlflow_their_tags_and_cores(children: Children, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setenv("SUM_SHARE", "1/2")
    assert main([*CALL, "--jobs", "2", "--out", "mine"]) == 0
    found = children.environments["small-vanilla-full-1"]
    assert found["OMP_NUM_THREADS"] == "3"
    assert found["MLFLOW_TRACKING_URI"] == "sqlite:////nowhere/mlflow.db"
    assert found["SUM_CACHE"] == str(Path.cwd() / "work/cache")
    assert "SUM_SHARE" not in found
    own = {"budget": "small", "method": "vanilla", "arch": "full", "seed": "1"}
    assert json.loads(found["SUM_TAGS"]) == {"ablation": "mine", "row": "small-vanilla-full", **own}


def test_a_dry_run_writes_nothing(children: Children, capsys) -> None:
    assert main([*CALL, "--dry-run", "--only", "vanilla"]) == 0
    told = capsys.readouterr().out
    assert "small-human_only-full-0: to do, not asked for" in told
    assert (
        "  finetune small tracking.experiment=sum-ablation finetune.method=vanilla finetune.arch=full seed=1\n" in told
    )
    assert "3 of 5 runs to make" in told
    assert "`python -m sum plan` with the words of `finetune` says how long" in told
    assert not Path("work").exists()


def test_a_dry_run_tells_the_time_by_runs_that_are_done(children: Children, capsys) -> None:
    assert main([*CALL, "--only", "human_only"]) == 0
    for seed, seconds in enumerate((3600, 7200)):
        done = Path(f"work/ablation/runs/small-human_only-full-{seed}/done.json")
        done.write_text(json.dumps({"finetune": seconds, "evaluate": 60}))
    capsys.readouterr()
    assert main([*CALL, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "; 91.0 min each of the 2 that are done, so about 3.0 h one after another\n" in told
    assert main([*CALL, "--only", "human_only", "--dry-run"]) == 0
    assert " h one after another" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "maker"),
    [
        ("data/manifest/images.parquet", "ingest"),
        ("data/validation/report.json", "validate"),
        ("data/refiner/model.safetensors", "refine"),
        ("data/pseudo_labels/summary.json", "pseudo_label"),
        ("data/uncertainty/summary.json", "uncertainty"),
        ("data/checks/labels.json", "check_labels"),
    ],
)
def test_a_missing_stage_is_named(children: Children, capsys, path: str, maker: str) -> None:
    Path(path).unlink()
    assert main(CALL) == 1
    assert f"Run `dvc repro {maker}`" in capsys.readouterr().err.replace("\n", " ")


def test_a_method_that_cannot_learn_here_is_refused_before_anything_runs(children: Children, capsys) -> None:
    assert main(["ablate", "ablation.grid=[{methods:[human_only,sum_discrepancy]}]"]) == 2
    assert "row small-sum_discrepancy-full: " in capsys.readouterr().err
    assert not Path("work").exists()


def test_photos_beside_the_project_are_linked_and_nothing_outside(children: Children, monkeypatch, capsys) -> None:
    photos = Path("../photos")
    photos.mkdir()
    (photos / "one.png").write_bytes(b"1")
    found = list[str]()

    def also(config: Any, *, project: Path) -> list[str]:
        return [*shared_paths(config, project=project), *found]

    monkeypatch.setattr(ablate_inputs, "shared_paths", also)
    found.append("../photos")
    assert main(CALL) == 0
    for name in NAMES:
        assert Path("work/ablation/runs", name, "../photos/one.png").read_bytes() == b"1"
    found.append("../../../photos")
    assert main([*CALL, "--out", "other"]) == 2
    assert "are outside of" in capsys.readouterr().err.replace("\n", " ")


def test_checkpoints_go_and_nothing_of_the_project_is_written(children: Children) -> None:
    def now() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}

    files, kept = now(), Path("work/ablation/runs/small-vanilla-full-0/work")
    for name in ("finetune", "evaluate", "weights"):
        (kept / name).mkdir(parents=True)
    assert main(CALL) == 0
    assert [path.name for path in kept.iterdir()] == ["weights"]
    assert now() == files
    assert {path.name for path in Path("data").iterdir()} == {name.split("/")[1] for name in files}


def test_rows_with_one_output_are_compared_by_it_alone(children: Children) -> None:
    grid = "ablation.grid=[{methods:[human_only,sum],archs:[full,hq]}]"
    own = "ablation.settings={hq: {optim.lr: 0.5}, lora: {optim.lr: 0.25}}"  # no row is lora's
    assert main(["ablate", grid, own, "ablation.budgets=[small]", "ablation.seeds=[0]"]) == 0
    table, pairs = (pd.read_csv(f"work/ablation/{name}.csv") for name in ("tables", "pairs"))
    full, hq = ({f"small-{method}-{arch}" for method in ("human_only", "sum")} for arch in ("full", "hq"))
    assert set(table.loc[table["output"] == "oracle", "row"]) == {"base", *full}
    assert set(table.loc[table["output"] == "single", "row"]) == {"base", *full, *hq}
    assert set(pairs.loc[pairs["output"] == "oracle", "first"]) == full
    assert set(pairs.loc[pairs["output"] == "single", "first"]) == full | hq
    text = Path("work/ablation/tables.md").read_text()
    sure = text.split("## What is sure")[1].split("##")[0]
    assert "- small: sum: " in sure
    assert "- small: sum, hq (single output): " in sure
    assert '- settings of rows: {"hq": {"optim.lr": 0.5}}\n' in text
    assert "**One seed: intervals are over test images only" in text
    assert "- seeds: 0\n" in text
    assert "resamples over images (one seed)\n" in text
    assert Path("work/ablation/curves-small-single.png").is_file()


@pytest.mark.slow
def test_what_a_step_is_is_said_of_each_row(children: Children) -> None:
    grid = "ablation.grid=[{methods:[human_only,sum],archs:[full,hq]},{methods:[augseg]}]"
    assert main(["ablate", grid, "ablation.budgets=[small]", "ablation.seeds=[0]", "finetune.optim.ema=0.9"]) == 0
    whole = (
        "a step: 1 images, 1 masks each, 2 rounds, but `human_only, hq`, `sum, hq`: one prompt a mask (a box, ten "
        "points, or the mask with noise); `augseg`: 2 rounds of human masks, one prompt of masks of unlabelled images\n"
    )
    assert f"- {whole}" in Path("work/ablation/tables.md").read_text()
    assert "one prompt of masks of unlabelled images" in Path("work/ablation/index.html").read_text()


@pytest.mark.slow
def test_without_exceptions_a_step_is_the_same_in_every_row(children: Children) -> None:
    assert main(CALL) == 0
    text = Path("work/ablation/tables.md").read_text()
    assert "- a step: 1 images, 1 masks each, 2 rounds, in every row\n" in text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("pseudo_label.min_area=7", "what stage pseudo_label has made"),
        ("uncertainty.method=none", "what stage uncertainty has made"),
        ("refine.min_iou=0.5", "what stage refine has made"),
        ("datasets.test.task=part", "what stage datasets has made"),
        ("++check_labels.max_predicted_iou=2", "what stage check_labels has made"),
        ("seed=3", "name it in ablation.seeds"),
        ("finetune.method=sum", "name it in ablation.grid"),
        ("finetune.arch=hq", "name it in ablation.grid"),
    ],
)
def test_words_that_cannot_matter_are_refused(children: Children, capsys, word: str, message: str) -> None:
    assert main([*CALL, word]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not Path("work").exists()


def test_a_wrong_word_is_blamed_on_the_command_line(children: Children, capsys) -> None:
    assert main([*CALL, "finetune.optim.lr=-1"]) == 2
    assert "command line: finetune.optim" in capsys.readouterr().err.replace("\n", " ")


def test_labels_made_with_other_numbers_are_refused(children: Children, capsys) -> None:
    params = Path("params.yaml").read_text()
    for before, after, said in (
        ("min_area: 100", "min_area: 50", "pseudo_label.min_area: 100.0, now 50.0"),
        ("min_refine_area: 2000", "min_refine_area: 1", "uncertainty.min_refine_area: 2000.0, now 1.0"),
    ):
        assert before in params
        Path("params.yaml").write_text(params.replace(before, after, 1))
        assert main([*CALL, "--dry-run"]) == 2
        told = capsys.readouterr().err.replace("\n", " ")
        assert said in told
        assert "Run `dvc repro check_labels`" in told


def test_what_a_rows_own_settings_override_is_said(children: Children, capsys) -> None:
    own = "ablation.settings={vanilla: {optim.lr: 0.5}}"
    assert main([*CALL, own, "finetune.optim.lr=0.1", "--dry-run"]) == 0
    told = capsys.readouterr().err
    assert "small-vanilla-full: finetune.optim.lr=0.1: ablation.settings win for this row" in told
    assert "small-human_only-full: finetune" not in told


def test_a_run_is_stamped_when_its_turn_has_come(children: Children, monkeypatch) -> None:
    begun = []

    def note(words: Sequence[str], folder: Path, environment: Mapping[str, str], told: Path) -> int:
        stamped = {path.parent.name for path in Path("work/ablation/runs").glob("*/made_of.json")}
        code = children(words, folder, environment, told)
        begun.append((stamped, {name for name, _ in children.calls}))
        return code

    monkeypatch.setattr(ablate_runner.Children, "call", lambda self, *words: note(*words))
    assert main(CALL) == 0
    assert len(begun) == 9
    assert all(stamped == called for stamped, called in begun)


@pytest.mark.parametrize(
    ("uri", "same"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite+pysqlite:///a/mlflow.db", "sqlite+pysqlite:///{here}/a/mlflow.db"),
        ("sqlite:////b/mlflow.db", "sqlite:////b/mlflow.db"),
        ("mlruns", "file://{here}/mlruns"),
        ("./mlruns", "file://{here}/mlruns"),
        ("file:mlruns", "file://{here}/mlruns"),
        ("file:///b/mlruns", "file:///b/mlruns"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("postgresql://u@host/db", "postgresql://u@host/db"),
        ("databricks", "databricks"),
        ("databricks:mine", "databricks:mine"),
    ],
)
def test_relative_stores_of_mlflow_are_made_absolute(tmp_path: Path, monkeypatch, uri: str, same: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(uri) == same.format(here=tmp_path)
