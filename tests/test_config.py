"""params.yaml and everything in examples/ loads; what is wrong is refused by path, in one sentence."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from sum.commands.use import check
from sum.config import load_config
from sum.errors import ConfigError, MissingInput
from sum.stages.common import training_device
from sum.training_settings import EarlyStopConfig, FinetuneOptimConfig

PROJECT = Path(__file__).parents[1]
EXAMPLES = sorted((PROJECT / "examples").glob("*.yaml"))
SHIPPED = [PROJECT / "params.yaml", *EXAMPLES]


def names(path: Path) -> str:
    return str(path.relative_to(PROJECT))


@pytest.mark.parametrize("path", SHIPPED, ids=names)
def test_shipped_params_load(path):
    check(path.read_bytes(), source=str(path))


@pytest.mark.parametrize("path", SHIPPED, ids=names)
def test_shipped_params_serve_every_stage_and_deployment(path):
    """`use FILE` then `dvc repro` must find each section, and the three budgets that dvc.yaml and prefect.yaml name."""
    tree = yaml.safe_load(path.read_text())
    assert set(yaml.safe_load((PROJECT / "params.yaml").read_text())) == set(tree)
    assert list(tree["budgets"]) == ["small", "medium", "large"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+nonsense=1", "nonsense: Unexpected keyword argument"),
        ("+finetune.optim.learning_rate=1", "finetune.optim.learning_rate: Unexpected keyword argument"),
        ("nonsense=1", "unknown key 'nonsense'"),
        ("seed=many", "seed: Input should be a valid integer"),
        ("device=tpu", "device: Input should be 'auto', 'cpu', 'cuda' or 'mps'"),
        ("finetune.method=magic", "finetune.method: Input should be"),
        ("finetune.optim.steps=0", "finetune.optim: steps must be at least 1, got 0"),
        ("finetune.optim.lr=-1", "finetune.optim: lr must be above 0"),
        ("finetune.optim.warmup_steps=100000", "exceed steps"),
        ("finetune.optim.drop_last=2", "drop_last and decay_steps are two ways to end: set one of them to 0"),
        ("finetune.arch=hyper", "finetune.arch"),
        ("finetune.lora.encoder=false", "lora wants encoder or decoder to be true; finetune.arch switches it off"),
        ("finetune.adapter.ratio=0", "finetune.adapter: ratio must be in (0, 1], got 0"),
        ("finetune.adapter.scale=-1", "finetune.adapter: scale must be above 0, got -1"),
        ("seed=-1", "seed must be at least 0, got -1"),
        (f"seed={2**31}", "seed must be below 2**31, got 2147483648"),
        ("finetune.rounds.theta=-0.1", "finetune.rounds: theta must be at least 0, got -0.1"),
        ("+budgets.base=${budgets.small}", "budgets.base: 'base' is the model before any tuning"),
        ("+budgets.champion=${budgets.small}", "budgets.champion: 'champion' is the alias"),
        ("+budgets.v2=${budgets.small}", "budgets.v2: 'v2' is a name MLflow gives"),
        ("+datasets.all=${datasets.demo_part}", "datasets.all: 'all' is where MLflow keeps"),
        ("finetune.rounds.theta=1", "finetune.rounds: theta must be below 1"),
        ("budgets.small.human=[]", "budgets.small: human must name at least one data set"),
        ("budgets.small.human=[demo_salien]", "budgets.small.human: no data set 'demo_salien'; datasets: demo_"),
        ("budgets.small.human=[demo_salient_test]", "has split 'test', wants 'train'"),
        ("budgets.small.unlabelled=[demo_salient]", "has split 'train', wants 'unlabelled'"),
        ("datasets.demo_part.kind=images", "kind 'images' and split 'unlabelled' belong together"),
        ("datasets.demo_part.task=unspecified", "human masks need a task"),
        ("pseudo_label.crop_n_layers=-1", "pseudo_label: crop_n_layers must be at least 0, got -1"),
        ("pseudo_label.crop_n_layers=5", "pseudo_label: crop_n_layers must be at most 4 (340 crops), got 5"),
        ("pseudo_label.crop_overlap_ratio=1", "pseudo_label: crop_overlap_ratio must be in [0, 1), got 1"),
        ("pseudo_label.crop_nms_thresh=2", "pseudo_label: crop_nms_thresh must be in 0..1, got 2"),
        ("pseudo_label.crop_n_points_downscale_factor=0", "crop_n_points_downscale_factor must be at least 1, got 0"),
        ("pseudo_label.min_mask_region_area=-1", "pseudo_label: min_mask_region_area must be at least 0, got -1"),
        ("pseudo_label.precision=fp8", "pseudo_label.precision: Input should be 'fp32' or 'bf16'"),
        ("~model.checkpoint", None),  # has a default
        ("~datasets.demo_part.licence", "datasets.demo_part.licence: Field required"),
        ("~budgets", "budgets: Field required"),
        ("seed", "seed"),  # no value
    ],
)
def test_a_bad_override_names_the_key(override, message):
    if message is None:
        load_config([override], root=PROJECT)
        return
    with pytest.raises(ConfigError) as caught:
        load_config([override], root=PROJECT)
    assert message in str(caught.value)
    assert str(caught.value).startswith(("params.yaml: ", "command line: "))


def test_crop_layers_without_a_point_are_refused():
    layers = ["pseudo_label.crop_n_layers=2", "pseudo_label.crop_n_points_downscale_factor={}"]
    load_config([layers[0], layers[1].format(4)], root=PROJECT)  # 16, 4 and 1 points a side
    with pytest.raises(ConfigError, match="points_per_side 16 is no point at all after crop_n_layers 2"):
        load_config([layers[0], layers[1].format(5)], root=PROJECT)


@pytest.mark.parametrize("table", ["budgets", "datasets"])
@pytest.mark.parametrize("name", ["my set", "a/b", "a.b", "größe", ""])
def test_a_name_that_cannot_be_a_file_is_refused(table, name):
    tree = yaml.safe_load((PROJECT / "params.yaml").read_text())
    tree[table][name] = next(iter(tree[table].values()))
    with pytest.raises(ConfigError, match="a name has only letters, digits, _ and -") as caught:
        check(yaml.safe_dump(tree).encode(), source="mine.yaml")
    assert f"mine.yaml: (top level): {table}.{name}: " in str(caught.value)


def test_the_largest_seed_is_one_that_torch_takes():
    seed = load_config([f"seed={2**31 - 1}"], root=PROJECT).seed
    torch.Generator().manual_seed((seed << 32) + 2**32 - 1)  # as Loop.run does


def test_every_fault_is_told_at_once():
    with pytest.raises(ConfigError) as caught:
        load_config(["seed=x", "device=y"], root=PROJECT)
    assert len(str(caught.value).splitlines()) == 2


def test_overrides_change_only_what_they_name():
    plain, changed = load_config(root=PROJECT), load_config(["finetune.optim.checkpoint_every=77"], root=PROJECT)
    assert changed.finetune.optim.checkpoint_every == 77
    assert changed.refine == plain.refine


@pytest.mark.parametrize("text", ["a: [1", "a: 1\na: 2\n", "- 1\n", "", "a: ${b}\n"])
def test_a_file_that_is_no_params_file_is_one_error(text):
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        check(text.encode(), source="mine.yaml")


def test_without_params_the_error_says_where_to_get_one(tmp_path):
    with pytest.raises(MissingInput, match=r"params.yaml is missing"):
        load_config(root=tmp_path)


def test_a_broken_yaml_is_one_error(tmp_path):
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    with (tmp_path / "params.yaml").open("a") as file:
        file.write("  : [\n")
    with pytest.raises(ConfigError, match=r"params\.yaml"):
        load_config(root=tmp_path)


@pytest.mark.parametrize("key", ["finetune.metod", "finetun.method"])
def test_an_unknown_key_on_the_command_line_is_answered_with_the_nearest(key):
    with pytest.raises(ConfigError) as caught:
        load_config([f"{key}=vanilla"], root=PROJECT)
    assert str(caught.value).startswith(f"command line: unknown key '{key}'. Did you mean 'finetune.method'?")


def test_a_key_that_params_yaml_leaves_out_can_be_set_on_the_command_line():
    optim = load_config(["finetune.optim.precision=bf16", "finetune.optim.mask_chunk=8"], root=PROJECT).finetune.optim
    assert (optim.precision, optim.mask_chunk, optim.workers) == ("bf16", 8, 0)
    with pytest.raises(ConfigError, match=r"Did you mean 'finetune\.optim\.mask_chunk'"):
        load_config(["finetune.optim.mask_chunks=8"], root=PROJECT)


def test_a_training_goes_on_when_only_its_pace_or_its_memory_is_changed():
    """Its work folder is named by of_weights."""

    plain = load_config().finetune
    stopping = replace(plain, early_stop=EarlyStopConfig(patience=3))

    def named(base, *, optim=None, **changes):
        return replace(base, optim=replace(base.optim, **(optim or {})), **changes).of_weights()

    pace, rarely = {"workers": 3, "max_skipped": 4}, {"checkpoint_every": 7}
    assert named(plain, optim=pace | rarely, recompute_encoder=True) == named(plain)
    assert named(stopping, optim=pace, recompute_encoder=True) == named(stopping)
    assert named(stopping, optim=rarely) != named(stopping)  # the weights are judged at each checkpoint
    assert named(plain, accumulate=2) != named(plain)
    for optim in ({"mask_chunk": 2}, {"lr": 0.5}, {"precision": "bf16"}):
        assert named(plain, optim=optim) != named(plain)


@pytest.mark.parametrize(
    ("name", "cuda", "want"), [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")]
)
def test_training_never_chooses_a_device_without_float64(monkeypatch, name, cuda, want):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert training_device(name).type == want
    with pytest.raises(ConfigError, match=r"device: 'mps' has no float64.* cpu, or cuda"):
        training_device("mps")


def test_fine_tuning_is_by_default_the_papers(tmp_path: Path) -> None:
    """Appendix B.1: AdamW, learning rate 1e-5, layer-wise decay 0.8, 6,000 iterations of 40 images with 30 masks."""
    shutil.copy(PROJECT / "examples/paper.yaml", tmp_path / "params.yaml")
    optim = load_config(root=tmp_path).finetune.optim
    assert (optim.lr, optim.steps, optim.images_per_batch, optim.masks_per_image) == (1e-5, 6000, 40, 30)
    assert optim.layer_decay == FinetuneOptimConfig(steps=1, lr=1, images_per_batch=1).layer_decay == 0.8
    assert optim.masks_per_image == FinetuneOptimConfig(steps=1, lr=1, images_per_batch=1).masks_per_image
    assert (optim.decay_steps, optim.ema) == (0, 0)


@pytest.mark.parametrize(("name", "refused"), [("auto", True), ("cuda", True), ("cpu", False)])
def test_each_process_that_trains_has_a_gpu(monkeypatch: pytest.MonkeyPatch, name: str, refused: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    training_device(name)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"3 processes .* there are 2\.") if refused else nullcontext():
        training_device(name)


def test_an_error_says_whether_the_file_or_the_command_line_is_wrong(tmp_path):
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text().replace("seed: 0", "seed: many", 1))
    with pytest.raises(ConfigError) as caught:
        load_config(["finetune.rounds.theta=1", "evaluate.rounds=none"], root=tmp_path)
    first, second, third = sorted(str(caught.value).splitlines())
    assert first.startswith("command line: evaluate.rounds: ")
    assert second.startswith("command line: finetune.rounds: theta must be below 1")
    assert third.startswith("params.yaml: seed: ")
