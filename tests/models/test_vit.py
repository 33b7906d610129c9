"""The encoder of training against segment_anything's own modules: answers, gradients, memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn

from sum.models import attention, vit
from sum.models.backbones import build_tiny
from sum.models.segmenter import Segmenter
from sum.planner import LiveBytes
from sum.rounds import Rounds, train_rounds
from tests.models.test_parts import batch, small, with_vit

Answer = tuple[Tensor, dict[str, Tensor]]
WAYS = {"strips": attention.attend, "columns": attention.by_columns}  # of a CPU, of a GPU: one law
GRIDS = [(14, 14), (7, 11), (20, 12)]


@pytest.fixture(params=sorted(WAYS))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of the two ways; strips are so short that the larger grids need several, the last one shorter."""
    monkeypatch.setattr(attention, "STRIP", 100 * 240)
    monkeypatch.setattr(vit, "attend", WAYS[request.param])
    return str(request.param)


def stock(height: int, width: int, *, relative: bool = True) -> Attention:
    torch.manual_seed(height * width)
    layer = Attention(48, num_heads=3, use_rel_pos=relative, input_size=(height, width))
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return layer


def learn(layer: nn.Module, answer: Callable[[Tensor], Tensor], x: Tensor) -> Answer:
    """What is answered, and the gradients of an arbitrary function of it."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    out = answer(x)
    (out.float() * torch.randn(out.shape, generator=torch.Generator().manual_seed(9))).sum().backward()
    assert x.grad is not None
    grads = {name: value.grad.clone() for name, value in layer.named_parameters() if value.grad is not None}
    return out.detach(), {**grads, "input": x.grad}


def assert_same(found: Answer, wanted: Answer, *, limit: float = 1e-4) -> None:
    """Answers within `limit` of their standard deviation, gradients within `limit` of their length."""
    assert (found[0] - wanted[0]).abs().max() < limit * wanted[0].std()
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert (found[1][name] - gradient).norm() <= limit * gradient.norm(), name


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("relative", [True, False])
def test_attention_and_its_gradients_are_sams(way: str, grid: tuple[int, int], *, relative: bool) -> None:
    layer, x = stock(*grid, relative=relative), torch.randn(5, *grid, 48)
    assert_same(learn(layer, lambda y: vit.attention(layer, y), x), learn(layer, layer, x), limit=1e-5)


@pytest.mark.slow  # 4 s
def test_a_global_block_at_its_real_size(way: str) -> None:
    layer, x = stock(64, 64), torch.randn(1, 64, 64, 48)
    assert_same(learn(layer, lambda y: vit.attention(layer, y), x), learn(layer, layer, x))


@pytest.mark.parametrize("strip", [12, 80])
def test_gradients_of_strips_are_those_of_differences(monkeypatch: pytest.MonkeyPatch, strip: int) -> None:
    monkeypatch.setattr(attention, "STRIP", strip)
    torch.manual_seed(0)
    shapes = [(3, 6, 4), (3, 6, 4), (3, 6, 4), (3, 6, 2), (3, 6, 3)]
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *values: attention.attend(*values, scale=0.7), given)


def test_in_bfloat16_it_is_as_near_as_sams(way: str) -> None:
    layer, x = stock(14, 14), torch.randn(2, 14, 14, 48)
    exact = learn(layer, layer, x)
    far: dict[str, list[Tensor]] = {}
    for name, answer in (("ours", lambda y: vit.attention(layer, y)), ("sam", layer)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out, grads = learn(layer, answer, x)
        assert out.dtype == torch.bfloat16
        assert {gradient.dtype for gradient in grads.values()} == {torch.float32}
        pairs = [(out, exact[0]), *((grads[key], exact[1][key]) for key in grads if key != "qkv.bias")]
        far[name] = [(a.float() - b).norm() / b.norm() for a, b in pairs]
    assert all(ours < 2 * theirs + 0.01 for ours, theirs in zip(far["ours"], far["sam"], strict=True))


@pytest.mark.parametrize(("length", "size"), [(27, 14), (27, 9), (1, 1), (13, 10)])
def test_distances_are_looked_up_as_sam_does(length: int, size: int) -> None:
    table = torch.randn(length, 8)
    assert torch.equal(vit.between(table, size), get_rel_pos(size, size, table))


def trained() -> Segmenter:
    """SAM's ViT blocks with positions that are not zero; windows are padded."""
    model = with_vit()
    with torch.no_grad():
        for value in model.sam.image_encoder.parameters():
            value.add_(0.1 * torch.randn_like(value))
    model.sam.image_encoder.blocks[0].window_size = 3  # 8 x 8 in windows of 3: padded; positions are resized
    return model


def frames() -> tuple[Tensor, Tensor]:
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return image, torch.tensor([[64, 48], [30, 64]])


def test_the_whole_encoder_is_sams(way: str) -> None:
    model, (image, hw) = trained(), frames()
    encoder = model.sam.image_encoder

    def official(image: Tensor) -> Tensor:
        inside = torch.zeros(2, 1, 64, 64)
        for row, (height, width) in zip(inside, hw.tolist(), strict=True):
            row[:, :height, :width] = 1
        return encoder((image - model.sam.pixel_mean) / model.sam.pixel_std * inside)

    x = image.float()
    assert_same(learn(encoder, lambda y: model.encode(y, hw), x), learn(encoder, official, x))
    with torch.no_grad():
        exact = official(x)
        assert torch.equal(model.encode(image, hw), exact)  # the law of row 0: without gradients every bit is SAM's
        fast = model.encode_fast(image, hw)
    assert not torch.equal(fast, exact)
    assert (fast - exact).abs().max() < 1e-4 * exact.std()


def test_names_of_the_weights_are_sams() -> None:
    model = trained()
    names = list(model.state_dict())
    model.encode(*frames()).sum().backward()
    assert list(model.state_dict()) == names
    assert all(value.grad is not None for value in model.sam.image_encoder.parameters())


def rounds_of(model: Segmenter, *, recompute: bool, autocast: bool) -> dict[str, Tensor]:
    """Gradients of two rounds."""
    model.zero_grad()
    model.recompute_encoder = recompute
    train_rounds(
        model,
        batch(),
        rounds=Rounds(count=2),
        generator=torch.Generator().manual_seed(0),
        backward=lambda loss: loss.backward(),
        autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext(),
    )
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize(("build", "autocast"), [(trained, False), (trained, True), (small, False)])
def test_blocks_made_again_leave_the_same_gradients(build: Callable[[], Segmenter], *, autocast: bool) -> None:
    torch.manual_seed(0)
    model = build()
    kept, again = (rounds_of(model, recompute=recompute, autocast=autocast) for recompute in (False, True))
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        assert torch.equal(gradient, again[name]), name


def held(run: Callable[[], Tensor]) -> tuple[int, int]:
    """Bytes beyond what there was: at the peak of a forward and a backward pass, and of what lies between them."""
    with LiveBytes() as live:
        out = run()
        between = live.now
        out.sum().backward()
    return live.peak, between


def test_a_global_block_holds_a_fraction_of_sams_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = stock(32, 32), torch.randn(1, 32, 32, 48, requires_grad=True)
    sams = held(lambda: layer(x))
    monkeypatch.setattr(attention, "STRIP", 1 << 16)
    ours = held(lambda: vit.attention(layer, x))
    assert ours[0] < sams[0] / 6
    assert ours[1] < sams[1] / 5


@pytest.mark.parametrize("build", [trained, small])
def test_blocks_made_again_hold_less(build: Callable[[], Segmenter]) -> None:
    model = build()
    between = []
    for recompute in (False, True):
        model.recompute_encoder = recompute
        between.append(held(lambda: model.encode(*frames()))[1])
    assert between[1] < 0.75 * between[0]


def test_an_encoder_of_another_kind_runs_as_it_is() -> None:
    class Other(nn.Module):
        img_size = 64

        def forward(self, image: Tensor) -> Tensor:
            return image.mean(1, keepdim=True)

    sam: Sam = build_tiny(side=64, channels=32)
    sam.image_encoder = Other()
    image, hw = frames()
    assert Segmenter(sam, backbone="tiny").encode(image, hw).shape == (2, 1, 64, 64)
