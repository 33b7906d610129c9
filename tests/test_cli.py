"""The command line: what it accepts, what it says, how it ends."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sum import cli
from sum.cli import COMMANDS, STAGES, main
from sum.commands import use
from sum.errors import ConfigError, DataError, NotFound, Refused, StorageError, TrackingError
from sum.launch import VARIABLE, torchrun

PROJECT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """A project with params and examples only; logging is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    before = logging.getLogger().handlers[:], logging.getLogger().level
    yield tmp_path
    logging.getLogger().handlers[:], level = before
    logging.getLogger().setLevel(level)


class FakeStage:
    """Takes the place of a stage module and notes what it was called with."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.calls = error, []

    def run(self, config, **argument) -> Path:
        self.calls.append((config, argument))
        if self.error:
            raise self.error
        return Path("data/fake")


@pytest.fixture
def fake(monkeypatch) -> FakeStage:
    stage = FakeStage()
    for name in STAGES:
        monkeypatch.setitem(sys.modules, f"sum.stages.{name}", stage)
    return stage


def children_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_at_once():
    began = children_seconds()
    command = [sys.executable, "-m", "sum", "--help"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert children_seconds() - began < 2  # 0.1 s; of the processor, as tests share one
    for name in (*STAGES, *(command.usage for command in COMMANDS.values())):
        assert f"  {name}" in done.stdout


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_the_processes_that_share_a_stage_says_what_was_written(fake, capsys, monkeypatch, rank):
    monkeypatch.setenv("RANK", str(rank))
    assert main(["finetune", "small"]) == 0
    assert len(fake.calls) == 1
    assert capsys.readouterr().err.count("finetune: wrote data/fake") == 1 - rank


def test_a_stage_gets_its_config_and_word(fake, caplog):
    with caplog.at_level(logging.INFO):
        assert main(["finetune", "small", "finetune.optim.checkpoint_every=55"]) == 0
    config, argument = fake.calls[0]
    assert argument == {"budget": "small"}
    assert config.finetune.optim.checkpoint_every == 55


def test_evaluate_knows_base_too(fake):
    assert main(["evaluate", "base"]) == 0
    assert main(["evaluate", "large"]) == 0
    assert [argument for _, argument in fake.calls] == [{"model": "base"}, {"model": "large"}]


def test_a_stage_that_can_be_shared_starts_itself_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    words = ["-v", "finetune", "small", "seed=3"]
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for wanted, count in (("8", 8), ("gpu", 4)):
        found = torchrun(words, {VARIABLE: wanted})
        assert found == [*start, f"--nproc-per-node={count}", "-m", "sum", *words]
        shared = torchrun(["evaluate", "small"], {VARIABLE: wanted})
        assert shared == [*start, f"--nproc-per-node={count}", "-m", "sum", "evaluate", "small"]
    for environment in ({}, {VARIABLE: ""}, {VARIABLE: "1"}, {VARIABLE: "8", "RANK": "3"}):  # the last: a child
        assert torchrun(words, environment) is None
    for alone in (["register", "small"], ["ingest"], ["finetune", "--help"], ["finetune", "-h"], ["plan"]):
        assert torchrun(alone, {VARIABLE: "8"}) is None


@pytest.mark.parametrize("wanted", ["0", "-1", "two", "1.5", "²"])
def test_a_number_of_processes_that_is_none_is_refused(
    wanted: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, wanted)
    assert main(["finetune", "small"]) == 2
    assert f"SUM_PROCESSES is '{wanted}', wants a number of processes such as 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "words", "message"),
    [
        ("gpu", ["finetune", "small"], "SUM_PROCESSES is 'gpu', but PyTorch finds no CUDA device here."),
        ("2", ["finetune", "nosuch"], "budget: unknown 'nosuch'"),
        ("2", ["pseudo_label", "small"], "takes only key=value"),
        ("2", ["uncertainty", "seed=many"], "command line: seed: Input should be a valid integer"),
        ("4", ["finetune", "small"], "images_per_batch is 6, no multiple of the 4 processes"),
        (
            "3",
            ["finetune", "small"],
            "3 processes are to train here, and each needs a GPU of its own, of which there are 2",
        ),
    ],
)
def test_what_several_processes_would_refuse_is_one_line_before_they_start(
    wanted: str,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpus = 2 if wanted == "3" else 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("torchrun was started"))
    monkeypatch.setenv(VARIABLE, wanted)
    assert main(words) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    assert message in told


def test_words_that_are_right_start_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def execv(_: str, command: list[str]) -> None:
        started.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setenv(VARIABLE, "3")
    assert main(["finetune", "small", "seed=3"]) == 130
    assert [command[-6:] for command in started] == [["--nproc-per-node=3", "-m", "sum", "finetune", "small", "seed=3"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a stage or a command, such as `ingest`; `python -m sum --help` lists them"),
        (["-v"], "`python -m sum --help` lists them"),
        (["ingst"], "stage: unknown 'ingst'. Did you mean 'ingest'?"),
        (["finetune"], "stage 'finetune' wants one budget of small, medium, large; got none"),
        (["finetune", "smal"], "budget: unknown 'smal'. Did you mean 'small'?"),
        (["finetune", "base"], "budget: unknown 'base'"),
        (["finetune", "small", "large"], "got 2: small large"),
        (["evaluate", "basis"], "model: unknown 'basis'. Did you mean 'base'?"),
        (["ingest", "small"], "stage 'ingest' takes only key=value, got 'small'"),
        (["ingest", "seed=many"], "command line: seed: Input should be a valid integer"),
        (["use"], "usage: python -m sum use FILE"),
        (["use", "examples/nowhere.yaml"], "examples/nowhere.yaml does not exist"),
        (["results", "seed=1"], "usage: python -m sum results"),
    ],
)
def test_a_bad_command_line_is_one_error_and_exit_2(fake, capsys, words, message):
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert len(told.strip().splitlines()) == 1
    assert not fake.calls


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("a.png is no image"), 1, "error: a.png is no image"),
        (ConfigError("params.yaml: [x] wrong"), 2, "error: params.yaml: [x] wrong"),  # brackets are no markup
        (TrackingError("no server"), 75, "error: no server"),
        (StorageError("no space left"), 75, "error: no space left"),
        (Refused("access denied"), 1, "error: access denied"),  # a second try meets it again: no flow retries
        (NotFound("a.png does not exist"), 1, "error: a.png does not exist"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again"),
    ],
)
def test_exit_codes(fake, capsys, error, code, message):
    fake.error = error
    assert main(["ingest"]) == code
    assert message in capsys.readouterr().err


def test_an_unexpected_error_keeps_its_traceback(fake):
    fake.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["ingest"])


def test_a_module_is_imported_without_the_garbage_collector_which_is_there_again(monkeypatch) -> None:
    enabled = list[bool]()

    def import_module(name: str) -> None:
        enabled.append(gc.isenabled())
        if name == "no.such":
            raise ImportError(name)

    monkeypatch.setattr(cli.importlib, "import_module", import_module)
    cli._module("sum.stages.ingest")
    assert gc.isenabled()
    with pytest.raises(ImportError):
        cli._module("no.such")
    assert gc.isenabled()
    gc.disable()
    try:
        cli._module("sum.stages.ingest")
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert enabled == [False] * 3


def test_no_tool_phones_home(fake, monkeypatch):
    for name in cli.QUIET:
        monkeypatch.delenv(name, raising=False)
    main(["ingest"])
    assert {name: os.environ[name] for name in cli.QUIET} == dict(cli.QUIET)


def test_use_takes_a_valid_file_and_keeps_the_old(project):
    old = (project / "params.yaml").read_bytes()
    (project / "mine.yaml").write_bytes(old.replace(b"seed: 0", b"seed: 7"))
    assert main(["use", "mine.yaml"]) == 0
    assert b"seed: 7" in (project / "params.yaml").read_bytes()
    assert (project / "params.yaml.bak").read_bytes() == old
    (project / "params.yaml").write_bytes(old.replace(b"seed: 0", b"seed: 8"))
    assert main(["use", "mine.yaml"]) == 0
    assert b"seed: 8" in (project / "params.yaml.bak2").read_bytes()  # no backup is ever overwritten
    assert main(["use", "mine.yaml"]) == 0
    assert not (project / "params.yaml.bak3").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"seed: 1\n", "bad.yaml: model: Field required"),
        (b"seed: [1\n", "bad.yaml"),
        (b"seed: ${x}\n", "bad.yaml: line 1: ${...} is not allowed"),
        (b"\xff\xfe", "bad.yaml"),
        (b'seed: "a #${oc.env:HOME}"\n', "bad.yaml: line 1: ${...} is not allowed"),
        (b'a: 1\nseed: "\\x24{oc.env:HOME}"\n', "bad.yaml: line 2: ${...} is not allowed"),
    ],
)
def test_use_refuses_a_bad_file_and_changes_nothing(project, capsys, text, message):
    old = (project / "params.yaml").read_bytes()
    (project / "bad.yaml").write_bytes(text)
    assert main(["use", "bad.yaml"]) == 2
    assert message in capsys.readouterr().err
    assert (project / "params.yaml").read_bytes() == old
    assert not (project / "params.yaml.bak").exists()


def test_an_example_needs_no_backup(project):
    (project / "examples").mkdir()
    (project / "examples" / "demo.yaml").write_bytes((project / "params.yaml").read_bytes())
    (project / "mine.yaml").write_bytes((project / "params.yaml").read_bytes() + b"# mine\n")
    assert "the old one" not in use.use(Path("mine.yaml"))


def test_use_says_what_is_missing_before_the_pipeline_can_run(project):
    own = PROJECT / "examples" / "own.yaml"
    first, *told = use.use(own).splitlines()
    assert first.endswith("Before `make repro`:")
    places = "mine (data/raw/mine), mine_test (data/raw/mine), shop (data/raw/shop)"
    assert told[0].startswith(f"- there is no data yet for {places}:")
    assert told[1:] == ['- put the weights at checkpoints/sam_vit_b_01ec64.pth, see README, "The real SAM"']
    (project / "data/raw/mine").mkdir(parents=True)
    assert "no data yet for shop (data/raw/shop):" in use.use(own)  # it is in use already
    (project / "data/raw/shop").mkdir()
    (project / "checkpoints").mkdir()
    (project / "checkpoints/sam_vit_b_01ec64.pth").touch()
    assert use.use(own).endswith("already. Run `make repro`.\n")
    weights = project / "sum/models/weights/tiny.safetensors"  # of the demo, whose sets its first stage draws
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert use.use(PROJECT / "examples" / "demo.yaml").endswith("Run `make repro`.\n")


def test_results_prints_table_report_and_mlflow(project, capsys):
    assert main(["results"]) == 1
    assert "Run `dvc repro report`" in capsys.readouterr().err
    table = project / "data" / "report" / "table.md"
    table.parent.mkdir(parents=True)
    table.write_text("| model | mIoU |\n|---|---|\n| base | 0.5 |\n")
    assert main(["results"]) == 0
    told = capsys.readouterr().out
    assert "| base | 0.5 |" in told
    assert "data/report/index.html" in told
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in told
    assert "Compare" not in told
    for number, budget in enumerate(("small", "large"), 1):
        path = project / "data" / "registry" / f"{budget}.json"
        path.parent.mkdir(exist_ok=True)
        told = {"versions": {"sum": str(number)}, "run_id": f"run{number}", "experiment_id": "7"}
        path.write_text(json.dumps(told))
    assert main(["results"]) == 0
    told = capsys.readouterr().out
    assert "Models: http://127.0.0.1:5000/#/experiments/7/models?workflowType=machine_learning\n" in told
    assert "Compare: http://127.0.0.1:5000/#/compare-model-versions" in told


def test_ctrl_c_ends_with_130(project):
    """A real process, a real signal."""
    code = (
        "import signal, sys, time, types\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell starts us deaf to it
        "from sum.cli import main\n"
        "def run(config):\n    print('running', flush=True)\n    time.sleep(30)\n"
        "sys.modules['sum.stages.ingest'] = types.SimpleNamespace(run=run)\n"
        "sys.exit(main(['ingest']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", code]
    child = subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=20) == 130


@pytest.mark.parametrize("words", [["add", "--help"], ["-v", "audit", "-h"], ["ingest", "--dry-run", "--help"]])
def test_the_help_of_a_command_names_its_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    said = capsys.readouterr().out
    assert {"add": "--unlabelled", "audit": "--checkpoint"}.get(words[-2], "--task") in said
