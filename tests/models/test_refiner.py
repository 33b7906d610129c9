"""The refiner at birth is SAM with three prompts; what of it trains; its file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything import SamPredictor
from torch import Tensor

from sum.errors import CheckpointError
from sum.models.backbones import build_tiny
from sum.models.checkpoint import save_segmenter
from sum.models.refiner import Refiner, load_other, load_refiner, save_refiner
from sum.models.segmenter import Segmenter

SIDE = 64
ORIGIN = "0123456789abcdef" * 4  # sha256 of the base's weights file


def tiny(seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    sam = build_tiny(side=SIDE, channels=32)
    with torch.no_grad():
        for value in sam.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return Segmenter(sam, backbone="tiny").eval()


@pytest.fixture(scope="module")
def base() -> Segmenter:
    return tiny()


def questions(base: Segmenter, *, masks: int = 5) -> dict[str, Tensor]:
    """SAM logits, boxes and points of some masks, model frame."""
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(masks, 2, generator=generator) * SIDE / 2
    high = low + torch.rand(masks, 2, generator=generator) * SIDE / 2
    return {
        "sam_logits": torch.randn(masks, 1, base.low_side, base.low_side, generator=generator) * 4,
        "box": torch.cat([low, high], 1),
        "point": (low + high) / 2,
    }


def embeddings(base: Segmenter) -> Tensor:
    image = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return base.encode(image, torch.tensor([[SIDE, SIDE]] * 2)).detach()


def test_untrained_it_answers_as_sam_with_the_three_prompts(base: Segmenter) -> None:
    asked, index = questions(base), torch.tensor([0, 1, 1, 0, 1])
    embedding = embeddings(base)
    with torch.no_grad():
        answer = Refiner(base)(embedding, index, **asked)
    predictor = SamPredictor(base.sam)
    predictor.is_image_set, predictor.input_size, predictor.original_size = True, (SIDE, SIDE), (SIDE, SIDE)
    for n, image in enumerate(index.tolist()):
        predictor.features = embedding[image : image + 1]
        _, _, low = predictor.predict_torch(
            asked["point"][n][None, None],
            torch.ones(1, 1),
            boxes=asked["box"][n : n + 1],
            mask_input=asked["sam_logits"][n : n + 1],
            multimask_output=False,
        )
        torch.testing.assert_close(answer[n : n + 1], low, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prompt", ["sam_logits", "box", "point"])
def test_every_prompt_matters(base: Segmenter, prompt: str) -> None:
    asked, index = questions(base), torch.zeros(5, dtype=torch.long)
    refiner, embedding = Refiner(base), embeddings(base)
    with torch.no_grad():
        before = refiner(embedding, index, **asked)
        after = refiner(embedding, index, **{**asked, prompt: asked[prompt] + 3})
    assert (before - after).abs().max() > 1e-5


def test_the_image_encoder_is_not_in_it(base: Segmenter) -> None:
    refiner = Refiner(base)
    assert not [name for name, _ in refiner.named_parameters() if "image_encoder" in name]
    own = {id(value) for value in refiner.parameters()}
    assert not own & {id(value) for value in base.parameters()}  # a copy: training it leaves SAM alone


def test_what_trains_is_prompt_encoder_and_decoder_and_all_of_it_learns(base: Segmenter) -> None:
    refiner = Refiner(base)
    answer = refiner(embeddings(base), torch.tensor([0, 1, 1, 0, 1]), **questions(base))
    answer.square().mean().backward()
    trained = {name: value for name, value in refiner.named_parameters() if value.requires_grad}
    assert {name.split(".")[2] for name in trained} == {"prompt_encoder", "mask_decoder"}
    assert not [name for name, value in trained.items() if value.grad is None]
    frozen = [value for value in refiner.parameters() if not value.requires_grad]
    assert all(value.grad is None for value in frozen)


def test_a_saved_refiner_comes_back_equal(base: Segmenter, tmp_path: Path) -> None:
    refiner = Refiner(base)
    with torch.no_grad():
        for value in refiner.parameters():
            value.add_(0.01)
    path = tmp_path / "model.safetensors"
    digest = save_refiner(path, refiner, origin=ORIGIN, about={"steps": "3"})
    assert len(digest) == 64
    found = load_refiner(path, base=base, origin=ORIGIN)
    assert not found.training
    for name, value in refiner.weights().items():
        assert torch.equal(found.weights()[name], value), name
    assert not [name for name in load_file(path) if "image_encoder" in name]


def head(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]


def test_a_whole_model_is_refused(base: Segmenter, tmp_path: Path) -> None:
    save_segmenter(tmp_path / "sam.safetensors", base, about={})
    with pytest.raises(CheckpointError, match=r"sam\.safetensors: wants a refinement module.*dvc repro refine"):
        load_refiner(tmp_path / "sam.safetensors", base=base, origin=ORIGIN)


def test_another_backbone_is_refused(base: Segmenter, tmp_path: Path) -> None:
    save_refiner(tmp_path / "r.safetensors", Refiner(base), origin=ORIGIN, about={})
    other = Segmenter(base.sam, backbone="vit_b")
    with pytest.raises(CheckpointError, match=r"r\.safetensors: refines backbone 'tiny', model\.backbone is 'vit_b'"):
        load_refiner(tmp_path / "r.safetensors", base=other, origin=ORIGIN)


def test_the_refiner_of_another_sam_is_refused(base: Segmenter, tmp_path: Path) -> None:
    """Also of one that was tuned further from the same start, whose shapes and random positions are the same."""
    save_refiner(tmp_path / "r.safetensors", Refiner(base), origin="f" * 64, about={})
    with pytest.raises(
        CheckpointError, match=r"another SAM than model\.checkpoint: weights ffffffffffff, .* 0123456789ab"
    ):
        load_refiner(tmp_path / "r.safetensors", base=base, origin=ORIGIN)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_a_changed_file_is_refused_by_name(base: Segmenter, tmp_path: Path, change: str) -> None:
    path, name = tmp_path / "r.safetensors", "mask_decoder.iou_token.weight"
    save_refiner(path, Refiner(base), origin=ORIGIN, about={})
    tensors, about = load_file(path), head(path)
    if change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors[f"{name}2"] = torch.zeros(1)
    else:
        tensors[name] = torch.zeros(2, 2)
    save_file(tensors, path, metadata=about)
    with pytest.raises(CheckpointError, match=r"mask_decoder\.iou_token\.weight"):
        load_refiner(path, base=base, origin=ORIGIN)


def test_a_truncated_file_is_refused(base: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    save_refiner(path, Refiner(base), origin=ORIGIN, about={})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"r\.safetensors: truncated"):
        load_refiner(path, base=base, origin=ORIGIN)


@pytest.mark.parametrize(("method", "name"), [("discrepancy_teacher", "student"), ("discrepancy_decoders", "decoder")])
def test_a_discrepancy_brings_its_other_refiner(base: Segmenter, tmp_path: Path, method: str, name: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{name}\.safetensors is missing: .*'{method}'.*refine\.discrepancy"):
        load_other(tmp_path, method=method, base=base, origin=ORIGIN)
    refiner = Refiner(base)
    with torch.no_grad():
        for value in refiner.parameters():
            value.add_(0.02)
    save_refiner(tmp_path / f"{name}.safetensors", refiner, origin=ORIGIN, about={})
    found = load_other(tmp_path, method=method, base=base, origin=ORIGIN)
    assert found is not None
    assert all(torch.equal(found.weights()[key], value) for key, value in refiner.weights().items())
    with pytest.raises(CheckpointError, match="another SAM"):
        load_other(tmp_path, method=method, base=base, origin="f" * 64)


def test_other_methods_compare_no_other(base: Segmenter, tmp_path: Path) -> None:
    for method in ("refinement", "confidence", "none"):
        assert load_other(tmp_path, method=method, base=base, origin=ORIGIN) is None
