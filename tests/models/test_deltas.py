"""What was trained, alone: it gives back the very model on its own base, and nothing on another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sum.errors import CheckpointError, ConfigError
from sum.models.archs import ARCHS, ArchSpec
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import backbone_of, fingerprint, load_base, load_segmenter, save_segmenter, save_tensors
from sum.models.deltas import DELTA, WEIGHTS, is_delta, load_delta, save_both
from sum.models.exports import plain_sam
from sum.models.hq import HqSegmenter
from sum.models.parts import select_parts
from sum.models.segmenter import Prompts, Segmenter
from sum.predict import Predictor

SPECS = {
    **{name: ArchSpec(name) for name in ARCHS},
    "lora everywhere": ArchSpec("lora", {"decoder": True, "rank": 2, "alpha": 3.0}),
    "adapter, other sizes": ArchSpec("adapter", {"ratio": 0.1, "scale": 2.0}),
    "hq, token only": ArchSpec("hq", {"token_only": True}),
}

QUICK = ("lora", "adapter", "hq")
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in SPECS]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny.safetensors"
    torch.manual_seed(0)
    save_segmenter(path, Segmenter(BACKBONES["tiny"].build(), backbone="tiny"), about={})
    return path


def trained(base: Path, spec: ArchSpec, folder: Path) -> Segmenter:
    """A model whose trained numbers were changed, saved both ways."""
    model = select_parts(load_base(base, backbone="tiny"), spec=spec, task_prompt=True, seed=5)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += 0.05 * torch.randn(value.shape, generator=chance)
    folder.mkdir(exist_ok=True)
    save_both(folder, model, base=fingerprint(base), about={"budget": "small"})
    return model


@torch.no_grad()
def answers(model: Segmenter) -> torch.Tensor:
    image = torch.randint(0, 256, (1, 3, 128, 128), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    points = Prompts.from_points(torch.tensor([[[40.0, 50.0]]]), torch.ones(1, 1, dtype=torch.int64))
    embedding = model.encode(image, torch.tensor([[128, 128]]))
    return model.decode(embedding, torch.tensor([0]), points, multimask=True, task=torch.tensor([1])).logits


@pytest.mark.parametrize("name", NAMES)
def test_both_files_give_back_the_model_to_the_last_bit(base: Path, name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    model = trained(base, spec, tmp_path)
    whole = load_segmenter(tmp_path / WEIGHTS, backbone="tiny")
    again = load_delta(tmp_path / DELTA, base=base)
    assert type(whole) is type(again) is (HqSegmenter if spec.name == "hq" else Segmenter)
    assert again.arch == spec
    assert whole.arch == (spec if spec.name in ("hq", "adapter") else ArchSpec())
    states = [each.state_dict() for each in (model, whole, again)]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
        assert torch.equal(value, states[2][key]), key
    assert torch.equal(answers(whole), answers(again))
    assert not whole.training
    assert not again.training
    assert (is_delta(tmp_path / DELTA), is_delta(tmp_path / WEIGHTS)) == (True, False)
    assert backbone_of(tmp_path / WEIGHTS) == "tiny"


@pytest.mark.parametrize("name", NAMES)
def test_a_delta_holds_what_trained_and_the_whole_has_sam_s_names(base: Path, name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    trained(base, spec, tmp_path)
    delta, stock, whole = (load_file(path) for path in (tmp_path / DELTA, base, tmp_path / WEIGHTS))
    beside = {key for key in whole if key.startswith("hq.") or ".adapter." in key}
    assert whole.keys() - beside == stock.keys()
    assert bool(beside) == (not spec.arch.merges)
    factors = {key for key in delta if ".lora_" in key}
    assert bool(factors) == (spec.arch.adds == "lora")
    assert all(torch.equal(value, whole[key]) for key, value in delta.items() if key not in factors)
    parts = {key.split(".")[0] for key in delta if key not in factors | beside and key != "task_prompt"}
    assert parts == spec.own
    assert "task_prompt" in delta
    with safe_open(tmp_path / DELTA, framework="pt") as file:
        head = file.metadata()
    assert (head["base"], head["backbone"], head["budget"]) == (fingerprint(base), "tiny", "small")
    assert ArchSpec.from_json(head["arch"]) == spec


@pytest.mark.parametrize("name", NAMES)
def test_a_predictor_of_either_file_says_the_same_and_exports_what_merges(
    base: Path, name: str, tmp_path: Path
) -> None:
    trained(base, SPECS[name], tmp_path / "mine")
    whole = Predictor(tmp_path / "mine", quiet=True)
    alone = Predictor(tmp_path / "mine" / DELTA, base=base, quiet=True)
    photo = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    click = {"point_coords": np.array([[40.0, 50.0]]), "point_labels": np.array([1])}
    said = []
    for predictor in (whole, alone):
        predictor.set_image(photo)
        first = predictor.predict(**click, task="salient")
        said.append((*first, *predictor.predict(**click, mask_input=first[2][:1], multimask_output=False)))
        assert len(first[0]) == (1 if SPECS[name].name == "hq" else 3)
    for only in (False, True):
        if SPECS[name].name == "hq":
            other = Predictor(tmp_path / "mine", quiet=True, hq_token_only=only)
            other.set_image(photo)
            same = np.array_equal(other.predict(**click, task="salient")[2], said[0][2])
            assert same == (only == SPECS[name].options["token_only"])
        else:
            with pytest.raises(ConfigError, match="this model has no head of HQ-SAM"):
                Predictor(tmp_path / "mine", quiet=True, hq_token_only=only)
    for ours, theirs in zip(*said, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    if SPECS[name].arch.merges:
        assert plain_sam(alone.segmenter, task="salient").keys() == BACKBONES["tiny"].build().state_dict().keys()
    else:
        with pytest.raises(CheckpointError, match="no plain SAM can hold this model"):
            plain_sam(alone.segmenter, task="salient")


def test_a_method_without_task_prompt_has_the_base_s_in_its_delta(base: Path, tmp_path: Path) -> None:
    model = select_parts(load_base(base, backbone="tiny"), spec=ArchSpec("decoder"), task_prompt=False, seed=0)
    save_both(tmp_path, model, base=fingerprint(base), about={})
    assert torch.equal(load_delta(tmp_path / DELTA, base=base).task_prompt, model.task_prompt)


def test_another_base_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    trained(base, ArchSpec("lora"), tmp_path)
    other = tmp_path / "other.safetensors"
    torch.manual_seed(9)
    save_segmenter(other, Segmenter(BACKBONES["tiny"].build(), backbone="tiny"), about={})
    want = rf"trained from weights of sha256 {fingerprint(base)[:12]}, .*other.safetensors is {fingerprint(other)[:12]}"
    with pytest.raises(CheckpointError, match=want):
        load_delta(tmp_path / DELTA, base=other)


def test_damaged_and_foreign_files_are_refused_in_a_sentence(base: Path, tmp_path: Path) -> None:
    trained(base, ArchSpec("adapter"), tmp_path)
    whole = (tmp_path / DELTA).read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_delta(cut, base=base)
    with pytest.raises(CheckpointError, match="wants a delta"):
        load_delta(tmp_path / WEIGHTS, base=base)
    with pytest.raises(CheckpointError, match="no such weights file"):
        load_delta(tmp_path / "none.safetensors", base=base)
    tensors = load_file(tmp_path / DELTA)
    head = {"kind": "delta", "base": fingerprint(base), "backbone": "tiny"}
    bad = tmp_path / "bad.safetensors"
    for arch, found, want in (
        ('{"name": "hyper", "options": {}}', tensors, "unknown 'hyper'"),
        ("none", tensors, "describes no architecture"),
        (json.dumps({"name": "lora", "options": {"rank": "4"}}), tensors, "describes no architecture"),
        (json.dumps({"name": "lora", "options": {"depth": 4}}), tensors, "arch 'lora' takes encoder, decoder"),
        (ArchSpec("decoder").to_json(), tensors, "has unknown 'image_encoder"),
        (ArchSpec("adapter").to_json(), {**tensors, "task_prompt": torch.zeros(4, 3)}, r"shape \(4, 3\)"),
        (ArchSpec("adapter").to_json(), {"task_prompt": tensors["task_prompt"]}, "misses 'sam."),
    ):
        save_tensors(bad, found, about={**head, "arch": arch})
        with pytest.raises(CheckpointError, match=want) as caught:
            load_delta(bad, base=base)
        assert "\n" not in str(caught.value)


def test_a_delta_is_no_whole_model_and_what_has_more_than_sam_is_no_base(base: Path, tmp_path: Path) -> None:
    for name in ("hq", "adapter"):
        trained(base, ArchSpec(name), tmp_path / name)
        with pytest.raises(CheckpointError, match=f"trained with finetune.arch '{name}' and is no plain SAM"):
            load_base(tmp_path / name / WEIGHTS, backbone="tiny")
        with pytest.raises(CheckpointError, match="holds what a training changed only"):
            load_segmenter(tmp_path / name / DELTA, backbone="tiny")
    lora = tmp_path / "lora"
    trained(base, ArchSpec("lora"), lora)
    assert load_base(lora / WEIGHTS, backbone="tiny").arch == ArchSpec()


def test_a_header_that_does_not_fit_the_file_is_refused(base: Path, tmp_path: Path) -> None:
    trained(base, ArchSpec("hq"), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    bad = tmp_path / "bad.safetensors"
    for arch, found, want in (
        (None, tensors, "has unknown 'hq."),
        (ArchSpec("hq").to_json(), load_file(base), "misses 'hq."),
        (ArchSpec("adapter").to_json(), load_file(base), "with arch 'adapter': misses 'image_encoder"),
        ("{}", tensors, "describes no architecture"),
    ):
        save_tensors(bad, found, about={"backbone": "tiny"} | ({"arch": arch} if arch else {}))
        with pytest.raises(CheckpointError, match=want):
            load_segmenter(bad, backbone="tiny")
