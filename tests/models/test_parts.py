"""Which parts train: the frozen ones stay bit for bit; adapters begin as nothing and merge without a trace."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from sum.data.batches import TrainBatch
from sum.engine import Loop, LoopOptions
from sum.models import absorbed
from sum.models.archs import ArchSpec
from sum.models.backbones import BACKBONES, build_tiny
from sum.models.groups import group_table, parameter_groups
from sum.models.parts import merge_adapters, select_parts
from sum.models.segmenter import Prompts, Segmenter
from sum.rounds import Rounds, train_rounds
from tests.test_engine import OPTIONS

TRAIN = {
    "full": {"image_encoder", "prompt_encoder", "mask_decoder"},
    "decoder": {"mask_decoder"},
    "decoder+prompt_encoder": {"prompt_encoder", "mask_decoder"},
}


def adapters(*, encoder: bool = False, decoder: bool = False, rank: int = 4, alpha: float = 4.0) -> ArchSpec:
    return ArchSpec("lora", {"encoder": encoder, "decoder": decoder, "rank": rank, "alpha": alpha})


def small() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(build_tiny(side=64, channels=32), backbone="tiny")


def with_vit(channels: int = 32) -> Segmenter:
    """SAM's own ViT blocks, windowed and global, with relative positions, at 64 px."""
    torch.manual_seed(0)
    sam = build_tiny(side=64, channels=channels)
    sam.image_encoder = ImageEncoderViT(
        img_size=64, patch_size=8, embed_dim=24, depth=2, num_heads=2, out_chans=channels, qkv_bias=True,
        use_rel_pos=True, window_size=4, global_attn_indexes=(1,),
    )  # fmt: skip
    return Segmenter(sam, backbone="tiny")


def batch(seed: int = 0) -> TrainBatch:
    chance = torch.Generator().manual_seed(seed)
    mask = torch.zeros(3, 1, 32, 32)
    for k in range(3):
        mask[k, 0, 5 + k : 15 + k, 8:20] = 1
    return TrainBatch(
        image=torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=chance),
        hw=torch.full((2, 2), 64),
        image_index=torch.tensor([0, 0, 1]),
        mask=mask,
        certainty=torch.ones(3, 1, 32, 32),
        point=torch.full((3, 2), 22.0),
        task=torch.tensor([1, 1, 0]),
    )


def train(model: Segmenter, folder: Path, *, steps: int = 2, stop: int | None = None) -> Loop:
    options = LoopOptions(**{**OPTIONS, "steps": steps, "warmup_steps": 0, "decay_steps": 0, "checkpoint_every": 1})  # type: ignore[arg-type]
    loop = Loop(model, options=options, folder=folder)

    def step(state: Loop, part: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        if state.step == stop:
            raise InterruptedError
        assert isinstance(state.model, Segmenter)
        return train_rounds(state.model, part, rounds=Rounds(count=3), generator=generator, backward=state.backward)

    loop.run(lambda start: (batch(t) for t in range(start, steps)), step, title="parts")
    return loop


def answer(model: Segmenter) -> Tensor:
    prompts_of = batch(9)
    with torch.no_grad():
        embedding = model.encode(prompts_of.image, prompts_of.hw)
        points = Prompts.from_points(prompts_of.point[:, None], torch.ones(3, 1, dtype=torch.int64))
        return model.decode(embedding, prompts_of.image_index, points, multimask=True, task=prompts_of.task).logits


@pytest.mark.parametrize("task_prompt", [True, False])
@pytest.mark.parametrize("which", sorted(TRAIN))
def test_frozen_parts_have_no_gradient_no_moments_and_stay_bit_for_bit(
    which: str, task_prompt: bool, tmp_path: Path
) -> None:
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    select_parts(model, spec=ArchSpec(which), task_prompt=task_prompt, seed=0)
    loop = train(model, tmp_path)
    moved = set()
    for name, value in model.named_parameters():
        part = name.split(".")[1] if name.startswith("sam.") else name
        if part in TRAIN[which] or (part == "task_prompt" and task_prompt):
            moved |= set() if torch.equal(value, before[name]) else {part}
            continue
        assert value.grad is None, name
        assert value not in loop.optimizer.state, name
        assert torch.equal(value, before[name]), name
    assert moved == TRAIN[which] | ({"task_prompt"} if task_prompt else set())
    learnt = {id(value) for value in model.parameters() if value.requires_grad}
    assert {id(value) for value in loop.optimizer.state} <= learnt
    stored = {name.split(".", 2)[2] for name in _checkpoint(tmp_path) if name.startswith("adam.")}
    assert {name.split(".")[1] if name.startswith("sam.") else name for name in stored} == moved


def _checkpoint(folder: Path) -> list[str]:
    with safe_open(max(folder.glob("*.safetensors")), framework="pt") as file:
        return list(file.keys())


FACTORS = (".lora_A.default.weight", ".lora_B.default.weight")
LORA = [
    adapters(encoder=True),
    adapters(decoder=True, rank=2, alpha=8.0),
    adapters(encoder=True, decoder=True),
]


@pytest.mark.parametrize("build", [small, with_vit])
@pytest.mark.parametrize("lora", LORA)
def test_adapters_begin_as_nothing_train_alone_and_merge_to_the_same_answers(
    build, lora: ArchSpec, tmp_path: Path
) -> None:
    model = build()
    before, start = {name: value.clone() for name, value in model.state_dict().items()}, answer(model)
    select_parts(model, spec=lora, task_prompt=True, seed=0)
    assert torch.equal(answer(model), start)
    train(model, tmp_path)
    adapted = {*lora.adapted}
    untouched = {"image_encoder", *adapted}  # an encoder without adapters is frozen
    factors = 0
    for name, value in model.named_parameters():
        if name.endswith(FACTORS):
            factors += 1
            assert value.requires_grad
            assert name.endswith(FACTORS[0]) or value.abs().max() > 0, name  # learnt something
        elif name.split(".")[1:2] and name.split(".")[1] in untouched:
            assert torch.equal(value, before[name.replace("base_layer.", "")]), name
    assert factors
    trained = answer(model)
    assert not torch.equal(trained, start)
    merge_adapters(model)
    assert torch.equal(answer(model), trained)
    assert model.state_dict().keys() == before.keys()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    for part in adapted:  # only weights of attention
        inside = {name.rsplit(".", 2)[1] for name in changed if name.startswith(f"sam.{part}.")}
        assert inside
        assert inside <= {"qkv", "proj", "out", "q_proj", "k_proj", "v_proj", "out_proj"}
    assert not any(hasattr(layer, "base_layer") for layer in model.modules())


def learnt(model: Segmenter, *, lora: ArchSpec) -> dict[str, nn.Module]:
    """Give the model adapters that have learnt something; returns the adapted layers by their names."""
    select_parts(model, spec=lora, task_prompt=True, seed=1)
    torch.manual_seed(5)
    for name, value in model.named_parameters():
        if name.endswith(FACTORS[1]):
            nn.init.normal_(value, std=0.2)
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "base_layer")}


def factors_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A `[rank, in]` and B `[out, rank]`."""
    return layer.lora_A.default.weight, layer.lora_B.default.weight


def test_an_adapted_weight_is_that_of_the_paper() -> None:
    """W + alpha / r * B A, in float64, of all layers whose factors are known, before and after merging."""
    model = small()
    layers = learnt(model, lora=adapters(decoder=True, rank=2, alpha=3.0))
    want, evenly = {}, []
    for name, layer in layers.items():
        down, up = (value.double() for value in factors_of(layer))
        want[name] = layer.base_layer.weight.double() + 1.5 * up @ down
        evenly.append(down.flatten() * down.shape[1] ** 0.5)
        torch.testing.assert_close(layer.weight.double(), want[name], rtol=1e-5, atol=1e-6)
    assert 0.95 < torch.cat(evenly).abs().max() <= 1
    merge_adapters(model)
    for name in layers:
        torch.testing.assert_close(model.get_submodule(name).weight.double(), want[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lora", [adapters(encoder=True, alpha=6.0), adapters(decoder=True, rank=2)])
@pytest.mark.parametrize("rounds", ["first", "later", "first, one image"])
def test_adapters_learn_what_merged_weights_of_stock_sam_would_tell_them(lora: ArchSpec, rounds: str) -> None:
    """The gradient of A is s B' G, of B it is s G A', G being that of the merged weight in SAM's own decoder."""
    model = with_vit(128)  # wide enough that the training decoder absorbs projections: it reads their weights
    attention = model.sam.mask_decoder.transformer.final_attn_token_to_image
    assert absorbed.pays(attention, 5 + 2)
    layers = learnt(model, lora=lora)
    plain = copy.deepcopy(model)
    merge_adapters(plain)
    plain.requires_grad_(True)
    part, scale = batch(3), lora.options["alpha"] / lora.options["rank"]
    if "one" in rounds:  # masks of one image share what they see
        part = replace(part, image=part.image[:1], hw=part.hw[:1], image_index=torch.zeros_like(part.image_index))
    logits = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1)) if rounds == "later" else None
    prompts = Prompts.from_points(part.point[:, None], torch.ones(3, 1, dtype=torch.int64), logits=logits)
    answers = []
    for each in (model, plain):
        embedding = each.encode(part.image, part.hw)
        if each is plain:
            each.decode = partial(_stock, each)
        said = each.decode(embedding, part.image_index, prompts, multimask=rounds != "later", task=part.task)
        (said.logits.square().mean() + said.iou.square().sum()).backward()
        answers.append(said.logits.detach())
    assert (answers[0] - answers[1]).abs().max() <= 1e-5 * answers[1].std()  # factored against merged: rounding
    for name, layer in layers.items():
        down, up = factors_of(layer)
        whole = plain.get_submodule(name).weight.grad
        wanted = (scale * up.detach().T @ whole, scale * whole @ down.detach().T)
        for found, want in zip((down.grad, up.grad), wanted, strict=True):
            assert found.abs().max() > 0, name
            torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))
        assert layer.base_layer.weight.grad is None


def _stock(model: Segmenter, embedding: Tensor, index: Tensor, prompts: Prompts, *, multimask: bool, task: Tensor):
    """`Segmenter.decode` with gradients in SAM's own order of arithmetic, not that of the training decoder."""
    decoder = model.sam.mask_decoder
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(index), -1, -1)
    tokens = torch.cat([own, model.embed_points(prompts)], 1)
    wanted = [1, 2, 3] if multimask else [0]
    return model._decode_as_sam(embedding[index], tokens, model._task_rows()[task], prompts.logits, wanted)


def test_a_model_is_adapted_the_same_way_twice_and_leaves_the_random_numbers_alone() -> None:
    models, state = [small(), small()], torch.get_rng_state()
    for model in models:
        select_parts(model, spec=adapters(encoder=True, decoder=True), task_prompt=True, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = small()
    select_parts(other, spec=adapters(encoder=True, decoder=True), task_prompt=True, seed=4)
    drawn = [name for name in first if name.endswith(FACTORS[0])]
    assert not any(torch.equal(first[name], other.state_dict()[name]) for name in drawn)


def test_under_bfloat16_a_merged_model_answers_with_the_same_bits_too() -> None:
    model = with_vit()
    learnt(model, lora=adapters(encoder=True, decoder=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = answer(model)
    merge_adapters(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(answer(model), before)


@pytest.mark.slow
def test_peft_is_imported_for_adapters_only_and_asks_nobody() -> None:
    """No connection and no look-up of a name while it is imported, adapts, and merges."""
    code = """
import sys
import sum.stages.finetune
from tests.models.test_parts import adapters, learnt, merge_adapters, small

def deny(event, arguments):
    assert event not in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"), event

sys.addaudithook(deny)
model = small()
merge_adapters(model)
assert not {"peft", "transformers"} & set(sys.modules)
learnt(model, lora=adapters(encoder=True, decoder=True))
merge_adapters(model)
assert "peft" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": "."}, timeout=100)


@pytest.mark.slow
def test_a_stopped_training_of_adapters_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    ends = []
    for name, stop in (("whole", None), ("stopped", 2)):
        for attempt in (stop, None) if stop else (None,):
            model = small()
            select_parts(model, spec=adapters(encoder=True), task_prompt=True, seed=0)
            try:
                train(model, tmp_path / name, steps=4, stop=attempt)
            except InterruptedError:
                continue
        merge_adapters(model)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_adapters_of_sams_vit_are_in_every_attention_and_keep_their_layer() -> None:
    with torch.device("meta"):
        model = Segmenter(BACKBONES["vit_b"].build(), backbone="vit_b")
    select_parts(model, spec=adapters(encoder=True), task_prompt=True, seed=0)
    names = [name for name, _ in model.named_parameters() if name.endswith(FACTORS)]
    assert len(names) == 12 * 2 * 2  # blocks, qkv and proj, two factors
    groups = parameter_groups(model, layer_decay=0.8, weight_decay=0.1)
    scale = {name: group["scale"] for group in groups for name in group["names"]}
    for name in names:
        block = int(name.split(".blocks.")[1].split(".")[0])
        assert scale[name] == pytest.approx(0.8 ** (13 - (block + 1)))
    numbers = sum(value.numel() for name, value in model.named_parameters() if name in set(names))
    assert numbers == 12 * 4 * ((768 + 3 * 768) + (768 + 768))


def test_the_groups_of_sams_vit_are_told_once_a_line() -> None:
    with torch.device("meta"):
        model = Segmenter(BACKBONES["vit_b"].build(), backbone="vit_b")
    lines = group_table(parameter_groups(model, layer_decay=0.8, weight_decay=0.1))
    assert len(lines) == 2 * 14  # the patch embedding, 12 blocks and the rest; decayed, and not
    assert lines[0].startswith("layer  0: learning rate x 0.0550, weight decay 0.1, 1 tensors, 589,824 numbers")
    assert lines[-1].startswith("layer 13: learning rate x 1.0000, weight decay 0,")
    told = sum(int(line.split(", ")[-1].split()[0].replace(",", "")) for line in lines)
    assert told == sum(value.numel() for value in model.parameters() if value.requires_grad)
