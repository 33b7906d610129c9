"""Which parts train: the frozen ones stay bit for bit; adapters begin as nothing and merge without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sum.data.batches import TrainBatch
from sum.engine import Loop, LoopOptions
from sum.models.backbones import BACKBONES, build_tiny
from sum.models.groups import group_table, parameter_groups
from sum.models.parts import Lora, merge_adapters, select_parts
from sum.models.segmenter import Prompts, Segmenter
from sum.rounds import Rounds, train_rounds
from tests.test_engine import OPTIONS

TRAIN = {
    "full": {"image_encoder", "prompt_encoder", "mask_decoder"},
    "decoder": {"mask_decoder"},
    "decoder+prompt_encoder": {"prompt_encoder", "mask_decoder"},
}


def small() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(build_tiny(side=64, channels=32), backbone="tiny")


def with_vit() -> Segmenter:
    """SAM's own ViT blocks, windowed and global, with relative positions, at 64 px."""
    torch.manual_seed(0)
    sam = build_tiny(side=64, channels=32)
    sam.image_encoder = ImageEncoderViT(
        img_size=64, patch_size=8, embed_dim=24, depth=2, num_heads=2, out_chans=32, qkv_bias=True,
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
    select_parts(model, train=which, lora=Lora(), task_prompt=task_prompt, seed=0)
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
    assert all(loop.names[id(value)] in before for value in loop.optimizer.state)
    stored = {name.split(".", 2)[2] for name in _checkpoint(tmp_path) if name.startswith("adam.")}
    assert {name.split(".")[1] if name.startswith("sam.") else name for name in stored} == moved


def _checkpoint(folder: Path) -> list[str]:
    with safe_open(max(folder.glob("*.safetensors")), framework="pt") as file:
        return list(file.keys())


LORA = [
    Lora(encoder=True),
    Lora(decoder=True, rank=2, alpha=8.0),
    Lora(encoder=True, decoder=True),
]


@pytest.mark.parametrize("build", [small, with_vit])
@pytest.mark.parametrize("lora", LORA)
@pytest.mark.parametrize("which", ["full", "decoder"])
def test_adapters_begin_as_nothing_train_alone_and_merge_to_the_same_answers(
    build, lora: Lora, which: str, tmp_path: Path
) -> None:
    model = build()
    before, start = {name: value.clone() for name, value in model.state_dict().items()}, answer(model)
    select_parts(model, train=which, lora=lora, task_prompt=True, seed=0)
    assert torch.equal(answer(model), start)
    train(model, tmp_path)
    adapted = {p for p, on in (("image_encoder", lora.encoder), ("mask_decoder", lora.decoder)) if on}
    factors = 0
    for name, value in model.named_parameters():
        if name.endswith((".up", ".down")):
            factors += 1
            assert value.requires_grad
            assert name.endswith(".down") or value.abs().max() > 0, name  # learnt something
        elif name.split(".")[1:2] and name.split(".")[1] in adapted:
            assert torch.equal(value, before[name.replace("parametrizations.weight.original", "weight")]), name
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
    assert not any(parametrize.is_parametrized(layer) for layer in model.modules())


def test_an_adapted_weight_is_that_of_the_paper() -> None:
    """W + alpha / r * U D, in float64, of a layer whose factors are known."""
    model = small()
    select_parts(model, train="decoder", lora=Lora(decoder=True, rank=2, alpha=3.0), task_prompt=False, seed=1)
    layer = model.sam.mask_decoder.transformer.layers[0].self_attn.q_proj
    adapter = layer.parametrizations.weight[0]
    nn.init.normal_(adapter.up)
    want = layer.parametrizations.weight.original.double() + 1.5 * adapter.up.double() @ adapter.down.double()
    torch.testing.assert_close(layer.weight.double(), want, rtol=1e-5, atol=1e-6)
    merge_adapters(model)
    torch.testing.assert_close(layer.weight.double(), want, rtol=1e-5, atol=1e-6)


def test_a_stopped_training_of_adapters_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    ends = []
    for name, stop in (("whole", None), ("stopped", 2)):
        for attempt in (stop, None) if stop else (None,):
            model = small()
            select_parts(model, train="decoder", lora=Lora(encoder=True), task_prompt=True, seed=0)
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
    select_parts(model, train="decoder", lora=Lora(encoder=True), task_prompt=True, seed=0)
    names = [name for name, _ in model.named_parameters() if name.endswith((".up", ".down"))]
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
