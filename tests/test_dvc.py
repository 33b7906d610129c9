"""dvc.yaml, stage modules, params.yaml and prefect.yaml tell one story; the code lists of dvc.yaml are the imports."""

from __future__ import annotations

import ast
import shutil
import subprocess
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import grimp
import pytest
import yaml

from sum.cli import STAGES
from sum.config import load_config
from sum.data.scores import TASK_ORDER
from sum.data.summaries import CURVES
from sum.settings import BudgetConfig, Config, DatasetConfig

PROJECT = Path(__file__).parents[1]
PARAMS = yaml.safe_load((PROJECT / "params.yaml").read_text())
DVC = yaml.safe_load((PROJECT / "dvc.yaml").read_text())
PIPELINE = [name for name in STAGES if name != "pretrain"]
SECTIONS = get_type_hints(Config)
BUDGETS = list(PARAMS["budgets"])
# What cannot change a result: words, logs, transport. MLflow's rooms count only where their answer is the result.
NEUTRAL = {"sum.errors", "sum.config", "sum.storage", "sum.progress", "sum.provenance", "sum.tracking", "sum.registry"}
NEUTRAL |= {
    "sum.settings",
    "sum.training_settings",
    "sum.data_settings",
    "sum.limits",
    "sum.files",
    "sum.s3",
    "sum.downloads",
    "sum.cache",
    "sum.licences",
    "sum.claims",
    "sum.culprits",
    "sum.shares",
    "sum.shard_work",
    "sum.uploads",
    "sum.mlflow_client",
    "sum.run_page",
    "sum.training_record",
}  # see test_defaults_of_settings_are_params_too
NEUTRAL_PARAMS = {"tracking", "device"}  # where runs are kept, what computes: no reason to compute again
ONLY_WORDS = {
    "finetune": {"datasets"},  # licences for MLflow's tags
    "pseudo_label": {"uncertainty"},  # maps made in passing lie in work/: no output of this stage depends on them
}
WITH_REGISTRY = "register"
SHARED = "sum.stages.common"  # helpers of all stages: itself listed, what it imports only where the stage does too


def stage(name: str) -> dict[str, Any]:
    """The body of a stage, whether it is one or a family."""
    return DVC["stages"][name].get("do", DVC["stages"][name])


def params(name: str) -> list[str]:
    """The keys of params.yaml that a stage declares."""
    return [entry for entry in stage(name).get("params", []) if isinstance(entry, str)]


def classes(kind: Any) -> set[str]:
    """The settings classes that make up a section, with those they are derived from, as FILE:NAME."""
    if not is_dataclass(kind):
        return set()
    return {named(kind)}.union(*(classes(inner) for inner in (*kind.__bases__, *get_type_hints(kind).values())))


def named(kind: type) -> str:
    return f"{kind.__module__.replace('.', '/')}.py:{kind.__name__}"


def listed(name: str) -> list[str]:
    return [entry for entry in stage(name)["deps"] if entry.startswith("sum/")]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("sum", cache_dir=None)


def imported(graph: grimp.ImportGraph, name: str) -> set[str]:
    """The modules of sum that stage `name` runs on, without the neutral ones."""
    found, todo = set(), [f"sum.stages.{name}"]
    neutral = NEUTRAL - ({"sum.tracking", "sum.registry"} if name == WITH_REGISTRY else set())
    while todo:
        module = todo.pop()
        if module in found or module in neutral:
            continue
        found.add(module)
        if module != SHARED:
            todo += graph.find_modules_directly_imported_by(module)
    return {module for module in found if (PROJECT / f"{module.replace('.', '/')}.py").is_file()}


def test_stages_modules_and_sections_have_the_same_names():
    modules = {path.stem for path in (PROJECT / "sum" / "stages").glob("*.py")} - {"__init__", "common"}
    assert set(STAGES) == modules
    assert list(DVC["stages"]) == PIPELINE
    sections = set(PARAMS) - {"seed", "device", "model", "tracking", "datasets", "budgets", "ablation"}
    assert sections == set(STAGES) - {"check_evaluation", "report"}  # these have no numbers of their own: evaluate's


@pytest.mark.parametrize("name", PIPELINE)
def test_git_ignores_what_stages_write(name, tmp_path):
    """In a fresh clone, before DVC has added lines of its own."""
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    shutil.copy(PROJECT / ".gitignore", tmp_path)
    written = [entry for kind in ("outs", "metrics") for entry in stage(name).get(kind, [])]
    paths = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in written]
    paths = [path.replace("${key}", "small") for path in paths]
    command = ["git", "check-ignore", *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert paths
    assert done.stdout.split() == paths


@pytest.mark.parametrize("name", PIPELINE)
def test_code_lists_are_the_imports(graph, name):
    wanted = {f"{module.replace('.', '/')}.py" for module in imported(graph, name)}
    extra = {entry for entry in listed(name) if not entry.endswith(".py")}  # templates
    right = "\n".join(f"      - {path}" for path in sorted(wanted))
    assert set(listed(name)) - extra == wanted, f"dvc.yaml: {name}: deps of code should be\n{right}"
    assert len(listed(name)) == len(set(listed(name)))
    assert all((PROJECT / path).exists() for path in extra)


@pytest.mark.parametrize("name", PIPELINE)
def test_a_stage_declares_the_params_it_reads(name):
    """Every `config.X` of the module is under `params:`, or a changed number would go unnoticed."""
    read = {
        node.attr
        for path in (f"{name}.py", "common.py")
        for node in ast.walk(ast.parse((PROJECT / "sum" / "stages" / path).read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "config"
        if path != "common.py" or "loop_options" in (PROJECT / "sum" / "stages" / f"{name}.py").read_text()
    }
    declared = {entry.split(".")[0] for entry in params(name)}
    assert declared >= read - NEUTRAL_PARAMS - ONLY_WORDS.get(name, set())
    assert declared <= read, f"{name} declares what it does not read"


@pytest.mark.parametrize("name", PIPELINE)
def test_defaults_of_settings_are_params_too(name):
    """A number that params.yaml leaves out comes from a settings class: DVC watches those of the stage."""
    own = {entry.split(".")[0] for entry in params(name)} - {"seed"}
    shared = {"datasets", "budgets", "model"}  # other stages' tables are watched where they are read for good
    wanted = {kind for entry in own - shared for kind in classes(SECTIONS[entry])}
    wanted |= classes(DatasetConfig) if name == "ingest" else set()
    wanted |= {named(BudgetConfig)} if name == "finetune" else set()
    tables = [entry for entry in stage(name)["params"] if isinstance(entry, dict)]
    assert {f"{file}:{kind}" for table in tables for file, kinds in table.items() for kind in kinds} == wanted


@pytest.mark.parametrize("name", PIPELINE)
def test_declared_params_exist(name):
    for entry in params(name):
        for budget in BUDGETS:
            value: Any = PARAMS
            for key in entry.replace("${key}", budget).split("."):
                assert key in value, f"dvc.yaml: {name}: params.yaml has no {entry}"
                value = value[key]


def test_every_budget_has_its_stages_deployment_metrics_and_plot():
    """A new budget is one entry in params.yaml, and one here and there: this says where."""
    assert {name for name in STAGES if STAGES[name].per == "budget"} == {"finetune", "check_evaluation", "register"}
    for name in ("finetune", "check_evaluation", "register"):
        assert DVC["stages"][name]["foreach"] == "${budgets}"
    assert DVC["stages"]["evaluate"]["foreach"] == {
        "base": "${model.checkpoint}",
        **{budget: f"data/models/{budget}/model.safetensors" for budget in BUDGETS},
    }
    for budget in BUDGETS:
        assert {f"data/models/{budget}/summary.json", f"data/evaluation/{budget}/figures.json"} <= set(DVC["metrics"])
        assert f"data/models/{budget}/history.csv" in DVC["plots"][0]["loss by budget"]["y"]
    for task, plot in zip((*TASK_ORDER, "all"), DVC["plots"][1:], strict=True):
        (body,) = plot.values()
        assert body["y"] == {f"data/evaluation/{model}/{CURVES}": task for model in ("base", *BUDGETS)}
    deployments = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    budgets = {entry["name"]: entry["parameters"]["budget"] for entry in deployments if "parameters" in entry}
    assert budgets == {f"ft-{b}": b for b in BUDGETS}
    assert {entry["name"] for entry in deployments} - set(budgets) == {"ablation"}


def test_commands_are_the_ones_of_the_command_line():
    for name in PIPELINE:
        word = " ${key}" if STAGES[name].per else ""
        assert stage(name)["cmd"] == f"python -m sum {name}{word}"


def test_no_interpolation_in_params():
    """OmegaConf would resolve it, DVC would record it literally and miss a change."""
    assert "${" not in str(PARAMS)


def test_the_default_config_is_what_the_pipeline_reads():
    config = load_config(root=PROJECT)
    assert list(config.budgets) == BUDGETS
    assert (PROJECT / config.model.checkpoint).suffix == ".safetensors"


def test_telemetry_is_off():
    text = (PROJECT / ".dvc" / "config").read_text()
    assert "analytics = false" in text
    assert "check_update = false" in text
