"""`python -m sum reproduce`: what a run's page holds, what differs from then, and a training that is done again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sum import tracking
from sum.cli import main
from sum.commands import reproduce_checks
from sum.commands.reproduce import own_config, own_processes, threads
from sum.commands.reproduce_checks import differences, mend
from sum.config import check_config, load_config
from sum.errors import ConfigError, DataError
from sum.models.distance import apart
from sum.provenance import command_line, provenance
from sum.registry import trainings
from sum.run_page import FOLDER, note_resumption, read_page
from sum.settings import Config
from sum.stages import finetune
from sum.stages.common import code_hash
from sum.storage import sha256_file
from sum.tracking import read_files
from sum.training_record import begin
from tests.stages.label_world import WEIGHTS, contents, make_project
from tests.stages.tuning_world import add_human_mask, make_labelled, settings

pytestmark = pytest.mark.filterwarnings(  # of great_expectations' own imports
    "ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning"
)
PROJECT = Path(__file__).parents[2]
OUTS = [{"path": f"data/{name}", "md5": f"{name}.dir"} for name in ("manifest", "pseudo_labels")]
LOCK = {"stages": {"ingest": {"cmd": "x", "outs": OUTS}}}
WHO = ("-c", "user.name=test", "-c", "user.email=test@localhost")


@dataclass(frozen=True)
class World:
    """A project in which one run was made."""

    folder: Path
    uri: str
    run_id: str
    config: Config


def make_run(folder: Path, database: Path, *, labelled: bool, **more: Any) -> World:
    """A git project with dvc.lock, one finished run, and params.yaml not committed."""
    (make_labelled if labelled else make_project)(folder)
    shutil.copy(database, folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
        if not labelled:
            add_human_mask()
        Path("dvc.lock").write_text(yaml.safe_dump(LOCK))
        for words in (["init", "--quiet"], ["add", "params.yaml"], [*WHO, "commit", "--quiet", "--message", "first"]):
            subprocess.run(["git", *words], check=True)
        config = settings(folder, uri, **more)
        finetune.run(config, budget="small")
        run_id = json.loads(Path("data/models/small/run.json").read_text())["run_id"]
        subprocess.run(["git", *WHO, "commit", "--quiet", "--all", "--message", "second"], check=True)
    return World(folder, uri, run_id, config)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> World:
    return make_run(tmp_path_factory.mktemp("made"), empty_database, labelled=False, method="human_only")


def copy_of(made: World, folder: Path, patch: pytest.MonkeyPatch) -> World:
    """The same in a folder that a test may spoil; MLflow's files stay where they were and are only read."""
    shutil.copytree(made.folder, folder)
    patch.chdir(folder)
    patch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    uri = f"sqlite:///{folder}/mlflow.db"
    patch.setenv("MLFLOW_TRACKING_URI", uri)
    return replace(made, folder=folder, uri=uri)


@pytest.fixture
def world(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return copy_of(made, tmp_path / "project", monkeypatch)


def test_the_page_holds_all_that_was_set_and_all_that_may_matter(world: World, tmp_path: Path) -> None:
    page = read_page(world.uri, world.run_id)
    (tmp_path / "params.yaml").write_text(page.texts["params.yaml"])
    assert load_config(root=tmp_path) == world.config
    assert yaml.safe_load(page.texts["dvc.lock"]) == LOCK
    assert page.weights == sha256_file("data/models/small/model.safetensors")
    assert page.facts["base"] == sha256_file(WEIGHTS)
    assert (page.facts["budget"], page.facts["method"], page.files) == ("small", "human_only", {})
    machine = page.machine
    assert machine["code"] == code_hash()
    assert (machine["threads"], machine["processes"], machine["precision"]) == ("1", "1", "fp32")
    assert machine["device"].startswith("cpu ")
    assert machine["command"] == command_line()
    assert machine["version.torch"] == torch.__version__
    first = subprocess.run(["git", "rev-parse", "HEAD~1"], capture_output=True, text=True, check=True).stdout.strip()
    assert (machine["git.commit"], machine["git.dirty"]) == (first, "true")
    subprocess.run(["git", "checkout", "--quiet", first], check=True)
    assert load_config() != world.config  # as committed
    (tmp_path / "changes").write_text(page.texts["uncommitted.patch"])
    subprocess.run(["git", "apply", str(tmp_path / "changes")], check=True)
    assert load_config() == world.config


def test_complete_params_of_the_largest_example_are_taken_again() -> None:
    """With keys that kinds of data sets leave out."""
    tree = yaml.load((PROJECT / "examples/paper.yaml").read_text(), Loader=yaml.CSafeLoader)
    config = check_config(tree, source="paper.yaml")
    assert check_config(asdict(config), source="again") == config


def test_the_curves_are_in_mlflow_and_what_depends_on_the_machine_is_not_in_the_history(world: World) -> None:
    client = tracking.connect(world.uri)
    columns = Path("data/models/small/history.csv").read_text().splitlines()[0].split(",")
    assert {"loss", "loss_mask", "loss_iou", "grad_norm", "skipped", "masks", "lr"} <= set(columns)
    machine = {"seconds", "peak_memory_mb", "images_per_second", "masks_per_second"}
    assert not machine & set(columns)
    summary = json.loads(Path("data/models/small/summary.json").read_text())
    assert not machine & set(summary["final"])
    curves = {
        name: [point.value for point in client.get_metric_history(world.run_id, name)] for name in (*columns, *machine)
    }
    assert {name: len(points) for name, points in curves.items() if name != "step"} == dict.fromkeys(
        {*columns, *machine} - {"step"}, 3
    )
    for what in ("images_per_second", "masks_per_second"):  # of a batch: one photo with one mask, twice
        counts = [rate * seconds for rate, seconds in zip(curves[what], curves["seconds"], strict=True)]
        assert counts == pytest.approx([2, 2, 2])
    assert all(100 < memory < 100_000 for memory in curves["peak_memory_mb"])


def reproduce(world: World, *words: str) -> int:
    return main(["reproduce", world.run_id, *words])


def test_the_same_folder_differs_in_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(world, "--check-only") == 0
    said = capsys.readouterr().out
    assert "no difference(s) between then and now" in said
    assert f"work/reproduce/{world.run_id}" in said
    kept = Path("work/reproduce", world.run_id)
    assert {path.name for path in kept.iterdir()} == {"dvc.lock", "params.yaml", "record.json", "uncommitted.patch"}


@pytest.mark.slow
def test_what_may_matter_is_told_and_refuses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load(Path("params.yaml").read_text())
    tree["seed"], tree["finetune"]["optim"]["lr"] = 7, 0.5
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    now = reproduce_checks.circumstances
    changed = {"version.torch": "0.1", "threads": "64", "device": "cpu ABACUS"}
    monkeypatch.setattr(reproduce_checks, "circumstances", lambda **words: now(**words) | changed)
    monkeypatch.setattr(reproduce_checks, "code_hash", lambda: "c0de" * 16)
    monkeypatch.setenv("WORLD_SIZE", "2")
    page = read_page(world.uri, world.run_id)
    run = tracking.Run(tracking.connect(world.uri), world.run_id)
    note_resumption(run, page.machine)
    assert read_page(world.uri, world.run_id).resumed == ""
    note_resumption(run, {**page.machine, "threads": "3", "version.torch": "0.2"})
    assert reproduce(world, "--check-only") == 0
    rows = {line.split("  ")[0].strip(): line for line in capsys.readouterr().out.splitlines()}
    for what, words in (
        ("version.torch", "0.1"), ("threads", "set to those of the run"), ("device", "ABACUS"),
        ("processes", "torchrun is to start 1, or leave it out"), ("code", "git checkout"),
        ("resumed", "threads 3"), ("params: seed", "the run's is used"), ("params: finetune.optim.lr", "0.5"),
    ):  # fmt: skip
        assert words in rows[what], what


def test_a_killed_training_goes_on_when_the_page_of_its_run_is_gone(
    tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The database is there, its files below mlruns/ are not."""

    def again() -> tracking.Run:
        return begin(
            tmp_path / "run.json",
            params={"tracking": {"uri": tracking_uri, "experiment": "sum"}},
            facts={"budget": "small", "method": "sum", "base": "0", "data": "0"},
            files={},
            licences={},
            skipped={},
            machine={"device": "cpu", "threads": "1", "processes": "1"},
        )

    first = again()
    shutil.rmtree(tmp_path / "mlruns")
    with caplog.at_level("WARNING", logger="sum"):
        assert again().id == first.id
    (told,) = caplog.messages
    assert first.id in told
    assert "Training goes on" in told
    with pytest.raises(DataError, match="its files are gone"):
        read_page(tracking_uri, first.id)


def test_versions_of_all_that_may_change_weights_are_in_the_page() -> None:
    facts = provenance()
    for name in ("torch", "segment-anything", "peft", "accelerate", "safetensors", "numpy", "opencv-python-headless"):
        assert facts[f"version.{name}"] == metadata.version(name)


def spoil_base(_: World) -> None:
    tensors = load_file(WEIGHTS)
    save_file({name: value + 1 for name, value in tensors.items()}, WEIGHTS)


def spoil_data(_: World) -> None:
    shutil.rmtree("data/manifest")
    make_project(Path("other"))  # other masks: none
    shutil.copytree("other/data/manifest", "data/manifest")


def no_data(_: World) -> None:
    """As after `dvc repro` of other data."""
    shutil.rmtree("data/manifest")
    Path("dvc.lock").write_text(Path("dvc.lock").read_text().replace("manifest.dir", "other.dir"))


def no_base(_: World) -> None:
    WEIGHTS.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_base, ["base: weights.safetensors", "the weights of sha256", "git checkout"]),
        (no_base, ["base: weights.safetensors", "git checkout"]),
        (
            spoil_data,
            ["data: the rows of its data sets in data/manifest", "`dvc checkout data/manifest` (", "`dvc pull`"],
        ),
        (no_data, ["data: the rows", "`cp place/dvc.lock dvc.lock && dvc checkout data/manifest`"]),
    ],
)
def test_other_inputs_are_refused_with_the_command_that_brings_them_back(
    world: World, spoil: Callable[[World], None], words: list[str]
) -> None:
    spoil(world)
    page = read_page(world.uri, world.run_id)
    (found,) = differences(page, world.config, today=world.config)
    assert found.refuses
    told = mend(page, [found], Path("place"))
    for word in words:
        assert word in told


def test_a_refusal_is_one_error_and_trains_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    no_data(world)
    no_base(world)
    assert reproduce(world) == 1
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert told.startswith(f"error: reproduce: run {world.run_id} was trained on something else. data: ")
    assert not Path("work/reproduce", world.run_id, "models").exists()


def test_a_run_that_cannot_be_reproduced_is_one_error(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    start = {"uri": world.uri, "experiment": "sum", "params": {}}
    facts = {"budget": "small", "method": "sum", "base": "0", "data": "0"}
    base = tracking.start_run(**start, name="base", tags={})
    old = tracking.start_run(**start, name="ft-small", tags=facts)
    new = tracking.start_run(**start, name="ft-small", tags=facts)
    for name, text in read_page(world.uri, world.run_id).texts.items():
        new.log_text(
            text if name != "record.json" else text.replace('"version": 1', '"version": 2'), name=f"{FOLDER}/{name}"
        )
    killed = tracking.start_run(**start, name="ft-small", tags=facts)
    for name, text in read_page(world.uri, world.run_id).texts.items():
        killed.log_text(text, name=f"{FOLDER}/{name}")
    killed.finish("KILLED")
    cases = {
        "0" * 32: (2, "has no such run"),
        "../x": (2, "has no such run"),
        base.id: (2, "('base') is no fine-tuning"),
        old.id: (1, "another version of this project made it, or its files are gone"),
        new.id: (1, "is of version 2, wanted 1"),
        killed.id: (1, "has no logged weights to compare with; its status is KILLED"),
    }
    for run_id, (code, words) in cases.items():
        assert main(["reproduce", run_id]) == code
        told = capsys.readouterr().err
        assert words in told
        assert len(told.strip().splitlines()) == 1


def test_settings_of_another_version_name_the_commit(world: World) -> None:
    page = read_page(world.uri, world.run_id)
    old = replace(page, texts={**page.texts, "params.yaml": page.texts["params.yaml"] + "gone: 1\n"})
    with pytest.raises(ConfigError, match=rf"params.yaml of run {world.run_id}: gone.*`git checkout [0-9a-f]{{40}}`"):
        own_config(old, world.config)


@pytest.mark.slow
def test_a_device_that_is_not_there_gives_way(world: World) -> None:
    page = read_page(world.uri, world.run_id)
    text = page.texts["params.yaml"].replace("device: cpu\n", "device: mps\n")
    assert "device: mps" in text
    assert own_config(replace(page, texts={**page.texts, "params.yaml": text}), world.config).device in ("mps", "auto")


def test_a_training_has_the_threads_of_the_run() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_the_distance_of_two_files_of_weights(tmp_path: Path) -> None:
    one = {"a.x": torch.tensor([1.0, -4.0]), "a.y": torch.ones(2), "b": torch.zeros(3)}
    save_file(one, tmp_path / "one.safetensors")
    save_file(one, tmp_path / "same.safetensors", metadata={"other": "header"})
    save_file(one | {"a.x": torch.tensor([1.25, -4.0])}, tmp_path / "two.safetensors")
    save_file({"a.x": torch.ones(2)}, tmp_path / "less.safetensors")
    first = tmp_path / "one.safetensors"
    assert apart(first, tmp_path / "same.safetensors")[0]
    assert apart(first, tmp_path / "two.safetensors") == (
        False,
        [
            "  a: 1 of 2 tensors differ, at most by 0.25 (largest weight 4)",
            "  b: 0 of 1 tensors differ, at most by 0 (largest weight 0)",
        ],
    )
    assert apart(first, tmp_path / "less.safetensors") == (
        False,
        ["the tensors have other names or shapes: another model"],
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> World:
    """A run with labels and maps, with options that draw something."""
    options: dict[str, Any] = {"augment": {"flip": 0.5, "scale": [0.5, 1.5]}, "arch": "lora"} | {
        "lora": {"decoder": True}
    }
    return make_run(tmp_path_factory.mktemp("tuned"), empty_database, labelled=True, **options)


@pytest.fixture
def labelled(tuned: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return copy_of(tuned, tmp_path / "project", monkeypatch)


@pytest.mark.slow
def test_the_same_weights_come_out_whatever_params_say_today(
    labelled: World, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(
        labelled.folder,
        "sqlite:///elsewhere.db",
        method="vanilla",
        optim={"steps": 2, "lr": 0.1, "images_per_batch": 1},
    )
    before = contents(Path("data/models/small"))
    assert reproduce(labelled) == 0
    assert f"identical: the weights are those of run {labelled.run_id}" in capsys.readouterr().out
    assert contents(Path("data/models/small")) == before
    place = Path("work/reproduce", labelled.run_id)
    again = contents(place / "models/small")
    assert {name: again[name] == before[name] for name in again} == {
        "delta.safetensors": True, "history.csv": True, "model.json": True, "model.safetensors": True,
        "run.json": False, "summary.json": True,
    }  # fmt: skip
    assert not (place / "work").exists()
    about = json.loads(again["run.json"])
    run = tracking.connect(labelled.uri).get_run(about["run_id"])
    assert (run.data.tags["reproduces"], run.data.tags["reproduced"]) == (labelled.run_id, "identical")
    assert (run.info.run_name, run.info.status, about["model_id"]) == ("ft-small-again", "FINISHED", None)
    assert [training.run_id for training in trainings(labelled.uri, experiment="sum")] == [labelled.run_id]
    assert main(["reproduce", about["run_id"]]) == 1
    assert f"it reproduces run {labelled.run_id}: reproduce that one" in capsys.readouterr().err


@pytest.mark.slow
def test_an_altered_shard_is_named(labelled: World, capsys: pytest.CaptureFixture[str]) -> None:
    shard = sorted(Path("data/pseudo_labels").glob("*.arrow"))[0]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    gone = sorted(Path("data/uncertainty").glob("*.arrow"))[0]
    gone.unlink()
    assert reproduce(labelled) == 1
    told = capsys.readouterr().err
    assert f"labels: other content: {shard}; missing: {gone}." in told
    assert "dvc checkout data/pseudo_labels`" in told


@pytest.mark.slow
def test_another_seed_gives_other_weights_and_exit_1(labelled: World, capsys: pytest.CaptureFixture[str]) -> None:
    run = tracking.Run(tracking.connect(labelled.uri), labelled.run_id)
    text = read_page(labelled.uri, labelled.run_id).texts["params.yaml"]
    assert text.startswith("seed: 0\n")
    run.log_text(text.replace("seed: 0\n", "seed: 1\n", 1), name=f"{FOLDER}/params.yaml")
    try:
        assert reproduce(labelled) == 1
    finally:
        run.log_text(text, name=f"{FOLDER}/params.yaml")
    told = capsys.readouterr().err
    assert f"not identical: other weights than those of run {labelled.run_id}" in told
    assert "mask_decoder: " in told
    (again,) = Path("work/reproduce").glob("*/models/small/run.json")
    new = json.loads(again.read_text())["run_id"]
    assert tracking.connect(labelled.uri).get_run(new).data.tags["reproduced"] == "different"


@pytest.mark.slow
def test_a_stopped_reproduction_goes_on_in_its_mlflow_run_and_the_next_one_begins_anew(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def again() -> int:
        client = tracking.connect(world.uri)
        found = client.search_runs([client.get_experiment_by_name("sum").experiment_id])
        return len([run for run in found if run.data.tags.get("reproduces") == world.run_id])

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "publish", stop)
        assert reproduce(world) == 130
    assert list(Path("work/reproduce", world.run_id, "work").rglob("checkpoint-*"))
    assert (reproduce(world), again()) == (0, 1)
    assert (reproduce(world), again()) == (0, 2)
    assert capsys.readouterr().out.count("identical: ") == 2


@pytest.mark.slow
def test_the_processes_of_the_run_are_started_whatever_the_variable_says(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tracking.Run(tracking.connect(world.uri), world.run_id)
    text = read_page(world.uri, world.run_id).texts["record.json"]
    started: list[list[str]] = []

    def execv(_: str, command: list[str]) -> None:
        started.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setenv("SUM_PROCESSES", "5")
    run.log_text(text.replace('"processes": "1"', '"processes": "3"'), name=f"{FOLDER}/record.json")
    try:
        assert reproduce(world) == 130
        page = read_page(world.uri, world.run_id)
    finally:
        run.log_text(text, name=f"{FOLDER}/record.json")
    assert [command[-6:] for command in started] == [
        ["--nproc-per-node=3", "-m", "sum", "reproduce", world.run_id, "--checked"]
    ]
    assert "no difference(s)" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=rf"3 processes trained run {world.run_id}, and this machine has 2 GPUs"):
        own_processes(page, replace(world.config, device="cuda"))


@pytest.mark.slow
def test_a_run_of_two_processes_is_reproduced_by_one_command(
    made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = copy_of(made, tmp_path / "project", monkeypatch)
    env = {**os.environ, "PYTHONPATH": str(PROJECT), "CUDA_VISIBLE_DEVICES": ""}

    def sum_of(*words: str, **variables: str) -> str:
        command = [sys.executable, "-m", "sum", *words]
        done = subprocess.run(command, env={**env, **variables}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shutil.rmtree("work/finetune")  # else it is the run of one process that goes on
    sum_of("finetune", "small", SUM_PROCESSES="2")
    run_id = json.loads(Path("data/models/small/run.json").read_text())["run_id"]
    assert run_id != world.run_id
    assert read_page(world.uri, run_id).machine["processes"] == "2"
    assert f"identical: the weights are those of run {run_id}" in sum_of("reproduce", run_id)
    (again,) = Path("work/reproduce", run_id).glob("models/small/run.json")
    new = tracking.connect(world.uri).get_run(json.loads(again.read_text())["run_id"])
    assert new.data.tags["reproduced"] == "identical"
    assert read_files(tracking.connect(world.uri), new.info.run_id, folder=FOLDER)["record.json"].count(
        '"processes": "2"'
    )
