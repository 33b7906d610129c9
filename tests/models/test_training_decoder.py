"""The decoder with gradients against segment_anything's own: its answers, and the gradients of all that is trained."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sum.models import absorbed
from sum.models.backbones import build_tiny
from sum.models.segmenter import BOX_FIRST, BOX_SECOND, PAD, Prompts, Segmenter
from tests.models.test_point_decoder import meta_like

Found = tuple[Tensor, Tensor, dict[str, Tensor]]
MASKS = 5
SILENT = "k_proj.bias"  # the same for all keys: softmax drops it, its gradient is zero and SAM's is rounding


@pytest.fixture(scope="module", params=["vit", "tiny"])
def model(request: pytest.FixtureRequest) -> Segmenter:
    torch.manual_seed(5)
    sam = meta_like() if request.param == "vit" else build_tiny(side=128)
    with torch.no_grad():
        for value in sam.parameters():  # biases and norms away from their zeros and ones
            value.add_(0.05 * torch.randn_like(value))
    found = Segmenter(sam.train(), backbone=request.param)
    with torch.no_grad():
        found.task_prompt.normal_()
    return found


def prompts_of(model: Segmenter, *, points: int, feedback: bool) -> Prompts:
    """Points, of which the first mask's are a box."""
    chance = torch.Generator().manual_seed(points)
    label = torch.randint(0, 2, (MASKS, points), generator=chance)
    label = torch.cat([label, torch.full((MASKS, 1), PAD)], 1)
    label[0, -2:] = torch.tensor([BOX_FIRST, BOX_SECOND])
    xy = torch.rand(*label.shape, 2, generator=chance) * 128
    side = model.low_side
    return Prompts(xy, label, torch.randn(MASKS, 1, side, side, generator=chance) if feedback else None)


def official(model: Segmenter, embedding: Tensor, index: Tensor, prompts: Prompts, multimask: bool, task: int) -> Found:
    """segment_anything's prompt encoder and mask decoder, mask by mask."""
    sam: Sam = model.sam
    rows = []
    for n in range(MASKS):
        keep = prompts.label[n] != PAD
        label = prompts.label[n : n + 1, keep]
        boxed = bool((label == BOX_FIRST).any())
        clicks = label < BOX_FIRST
        sparse, dense = sam.prompt_encoder(
            points=(prompts.xy[n : n + 1, keep][clicks][None], label[clicks][None]) if clicks.any() else None,
            boxes=prompts.xy[n, -2:].view(1, 4) if boxed else None,
            masks=None if prompts.logits is None else prompts.logits[n : n + 1],
        )
        rows.append(
            sam.mask_decoder(
                image_embeddings=embedding[index[n]][None] + model.task_prompt[task].view(1, -1, 1, 1) * (task > 0),
                image_pe=sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
            )
        )
    return learn(model, embedding, torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows]))


def learn(model: Segmenter, embedding: Tensor, logits: Tensor, iou: Tensor) -> Found:
    """Gradients of an arbitrary function of the answers."""
    chance = torch.Generator().manual_seed(9)
    model.zero_grad()
    embedding.grad = None
    ((logits * torch.randn(logits.shape, generator=chance)).sum() + (iou**2).sum()).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert embedding.grad is not None
    return logits.detach(), iou.detach(), {**grads, "embedding": embedding.grad.clone()}


@pytest.mark.parametrize("task", [0, 2])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    ("points", "feedback", "multimask"),
    [(1, False, True), (4, True, False), (4, False, False), (14, True, False), (14, False, True)],  # 14: none absorbed
)
def test_answers_and_gradients_are_sams(
    model: Segmenter,
    monkeypatch: pytest.MonkeyPatch,
    *,
    points: int,
    feedback: bool,
    multimask: bool,
    images: int,
    task: int,
) -> None:
    size = model.sam.prompt_encoder.image_embedding_size
    channels = model.sam.prompt_encoder.embed_dim
    embedding = torch.randn(images, channels, *size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    index = torch.arange(MASKS) * 2 % images
    prompts = prompts_of(model, points=points, feedback=feedback)
    monkeypatch.setattr(absorbed, "NEAR", 2 * embedding[0].numel())  # masks two by two
    want = official(model, embedding, index, prompts, multimask, task)
    answer = model.decode(embedding, index, prompts, multimask=multimask, task=torch.full((MASKS,), task))
    found = learn(model, embedding, answer.logits, answer.iou)
    assert (found[0] - want[0]).abs().max() < 1e-4 * want[0].std()
    torch.testing.assert_close(found[1], want[1], atol=1e-5, rtol=1e-5)
    for name, grad in want[2].items():
        if not name.endswith(SILENT):  # an output that is not wanted has no gradient, SAM's is zero
            assert (found[2].get(name, torch.zeros_like(grad)) - grad).norm() <= 1e-4 * grad.norm(), name
    assert found[2]["embedding"].norm() > 0


def test_row_zero_changes_no_bit_with_gradients_either(model: Segmenter) -> None:
    size = model.sam.prompt_encoder.image_embedding_size
    embedding = torch.randn(1, model.sam.prompt_encoder.embed_dim, *size)
    index, prompts = torch.zeros(MASKS, dtype=torch.int64), prompts_of(model, points=1, feedback=False)
    stock = model.decode(embedding, index, prompts, multimask=True)
    asked = model.decode(embedding, index, prompts, multimask=True, task=torch.zeros(MASKS, dtype=torch.int64))
    assert torch.equal(stock.logits, asked.logits)
    assert torch.equal(stock.iou, asked.iou)


def test_the_same_call_gives_the_same_bits(model: Segmenter) -> None:
    """What resuming after a kill rests on."""
    size = model.sam.prompt_encoder.image_embedding_size
    embedding = torch.randn(2, model.sam.prompt_encoder.embed_dim, *size).requires_grad_()
    index, prompts = torch.arange(MASKS) % 2, prompts_of(model, points=4, feedback=True)
    first, second = (
        learn(model, embedding, answer.logits, answer.iou)[2]
        for answer in (model.decode(embedding, index, prompts, multimask=False) for _ in range(2))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_image_of_a_mask_is_kept_three_times(model: Segmenter) -> None:
    """As it comes and behind either layer; not before each norm, and not with its positions."""
    size = model.sam.prompt_encoder.image_embedding_size
    embedding = torch.randn(2, model.sam.prompt_encoder.embed_dim, *size).requires_grad_()
    index, prompts = torch.arange(MASKS) % 2, prompts_of(model, points=1, feedback=True)
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.decode(embedding, index, prompts, multimask=False)
    whole = (MASKS, size[0] * size[1], model.sam.prompt_encoder.embed_dim)
    assert sum(x.shape == whole for x in kept.values()) == 3
