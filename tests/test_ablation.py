"""The plan of an ablation: rows and runs of a grid, what each is started with, what is refused, where it may run."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from sum import ablation
from sum.ablation import BASE, Row, Run, chosen, differing, overrides, refuse_words, rows_of, run_code, runs_of
from sum.ablation_settings import ARCH_NAMES, METHOD_NAMES, AblationConfig
from sum.cli import main
from sum.commands.ablate_inputs import in_short, settings_of
from sum.commands.ablate_runner import slots
from sum.config import check_config, compose, load_config
from sum.errors import ConfigError
from sum.methods import METHODS
from sum.models.archs import ARCHS

PROJECT = Path(__file__).parents[1]
PAIRS = [("human_only", "full"), ("sum", "full"), ("human_only", "hq"), ("sum", "decoder+prompt_encoder")]
ROWS = rows_of(["small", "my-set"], PAIRS)


def test_a_grid_is_all_pairs_of_each_entry_at_each_budget_with_each_seed() -> None:
    grid = "ablation.grid=[{methods:[human_only,sum],archs:[full]},{methods:[sum],archs:[hq,lora]}]"
    found = load_config([grid, "ablation.budgets=[large,small]", "ablation.seeds=[3,1]"], root=PROJECT).ablation
    pairs = [("human_only", "full"), ("sum", "full"), ("sum", "hq"), ("sum", "lora")]
    assert found.pairs() == pairs
    rows = rows_of(found.budgets, found.pairs())
    assert rows == [Row(budget, *pair) for budget in ("large", "small") for pair in pairs]
    runs = runs_of(rows, found.seeds)
    assert [run.seed for run in runs] == [3] * 8 + [1] * 8  # every row once before any row twice
    assert {run.row for run in runs} == set(rows)
    assert len({run.name for run in runs}) == 16


def test_every_method_can_be_a_row() -> None:
    assert set(METHODS) == set(METHOD_NAMES)
    assert set(ARCHS) == set(ARCH_NAMES)
    assert ablation.FULL in ARCHS


SECTION = TypeAdapter(AblationConfig)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"grid": [{"methods": ["magic"]}]}, "Input should be 'sum', 'vanilla'"),
        ({"grid": [{"methods": ["sum"], "archs": ["tiny"]}]}, "Input should be 'full', 'decoder'"),
        ({"grid": [{"methods": ["sum", "sum"]}]}, "methods wants names, each once"),
        ({"grid": [{"methods": []}]}, "methods wants names"),
        (
            {"grid": [{"methods": ["sum"]}, {"methods": ["sum"], "archs": ["hq", "full"]}]},
            "grid: the pair (sum, full) stands in it twice",
        ),
        ({"budgets": ["small", "small"]}, "budgets must be named once each"),
        ({"seeds": [1, 1]}, "seeds wants at least one, each once"),
        ({"seeds": []}, "seeds wants at least one"),
        ({"seeds": [-1]}, "seeds must lie in 0..2"),
        ({"what": 1}, "Unexpected keyword argument"),
        ({"settings": {"magic": {}}}, "settings.magic: no method or arch; known: sum"),
        ({"settings": {"sum": {"optim": {"lr": 1}}}}, "settings.sum.optim: write keys with dots"),
        # a row may not train on other data, steps or prompts than the others
        (
            {"settings": {"hq": {"optim.steps": 1}}},
            "settings.hq.optim.steps: set finetune.optim.steps for all of them instead: all rows have the same steps",
        ),
        ({"settings": {"hq": {"optim.images_per_batch": 1}}}, "the images of a step"),
        ({"settings": {"hq": {"optim.masks_per_image": 1}}}, "the masks of a step"),
        ({"settings": {"hq": {"rounds.rounds": 1}}}, "the rounds of a step"),
        ({"settings": {"hq": {"rounds.box_odds": 1}}}, "the kinds of prompt"),
        ({"settings": {"hq": {"augment.flip": 0.5}}}, "all rows have the same the images"),
        ({"settings": {"hq": {"early_stop.patience": 1}}}, "steps, and the images"),
        ({"settings": {"hq": {"method": "sum"}}}, "settings.hq.method: is the row's own name"),
        ({"settings": {"hq": {"optim.lrr": 1}}}, "no number 'optim.lrr'; did you mean 'optim.lr'?"),
        ({"settings": {"hq": {"seed": 1}}}, "`finetune` has no number 'seed'"),
    ],
)
def test_a_wrong_grid_is_refused_as_params_are_read(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        SECTION.validate_python(section)
    assert message in str(refusal.value)


def test_budgets_of_the_grid_are_looked_at_by_ablate_alone(capsys, monkeypatch) -> None:
    assert load_config(["ablation.budgets=[huge]"], root=PROJECT).ablation.budgets == ["huge"]  # no stage minds
    monkeypatch.chdir(PROJECT)
    assert main(["ablate", "--dry-run", "ablation.budgets=[lage]"]) == 2
    assert (
        "ablation.budgets: unknown 'lage'. Did you mean 'large'? Known: large, medium, small."
        in capsys.readouterr().err
    )


def test_an_empty_grid_is_one_error_where_it_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"ablation\.grid names nothing"):
        rows_of(["small"], [])
    with pytest.raises(ConfigError, match=r"ablation\.budgets names nothing"):
        rows_of([], PAIRS)


@pytest.mark.parametrize(
    ("only", "count"),
    [
        ([], 8),
        (["small-sum-full"], 1),
        (["human_only-hq"], 2),
        (["sum"], 4),
        (["hq"], 2),
        (["small-*"], 4),
        (["my-set-human_only-full", "decoder*"], 3),
    ],
)
def test_only_chooses_rows(only: list[str], count: int) -> None:
    found = chosen(ROWS, only)
    assert len(found) == count
    assert found == [row for row in ROWS if row in found]  # in the grid's order


def test_only_refuses_a_word_that_means_no_row() -> None:
    with pytest.raises(ConfigError, match="--only su: no such row; rows: small-human_only-full, "):
        chosen(ROWS, ["sum", "su"])


def test_a_run_gets_the_words_of_the_call_then_its_own() -> None:
    settings = {"sum": {"optim.lr": 0.01, "optim.ema": 0.9}, "hq": {"optim.lr": 0.001, "augment.scale": [0.5, 2.0]}}
    words = ["finetune.optim.lr=1", "ablation.seeds=[9]", "finetune.optim.steps=7", "seed=5", "++ablation.budgets=[]"]
    own = overrides(Run(Row("small", "sum", "hq"), 3), words, settings)
    assert own == [
        "finetune.optim.steps=7",
        "finetune.method=sum",
        "finetune.arch=hq",
        "seed=3",
        "finetune.optim.lr=0.001",  # of the arch, over the method's
        "finetune.optim.ema=0.9",
        "finetune.augment.scale=[0.5, 2.0]",
    ]
    full = overrides(Run(Row("small", "vanilla", "full"), 0), words, settings)
    assert full == [
        "finetune.optim.lr=1",
        "finetune.optim.steps=7",
        "finetune.method=vanilla",
        "finetune.arch=full",
        "seed=0",
    ]
    assert overrides(Run(None), words, settings) == ["finetune.optim.lr=1", "finetune.optim.steps=7", "seed=5"]


def test_settings_of_rows_are_words_that_params_take() -> None:
    run, rows = Run(Row("small", "human_only", "full"), 2), {"human_only": {"augment.scale": [0.5, 2.0]}}
    rows |= {"full": {"optim.ema": 0.5, "optim.lr": 1e-5, "optim.mask_chunk": None, "recompute_encoder": True}}
    words = overrides(run, [], rows)
    config = load_config(words, root=PROJECT)
    assert config == settings_of(run, compose([], folder=PROJECT), rows)
    assert (config.seed, config.finetune.method, config.finetune.optim.ema) == (2, "human_only", 0.5)
    assert config.finetune.augment.scale == [0.5, 2.0]


def test_tags_name_the_row() -> None:
    tags = Run(Row("small", "sum", "hq"), 3).tags("mine")
    own = {"budget": "small", "method": "sum", "arch": "hq", "seed": "3"}
    assert tags == {"ablation": "mine", "row": "small-sum-hq", **own}
    assert Run(None).tags("mine") == {"ablation": "mine", "row": BASE}


def test_what_differs_is_told_by_key() -> None:
    assert differing({"a": 1, "b": "2", "c": "x" * 64}, {"a": "1", "b": "3", "d": None}) == [
        "b: 2, now 3",
        "c: xxxxxxxxxxxx..., now none",
        "d: none, now None",
    ]


def test_code_of_tables_and_commands_is_not_what_runs_are_made_of(tmp_path: Path, monkeypatch) -> None:
    names = (
        "engine.py",
        "data/labels.py",
        "commands/use.py",
        "serving.py",
        "predict.py",
        "ablation.py",
        "data/ablation_tables.py",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    monkeypatch.setattr(ablation, "PACKAGE", tmp_path)

    def now() -> str:
        run_code.cache_clear()
        return run_code()

    before = now()
    for name in names[2:]:
        (tmp_path / name).write_text("2\n")
    assert now() == before
    (tmp_path / names[1]).write_text("2\n")
    assert now() != before
    run_code.cache_clear()


@pytest.mark.parametrize(
    ("jobs", "device", "environment", "places"),
    [
        (None, "cpu", {"OMP_NUM_THREADS": "8"}, [{"OMP_NUM_THREADS": "8"}]),
        (3, "cpu", {"OMP_NUM_THREADS": "8"}, [{"OMP_NUM_THREADS": "2"}] * 3),
        (4, "cpu", {"OMP_NUM_THREADS": "2"}, [{"OMP_NUM_THREADS": "1"}] * 4),
        (None, "cuda", {"CUDA_VISIBLE_DEVICES": "2,5"}, [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}]),
        (1, "cuda", {"CUDA_VISIBLE_DEVICES": "2,5"}, [{"CUDA_VISIBLE_DEVICES": "2"}]),
        (None, "cuda", {"CUDA_VISIBLE_DEVICES": "2,5", "SUM_PROCESSES": "2"}, [{}]),
    ],
)
def test_a_gpu_is_one_runs_and_cores_are_shared(jobs, device, environment, places) -> None:
    assert slots(jobs, device=device, environment=environment) == places


@pytest.mark.parametrize(
    ("jobs", "device", "environment", "message"),
    [
        (0, "cpu", {}, "--jobs must be at least 1"),
        (3, "cuda", {"CUDA_VISIBLE_DEVICES": "0,1"}, "there are 2 GPUs"),
        (2, "cpu", {"SUM_PROCESSES": "2"}, "with SUM_PROCESSES a run has all devices"),
    ],
)
def test_more_jobs_than_places_are_refused(jobs, device, environment, message) -> None:
    with pytest.raises(ConfigError, match=message):
        slots(jobs, device=device, environment=environment)


def documented() -> list[list[str]]:
    """The words of every `python -m sum ablate` that README and docs show as a command."""
    found = []
    for page in (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))):
        for line in page.read_text().splitlines():
            shown = re.match(r"\s*python -m sum ablate(.*)$", line)
            found += [shlex.split(shown[1], comments=True)] if shown else []
            found += [shlex.split(words) for words in re.findall(r"`python -m sum ablate ([^`]*=[^`]*)`", line)]
    return found


def test_documented_commands_are_runs_that_can_be() -> None:
    commands = documented()
    assert len(commands) >= 6
    for words in commands:
        given = [word for word in words if re.match(r"[a-z_.]+=", word)]
        refuse_words(given)
        tree = compose(given, folder=PROJECT)
        section = check_config(tree, source="params.yaml").ablation
        rows = rows_of(section.budgets, section.pairs())
        for row in rows:
            settings_of(Run(row), tree, section.settings)
        if "--only" in words:
            after = itertools.takewhile(lambda word: not word.startswith("-"), words[words.index("--only") + 1 :])
            assert chosen(rows, list(after))


def test_what_differs_is_told_steps_first_and_what_is_left_out_counted() -> None:
    found = [f"{key}: 1, now 2" for key in ("code", "data", "evaluate.rounds", "finetune.optim.lr", "seed")]
    steps = "finetune.optim.steps: 120, now 60"
    assert in_short(found[:4]) == "; ".join(found[:4])
    assert in_short([*found, steps]) == f"{steps}; {'; '.join(found[:3])} (+2 more)"
    assert in_short([]) == ""


def test_mappings_of_the_command_line_merge_and_lists_are_replaced() -> None:
    words = ["ablation.settings={hq: {optim.lr: 0.002}}", "ablation.seeds=[5]"]
    before, after = (compose(said, folder=PROJECT)["ablation"] for said in ([], words))
    assert after["settings"] == before["settings"] | {"hq": before["settings"]["hq"] | {"optim.lr": 0.002}}
    assert after["seeds"] == [5]


def test_a_wrong_number_is_blamed_on_who_gave_it() -> None:
    tree = compose(["finetune.optim.lr=-1"], folder=PROJECT)
    for words, of_row, origin in (
        (["finetune.optim.lr=-1"], {}, "command line"),
        ([], {}, "params.yaml"),
        (["finetune.optim.lr=-1"], {"sum": {"optim.lr": -2}}, "params.yaml"),  # the row's own wins over the word
    ):
        with pytest.raises(ConfigError, match=rf"^row small-sum-full: {origin}: finetune\.optim"):
            settings_of(Run(Row("small", "sum", "full")), tree, of_row, words=words)
