"""The decoder for many points against Segmenter.decode: the same outputs to rounding, drawn only where they pass."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from sum.models.backbones import build_tiny
from sum.models.point_decoder import Outputs, PointDecoder
from sum.models.segmenter import Prompts, Segmenter


class NoEncoder(nn.Module):
    """Stands where SAM's image encoder is: the decoder is all that is asked."""

    img_size = 128


def meta_like() -> Sam:
    """The decoder of SAM's ViT at its real widths, on a grid of 8 x 8."""
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    return Sam(
        image_encoder=NoEncoder(),
        prompt_encoder=PromptEncoder(
            embed_dim=256, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=transformer,
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
    ).eval()


@pytest.fixture(scope="module", params=["vit", "tiny"])
def model(request: pytest.FixtureRequest) -> Segmenter:
    torch.manual_seed(5)
    sam = meta_like() if request.param == "vit" else build_tiny(side=128).eval()
    with torch.no_grad():
        for value in sam.parameters():  # biases and norms away from their zeros and ones
            value.add_(0.05 * torch.randn_like(value))
    return Segmenter(sam, backbone=request.param)


@pytest.fixture(scope="module")
def embedding(model: Segmenter) -> torch.Tensor:
    size = model.sam.prompt_encoder.image_embedding_size
    return torch.randn(1, model.sam.prompt_encoder.embed_dim, *size, generator=torch.Generator().manual_seed(1))


XY = torch.rand(11, 2, generator=torch.Generator().manual_seed(2)) * 128


def joined(parts: list[Outputs]) -> Outputs:
    return Outputs(*(torch.cat([getattr(part, name) for part in parts]) for name in ("logits", "iou", "point")))


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@torch.inference_mode()
def test_it_is_the_decoder_of_the_segmenter(model: Segmenter, embedding: torch.Tensor, chunk: int) -> None:
    prompts = Prompts.from_points(XY[:, None], torch.ones(len(XY), 1, dtype=torch.int64))
    want = model.decode(embedding, torch.zeros(len(XY), dtype=torch.int64), prompts, multimask=True)
    found = joined(list(PointDecoder(model, embedding).ask(XY, floor=None, chunk=chunk)))
    assert found.point.tolist() == [point for point in range(len(XY)) for _ in range(3)]
    assert want.logits.std() > 0.05
    apart = (found.logits - want.logits.flatten(0, 1)).abs().max() / want.logits.std()
    assert apart < 1e-4  # 4e-6 is usual
    assert torch.allclose(found.iou, want.iou.flatten(), atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 100])
@torch.inference_mode()
def test_points_of_several_views_share_a_batch(model: Segmenter, embedding: torch.Tensor, chunk: int) -> None:
    several = torch.cat([embedding, -embedding, embedding.flip(3)])
    views = [0] * 3 + [1] * 7 + [2]
    prompts = Prompts.from_points(XY[:, None], torch.ones(len(XY), 1, dtype=torch.int64))
    want = model.decode(several, torch.tensor(views), prompts, multimask=True)
    found = joined(list(PointDecoder(model, several).ask(XY, floor=None, chunk=chunk, views=views)))
    assert found.point.tolist() == [point for point in range(len(XY)) for _ in range(3)]
    assert (found.logits - want.logits.flatten(0, 1)).abs().max() / want.logits.std() < 1e-4
    assert torch.allclose(found.iou, want.iou.flatten(), atol=1e-5)
    alone = model.decode(several, torch.zeros(len(XY), dtype=torch.int64), prompts, multimask=True)
    assert (alone.logits - want.logits).abs().max() / want.logits.std() > 0.1  # the views do differ


@torch.inference_mode()
def test_only_outputs_above_the_floor_are_drawn(
    model: Segmenter, embedding: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = PointDecoder(model, embedding)
    every = joined(list(decoder.ask(XY, floor=None, chunk=4)))
    floor = float(every.iou.sort().values[-4])  # three of 33 pass, so eight points or more have none
    drawn = list[int]()
    real = PointDecoder._draw
    monkeypatch.setattr(
        PointDecoder, "_draw", lambda self, tokens, image: drawn.append(len(tokens)) or real(self, tokens, image)
    )
    found = joined(list(decoder.ask(XY, floor=floor, chunk=4)))
    good = every.iou > floor
    assert torch.equal(found.point, every.point[good])
    assert torch.allclose(found.iou, every.iou[good], atol=1e-6)
    assert torch.allclose(found.logits, every.logits[good], atol=1e-4)
    assert sum(drawn) == len(set(found.point.tolist())) <= 3
