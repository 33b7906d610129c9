"""Plain SAM checkpoints: stock segment_anything, on the file alone, answers as Predictor does for the task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from segment_anything import SamPredictor, sam_model_registry
from torch import nn

from sum.cli import main
from sum.errors import CheckpointError, ConfigError
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import fingerprint, load_segmenter, save_segmenter
from sum.models.exports import export, loader, plain_sam
from sum.models.segmenter import TASKS, Segmenter
from sum.predict import Predictor

PROJECT = Path(__file__).parents[2]
CLICK = {"point_coords": np.array([[40.0, 30.0]]), "point_labels": np.array([1])}


def tuned(backbone: str, path: Path) -> Path:
    """Random weights with task vectors, saved as finetune saves them."""
    torch.manual_seed(4)
    model = Segmenter(BACKBONES[backbone].build(), backbone=backbone)
    model.task_prompt.data.normal_()
    save_segmenter(path, model, about={})
    return path


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 128, 3), dtype=np.uint8)


def assert_answers_agree(stock: SamPredictor, ours: Predictor, *, task: str) -> None:
    """First click, box, three and one outputs, and a later click with the logits of the first: every bit."""
    ours.set_image(picture())
    stock.set_image(picture())
    assert torch.equal(stock.features, ours.features)
    for prompt in (CLICK, {"box": np.array([3.0, 4.0, 60.0, 50.0])}):
        for multimask in (True, False):
            want = ours.predict(**prompt, multimask_output=multimask, task=task)
            found = stock.predict(**prompt, multimask_output=multimask)
            assert all(np.array_equal(a, b) for a, b in zip(want, found, strict=True))
    two: dict[str, Any] = {"point_coords": np.array([[40.0, 30.0], [9.0, 80.0]]), "point_labels": np.array([1, 0])}
    want = ours.predict(**two, mask_input=want[2], multimask_output=False, task=task)
    found = stock.predict(**two, mask_input=found[2], multimask_output=False)
    assert all(np.array_equal(a, b) for a, b in zip(want, found, strict=True))


@pytest.mark.parametrize(
    ("suffix", "task"), [*((".safetensors", task) for task in TASKS), (".pth", "part"), (".pth", "unspecified")]
)
def test_a_stock_sam_of_the_file_is_the_predictor_of_the_task(tmp_path: Path, suffix: str, task: str) -> None:
    weights, file = tuned("tiny", tmp_path / "model.safetensors"), tmp_path / f"plain{suffix}"
    digest = export(load_segmenter(weights, backbone="tiny"), file, task=task)
    assert digest == fingerprint(file)
    stock = BACKBONES["tiny"].build().eval()
    state = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
    stock.load_state_dict(state)  # strict: Meta's keys and no others
    assert_answers_agree(SamPredictor(stock), Predictor(weights, device="cpu"), task=task)
    again = load_segmenter(file, backbone="tiny")
    assert again.task_prompt.abs().max() == 0
    assert export(again, tmp_path / f"again{suffix}", task="unspecified") == digest or suffix == ".safetensors"


@pytest.mark.slow
def test_segment_anything_loads_a_vit_b_and_the_predictor_equals_it(tmp_path: Path) -> None:
    weights, file = tuned("vit_b", tmp_path / "model.safetensors"), tmp_path / "sam_vit_b_part.pth"
    ours = Predictor(weights, device="cpu")
    export(ours.segmenter, file, task="part")
    assert loader("vit_b", file) == 'sam = sam_model_registry["vit_b"](checkpoint="sam_vit_b_part.pth")'
    stock = sam_model_registry["vit_b"](checkpoint=str(file))
    metas = Predictor(file, device="cpu")
    for sam in (
        stock,
        ours.segmenter.sam,
        metas.segmenter.sam,
    ):  # a local and a global block of twelve: a CPU takes half a minute for all
        sam.image_encoder.blocks = sam.image_encoder.blocks[1:3]
    assert_answers_agree(SamPredictor(stock), ours, task="part")
    assert_answers_agree(SamPredictor(stock), metas, task="unspecified")  # of the file in Meta's format itself
    assert_answers_agree(SamPredictor(ours.segmenter.sam), ours, task="unspecified")


@pytest.mark.parametrize("backbone", ["vit_b", "vit_l", "vit_h"])
def test_the_keys_and_shapes_are_meta_s(backbone: str) -> None:
    with torch.device("meta"):
        model = Segmenter(BACKBONES[backbone].build(), backbone=backbone)
        wanted = sam_model_registry[backbone]().state_dict()
    found = plain_sam(model, task="entity")
    assert {name: value.shape for name, value in found.items()} == {name: t.shape for name, t in wanted.items()}


def test_what_no_sam_can_hold_is_refused_with_what_can_be_done(tmp_path: Path) -> None:
    model = load_segmenter(tuned("tiny", tmp_path / "m.safetensors"), backbone="tiny")
    model.sam.mask_decoder.hf_mlp = nn.Linear(2, 2)
    with pytest.raises(
        CheckpointError, match=r"'mask_decoder\.hf_mlp\.bias' and 1 more cannot.*sum\.predict\.Predictor"
    ):
        export(model, tmp_path / "plain.pth", task="part")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_wrong_task_or_suffix_is_told(tmp_path: Path) -> None:
    model = load_segmenter(tuned("tiny", tmp_path / "m.safetensors"), backbone="tiny")
    with pytest.raises(ConfigError, match="unknown 'parts'"):
        export(model, tmp_path / "plain.pth", task="parts")
    with pytest.raises(ConfigError, match=r"ends in '\.onnx', wants \.pth or \.safetensors"):
        export(model, tmp_path / "plain.onnx", task="part")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    weights = tuned("tiny", Path("data/models/large/model.safetensors"))
    for number, word in enumerate(("large", str(weights), "data/models/large")):
        assert main(["export", word, f"plain{number}.pth", "--task", "part"]) == 0
        said = capsys.readouterr().out
        assert f"tiny for task part, from {weights} (sha256 {fingerprint(weights)})" in said
        assert fingerprint(f"plain{number}.pth") in said
        assert "sam_model_registry has no 'tiny'" in said
    assert Path("plain0.pth").read_bytes() == Path("plain1.pth").read_bytes()
    Path("there").mkdir()
    (Path("there") / "protocol.json").write_text("{}")
    for words, said in (
        (["large", "plain0.pth"], "plain0.pth is there; name a new file"),
        (["there", "new.pth"], "there is an evaluation, not weights"),
        (["lrage", "new.pth"], "export: 'lrage' names no model. Known: base, a budget"),
        (["small", "new.pth"], "dvc repro finetune@small"),
        (["gone.pth", "new.pth"], "gone.pth: no such weights file"),
        (["large", "new.pth", "--task", "parts"], "unknown 'parts'"),
    ):
        assert main(["export", *words]) in (1, 2)
        assert said in capsys.readouterr().err
    assert not Path("new.pth").exists()
