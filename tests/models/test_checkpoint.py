"""Weights files: what is written is read back; what is not ours or Meta's is refused by name, before anything is
loaded."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sum.errors import CheckpointError, ConfigError
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import fingerprint, load_segmenter, save_segmenter
from sum.models.segmenter import Segmenter


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(2)
    found = Segmenter(BACKBONES["tiny"].build(), backbone="tiny")
    with torch.no_grad():
        found.task_prompt[1:] = torch.randn(3, 64)
    return found


def test_what_is_saved_is_loaded_bit_for_bit(model: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    digest = save_segmenter(path, model, about={"steps": "3"})
    assert digest == fingerprint(path)
    again = load_segmenter(path, backbone="tiny")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_metas_format_is_read_and_has_no_task_prompt(model: Segmenter, tmp_path: Path) -> None:
    torch.save(model.sam.state_dict(), tmp_path / "sam.pth")
    again = load_segmenter(tmp_path / "sam.pth", backbone="tiny")
    assert again.task_prompt.abs().max() == 0
    assert torch.equal(again.sam.mask_decoder.iou_token.weight, model.sam.mask_decoder.iou_token.weight)


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.marker), "w")


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"weight": _Evil(marker)}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(_Evil(marker)))
    for name in ("evil.pth", "raw.pth"):
        with pytest.raises(CheckpointError, match=rf"{name}.*(refused|not a PyTorch checkpoint)"):
            load_segmenter(tmp_path / name, backbone="tiny")
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(model: Segmenter, tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(model.sam.state_dict(), path)
    else:
        save_segmenter(path, model, about={})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=f"model{suffix}: (truncated|holds more)"):
        load_segmenter(path, backbone="tiny")


@pytest.mark.parametrize(
    "data", [b"<html>404</html>", b"hello world", b"\x80hello", b"PK\x03\x04hello", bytes(range(256))]
)
def test_another_kind_of_file_is_one_clear_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "sam.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"sam.pth: (truncated or not a PyTorch checkpoint|holds more than)"):
        load_segmenter(tmp_path / "sam.pth", backbone="tiny")


def test_another_backbone_is_named(model: Segmenter, tmp_path: Path) -> None:
    state = model.sam.state_dict()
    state.pop("mask_decoder.iou_token.weight")
    state["image_encoder.blocks.0.attn.rel_pos_h"] = torch.zeros(1)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"is not of backbone 'tiny'.*iou_token.*rel_pos_h.*model.checkpoint"):
        load_segmenter(tmp_path / "other.pth", backbone="tiny")


def test_another_shape_is_named(model: Segmenter, tmp_path: Path) -> None:
    state = model.sam.state_dict() | {"mask_decoder.iou_token.weight": torch.zeros(1, 256)}
    torch.save(state, tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match=r"iou_token.weight' has shape \(1, 256\), wants \(1, 64\)"):
        load_segmenter(tmp_path / "wide.pth", backbone="tiny")


def test_an_absent_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such weights file.*model.checkpoint"):
        load_segmenter(tmp_path / "none.safetensors", backbone="tiny")


def test_an_unknown_backbone_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'vit_b'"):
        load_segmenter(tmp_path / "x.pth", backbone="vit_bb")


def test_nan_is_never_written(model: Segmenter, tmp_path: Path) -> None:
    broken = Segmenter(BACKBONES["tiny"].build(), backbone="tiny")
    with torch.no_grad():
        broken.task_prompt[1, 0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN"):
        save_segmenter(tmp_path / "nan.safetensors", broken, about={})
    assert not (tmp_path / "nan.safetensors").exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_nan_is_never_loaded(model: Segmenter, tmp_path: Path, suffix: str, bad: float) -> None:
    name = "mask_decoder.iou_token.weight"
    state = {key: value.clone() for key, value in model.sam.state_dict().items()}
    state[name][0, 3] = bad
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)  # the library's own writer, which looks at nothing
    with pytest.raises(CheckpointError, match=rf"model{suffix}: '{name}' holds NaN or infinity"):
        load_segmenter(path, backbone="tiny")


@pytest.mark.slow
def test_the_same_weights_are_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from sum.models.checkpoint import save_tensors\n"
        "about = {name: name for name in 'abcdefgh'}\n"
        "sys.stdout.write(save_tensors(Path(sys.argv[1]), {'x': torch.arange(3.0), 'w': torch.ones(2)}, about=about))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.safetensors")]
    digests = {subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(3)}
    assert digests == {fingerprint(tmp_path / "x.safetensors")}
