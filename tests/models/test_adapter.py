"""Bottlenecks in the encoder: nothing at birth, by their formula later, the same to every code that runs the blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sum.models import vit
from sum.models.adapter import Bottleneck, ParallelMlp, ParallelSequential, SerialLinear, parameters_of
from sum.models.archs import ArchSpec
from sum.models.backbones import BACKBONES
from sum.models.groups import parameter_groups
from sum.models.parts import select_parts
from sum.models.segmenter import Segmenter
from sum.rounds import Rounds, train_rounds
from tests.models.test_parts import answer, batch, small, with_vit

Build = Callable[[], Segmenter]
SPEC = ArchSpec("adapter", {"ratio": 0.5, "scale": 0.25})


def adapted(model: Segmenter, *, seed: int = 0) -> Segmenter:
    return select_parts(model, spec=SPEC, task_prompt=True, seed=seed)


def stirred(model: Segmenter) -> Segmenter:
    """As if its adapters had learnt something."""
    torch.manual_seed(3)
    for value in parameters_of(model.sam.image_encoder):
        nn.init.normal_(value, std=0.2)
    return model


@pytest.mark.parametrize("build", [small, with_vit])
def test_at_birth_it_is_stock_sam_and_keeps_its_names(build: Build) -> None:
    stock = build()
    model = adapted(build())
    assert torch.equal(answer(model), answer(stock))
    names = {name for name in model.state_dict() if ".adapter." not in name}
    assert names == stock.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in stock.state_dict().items())


@pytest.mark.parametrize("build", [small, with_vit])
def test_every_block_has_two_and_only_they_decoder_and_prompt_encoder_learn(build: Build) -> None:
    model = adapted(build())
    blocks = model.sam.image_encoder.blocks
    serial = [part for part in blocks.modules() if isinstance(part, SerialLinear)]
    beside = [part for part in blocks.modules() if isinstance(part, (ParallelMlp, ParallelSequential))]
    assert (len(serial), len(beside)) == ((2, 2) if build is with_vit else (2 + 3 + 2 + 1 + 2, 2))
    train_rounds(
        model, batch(), rounds=Rounds(count=3), generator=torch.Generator().manual_seed(0), backward=Tensor.backward
    )
    for name, value in model.named_parameters():
        own = ".adapter." in name or not name.startswith("sam.image_encoder.")
        assert value.requires_grad == own, name
        assert (value.grad is not None) == own, name
        if ".adapter.up." in name:
            assert value.grad.abs().max() > 0, name


@pytest.mark.parametrize("build", [small, with_vit])
def test_both_encoders_call_them_alike(build: Build) -> None:
    model = stirred(adapted(build()))
    stock = build()
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, fast = model.sam.image_encoder(image), vit.encode(model.sam.image_encoder, image)
        plain = stock.sam.image_encoder(image)
    torch.testing.assert_close(exact, fast, atol=1e-4, rtol=1e-4)
    assert (exact - plain).abs().max() > 0.1


def test_an_adapted_layer_is_its_formula() -> None:
    torch.manual_seed(0)
    x, linear = torch.randn(5, 6), nn.Linear(6, 8)
    layer = SerialLinear(linear, ratio=0.5)
    mlp = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 6))
    beside = ParallelSequential(copy.deepcopy(mlp), ratio=0.5, scale=0.25)
    for part in (layer, beside):
        for value in part.adapter.parameters():
            nn.init.normal_(value)
    y = linear(x)
    torch.testing.assert_close(layer(x), y + narrow(layer.adapter, y))
    torch.testing.assert_close(beside(x), mlp(x) + 0.25 * narrow(beside.adapter, x))
    assert (layer.adapter.down.out_features, beside.adapter.down.out_features) == (4, 3)


def narrow(adapter: Bottleneck, x: Tensor) -> Tensor:
    hidden = F.gelu(x @ adapter.down.weight.T + adapter.down.bias)
    return hidden @ adapter.up.weight.T + adapter.up.bias


def test_they_are_drawn_by_the_seed_and_leave_the_random_numbers_alone() -> None:
    models = [small(), small(), small()]
    state = torch.get_rng_state()
    first, again, other = (adapted(model, seed=seed) for model, seed in zip(models, (1, 1, 2), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    flat = [nn.utils.parameters_to_vector(parameters_of(model.sam.image_encoder)) for model in (first, again, other)]
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])


def test_adapters_of_sams_vit_learn_at_the_rate_of_their_block() -> None:
    with torch.device("meta"):
        model = Segmenter(BACKBONES["vit_b"].build(), backbone="vit_b")
        model = select_parts(model, spec=ArchSpec("adapter"), task_prompt=True, seed=0)
    count = sum(value.numel() for value in parameters_of(model.sam.image_encoder))
    assert count == 12 * 2 * (2 * 768 * 192 + 768 + 192)  # blocks, two each, a quarter as wide
    groups = parameter_groups(model, layer_decay=0.8, weight_decay=0.1)
    found = {name: group for group in groups for name in group["names"]}
    group = found["sam.image_encoder.blocks.3.attn.proj.adapter.down.weight"]
    assert group["scale"] == pytest.approx(0.8 ** (13 - 4))
    assert group["weight_decay"] == 0.1
    assert found["sam.image_encoder.blocks.3.mlp.adapter.up.bias"]["weight_decay"] == 0
