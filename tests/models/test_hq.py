"""HQ-SAM beside a frozen SAM: SAM's path keeps every bit, the token watches, and only what is added learns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from torch import Tensor, nn

from sum.core.losses import LossWeights
from sum.engine import Loop, LoopOptions
from sum.models.archs import ArchSpec
from sum.models.generator import generate
from sum.models.hq import HqSegmenter
from sum.models.hq_decoder import look
from sum.models.parts import select_parts
from sum.models.segmenter import Prediction, Prompts, Segmenter
from sum.models.sieve import GeneratorSettings
from sum.rounds import Rounds, train_rounds
from tests.models.test_parts import batch, small, with_vit
from tests.test_engine import OPTIONS

ONE_SHOT = Rounds(count=1, one_shot=True, weights=LossWeights(iou=0.0))
Build = Callable[[], Segmenter]


def hq_of(model: Segmenter, *, task_prompt: bool = True) -> HqSegmenter:
    found = select_parts(model, spec=ArchSpec("hq"), task_prompt=task_prompt, seed=0)
    assert isinstance(found, HqSegmenter)
    return found


def silent(model: HqSegmenter) -> HqSegmenter:
    """Its head answers 0 everywhere: what is left is SAM's share."""
    found = copy.deepcopy(model)
    last = found.hq.mlp.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    return found


def learn(model: HqSegmenter, folder: Path, *, steps: int = 3) -> Loop:
    options = {**OPTIONS, "steps": steps, "lr": 1e-2, "warmup_steps": 0, "decay_steps": 0, "checkpoint_every": 1}
    loop = Loop(model, options=LoopOptions(**options), folder=folder)  # type: ignore[arg-type]

    def step(state: Loop, part, generator: torch.Generator) -> dict[str, Tensor]:
        assert isinstance(state.model, Segmenter)
        return train_rounds(state.model, part, rounds=ONE_SHOT, generator=generator, backward=state.backward)

    loop.run(lambda start: (batch(t) for t in range(start, steps)), step, title="hq")
    return loop


def prompts(kind: str) -> Prompts:
    """Of the three masks of `batch`, two on its first image."""
    points = batch().point[:, None]
    label = torch.ones(3, 1, dtype=torch.int64)
    logits = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    return {
        "point": Prompts.from_points(points, label),
        "box": Prompts.from_boxes(torch.tensor([[8.0, 9.0, 30.0, 40.0]] * 3)),
        "point and mask": Prompts.from_points(points, label, logits=logits),
        "mask": Prompts(points[:, :0], label[:, :0], logits),
    }[kind]


def ask(model: Segmenter, kind: str, *, multimask: bool, tasks: bool = True) -> Prediction:
    part = batch()
    with torch.no_grad():
        embedding = model.encode(part.image, part.hw)
        task = part.task if tasks else None
        return model.decode(embedding, part.image_index, prompts(kind), multimask=multimask, task=task)


@pytest.mark.parametrize("build", [small, with_vit])
def test_sam_s_path_is_stock_bit_for_bit_before_and_after_training(build: Build, tmp_path: Path) -> None:
    stock, hq = build(), hq_of(build())
    for trained in (False, True):
        if trained:
            before = copy.deepcopy(hq.hq.state_dict())
            learn(hq, tmp_path)
            assert all(not torch.equal(before[name], value) for name, value in hq.hq.state_dict().items())
            stock.task_prompt = hq.task_prompt  # learnt beside SAM, as in any arch
            assert hq.task_prompt.abs().max() > 0
        with torch.no_grad():
            found, want = (model.encode(batch().image, batch().hw) for model in (hq, stock))
        assert torch.equal(found[:, : want.shape[1]], want)
        for kind in ("point", "box", "point and mask", "mask"):
            for multimask in (False, True):
                said, three = ask(silent(hq), kind, multimask=multimask), ask(stock, kind, multimask=multimask)
                best = three.pick(three.iou.argmax(1))
                assert torch.equal(said.logits, best.logits), (kind, multimask)
                assert torch.equal(said.iou, best.iou)
    assert all(torch.equal(value, hq.sam.state_dict()[name]) for name, value in stock.sam.state_dict().items())


def test_logits_are_sam_s_and_the_head_s_together_or_the_head_s_alone() -> None:
    hq = hq_of(small())
    only = select_parts(small(), spec=ArchSpec("hq", {"token_only": True}), task_prompt=True, seed=0)
    sam = ask(silent(hq), "box", multimask=True).logits
    head = ask(only, "box", multimask=True)
    assert head.logits.std() > 0
    assert torch.equal(ask(hq, "box", multimask=True).logits, sam + head.logits)
    part = batch()  # what is trained: the head alone
    said = hq.decode(hq.encode(part.image, part.hw), part.image_index, prompts("box"), multimask=True, task=part.task)
    torch.testing.assert_close(said.logits, head.logits, atol=1e-5, rtol=1e-5)
    assert said.logits.requires_grad
    assert not said.iou.requires_grad


@pytest.mark.parametrize("build", [small, lambda: with_vit(128)])
def test_the_token_watches_as_one_more_token_that_nobody_looks_at(build: Build) -> None:
    """A second implementation: all tokens through SAM's layers at once, what may look at what in an explicit mask."""
    transformer = build().sam.mask_decoder.transformer
    chance = torch.Generator().manual_seed(4)
    width = transformer.embedding_dim
    token = torch.randn(1, width, generator=chance)
    tokens, source, where = (torch.randn(2, *size, generator=chance) for size in ((7, width), *[(width, 8, 8)] * 2))
    with torch.no_grad():
        states, image, state = look(transformer, token, source, where=where, tokens=tokens)
        want_states, want_image = transformer(source, where, tokens)
        plain = plainly(transformer, token, source, where, tokens)
    assert torch.equal(states, want_states)
    assert torch.equal(image, want_image)
    torch.testing.assert_close(torch.cat([states, state[:, None]], 1), plain, atol=2e-5, rtol=1e-4)


def plainly(transformer, token: Tensor, source: Tensor, where: Tensor, tokens: Tensor) -> Tensor:
    """States of all tokens, the watcher last: `[N, T + 1, C]`."""
    image, place = (x.flatten(2).transpose(1, 2) for x in (source, where))
    points = torch.cat([tokens, token.expand(len(tokens), 1, -1)], 1)
    count = points.shape[1]
    among = torch.ones(count, count, dtype=torch.bool)
    among[:-1, -1] = False  # SAM's tokens do not see it
    back = torch.ones(image.shape[1], count, dtype=torch.bool)
    back[:, -1] = False  # nor does the image
    states = points
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            states = layer.norm1(attend(layer.self_attn, states, states, states, among))
        else:
            placed = states + points
            states = layer.norm1(states + attend(layer.self_attn, placed, placed, states, among))
        states = layer.norm2(
            states + attend(layer.cross_attn_token_to_image, states + points, image + place, image, None)
        )
        states = layer.norm3(states + layer.mlp(states))
        image = layer.norm4(
            image + attend(layer.cross_attn_image_to_token, image + place, states + points, states, back)
        )
    final = transformer.final_attn_token_to_image
    return transformer.norm_final_attn(states + attend(final, states + points, image + place, image, None))


def attend(layer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    heads = layer.num_heads
    q, k, v = (
        part.view(len(part), part.shape[1], heads, -1).transpose(1, 2)
        for part in (layer.q_proj(q), layer.k_proj(k), layer.v_proj(v))
    )
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return layer.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("task_prompt", [True, False])
@pytest.mark.parametrize("build", [small, with_vit])
def test_only_what_is_added_and_the_task_vectors_learn(build: Build, task_prompt: bool) -> None:
    model = hq_of(build(), task_prompt=task_prompt)
    rounds = replace(ONE_SHOT, task_prompt="first" if task_prompt else "off")
    train_rounds(model, batch(), rounds=rounds, generator=torch.Generator().manual_seed(0), backward=Tensor.backward)
    learnt = {name for name, value in model.named_parameters() if value.grad is not None}
    added = {f"hq.{name}" for name, _ in model.hq.named_parameters()}
    assert learnt == added | ({"task_prompt"} if task_prompt else set())
    assert all(model.get_parameter(name).grad.abs().max() > 0 for name in learnt)
    if task_prompt:
        assert model.task_prompt.grad[0].abs().max() == 0  # unlabelled images ask for SAM itself
        assert model.task_prompt.grad[1].abs().max() > 0


def test_gradients_are_those_of_differences() -> None:
    """Of the task vector, which acts through all of SAM's frozen decoder, and of the token; in float64."""
    model = hq_of(small()).double()
    layer = model.sam.prompt_encoder.pe_layer
    layer._pe_encoding = lambda xy: type(layer)._pe_encoding(layer, xy.double())
    part = batch()
    weight = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def total() -> Tensor:
        embedding = model.encode(part.image, part.hw)
        asked = replace(prompts("box"), xy=prompts("box").xy.double())
        said = model.decode(embedding, part.image_index, asked, multimask=True, task=part.task)
        return (said.logits * weight).sum()

    total().backward()
    for value, row in ((model.task_prompt, 1), (model.hq.token.weight, 0)):
        away = torch.zeros_like(value)
        away[row] = torch.randn(value.shape[1], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                value += sign * 1e-5 * away
            ends.append(total().item())
            with torch.no_grad():
                value -= sign * 1e-5 * away
        assert (value.grad * away).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4)


def test_early_features_are_those_behind_the_first_global_block_and_of_the_first_stage() -> None:
    for build in (small, with_vit):
        model, seen = hq_of(build()), {}
        blocks = model.sam.image_encoder.blocks
        first = 1 if build is with_vit else 0  # windowed, global; tiny's first stage
        model.hq.compress.register_forward_hook(lambda _, given, __: seen.update(early=given[0]))  # noqa: B023
        handle = blocks[first].register_forward_hook(lambda _, __, out: seen.update(block=out))  # noqa: B023
        with torch.no_grad():
            model.encode(batch().image, batch().hw)
        handle.remove()
        want = seen["block"].permute(0, 3, 1, 2) if build is with_vit else seen["block"]
        assert torch.equal(seen["early"], want)


@torch.no_grad()
def test_features_are_folded_into_the_embedding_without_loss() -> None:
    model, part = hq_of(small()), batch()
    kept = []
    model.hq.compress.register_forward_hook(lambda _, __, out: kept.append(out))
    model.hq.enlarge.register_forward_hook(lambda _, __, out: kept.append(out))
    embedding = model.encode(part.image, part.hw)
    assert embedding.shape == (2, 3 * 32, 8, 8)
    assert torch.equal(F.pixel_shuffle(embedding[:, 32:], 4), kept[0] + kept[1])


@torch.no_grad()
def test_masks_of_several_images_share_a_call() -> None:
    model, part = hq_of(small()), batch()
    embedding, asked = model.encode(part.image, part.hw), prompts("box")
    together = model.decode(embedding, part.image_index, asked, multimask=True, task=part.task)
    for n, image in enumerate(part.image_index.tolist()):
        own = embedding[image : image + 1]
        one = slice(n, n + 1)
        alone = model.decode(
            own, torch.zeros(1, dtype=torch.int64), asked.masks(one), multimask=True, task=part.task[one]
        )
        torch.testing.assert_close(together.logits[one], alone.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("task", ["unspecified", "salient"])
def test_a_predictor_and_sam_s_own_generator_take_it_for_a_sam(task: str) -> None:
    model = hq_of(small()).eval()
    with torch.no_grad():
        model.task_prompt.normal_()
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sam = model.for_task(task)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    masks, scores, low = predictor.predict(np.array([[40.0, 30.0]]), np.array([1]), multimask_output=True)
    assert (masks.shape, scores.shape) == ((1, 64, 64), (1,))
    frame = torch.from_numpy(image).permute(2, 0, 1)[None]
    point = Prompts.from_points(torch.tensor([[[40.0, 30.0]]]), torch.ones(1, 1, dtype=torch.int64))
    with torch.no_grad():
        index = torch.tensor([0])
        number = torch.tensor([{"unspecified": 0, "salient": 1}[task]])
        want = model.decode(model.encode(frame, torch.tensor([[64, 64]])), index, point, multimask=True, task=number)
    torch.testing.assert_close(torch.from_numpy(low), want.logits[0], atol=1e-5, rtol=1e-5)
    if task == "unspecified":
        asked = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}
        theirs = SamAutomaticMaskGenerator(sam, **asked, output_mode="coco_rle").generate(image)
        settings = GeneratorSettings(
            points_per_side=4,
            pred_iou_thresh=0.0,
            stability_thresh=0.0,
            box_nms_thresh=1.0,
            max_area_share=2.0,
            min_area=0,
        )
        ours = generate(model, image, settings=settings)
        theirs = [record for record in theirs if record["area"]]
        assert len(ours) == len(theirs) > 0
        assert sorted(mask.area for mask in ours) == sorted(record["area"] for record in theirs)
        wanted = sorted(record["predicted_iou"] for record in theirs)
        assert sorted(mask.predicted_iou for mask in ours) == pytest.approx(wanted, abs=1e-5)


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    ends = []
    for stops in ([4], [2, 4]):
        for stop in stops:
            model = hq_of(small())
            folder = tmp_path / str(len(stops))
            options = {**OPTIONS, "steps": 4, "warmup_steps": 0, "decay_steps": 0, "checkpoint_every": 1}
            loop = Loop(model, options=LoopOptions(**options), folder=folder)  # type: ignore[arg-type]

            def step(state: Loop, part, generator: torch.Generator, stop: int = stop) -> dict[str, Tensor]:
                if state.step == stop:
                    raise InterruptedError
                assert isinstance(state.model, Segmenter)
                return train_rounds(state.model, part, rounds=ONE_SHOT, generator=generator, backward=state.backward)

            try:
                loop.run(lambda start: (batch(t) for t in range(start, 4)), step, title="hq")
            except InterruptedError:
                continue
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_head_is_made_the_same_way_twice_and_leaves_the_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    heads = [
        select_parts(make(), spec=ArchSpec("hq"), task_prompt=True, seed=seed)
        for make, seed in zip([one] * 3, (1, 1, 2), strict=True)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (nn.utils.parameters_to_vector(model.hq.parameters()) for model in heads)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def one() -> Segmenter:
    """As `small`, the global random numbers put back."""
    with torch.random.fork_rng(devices=[]):
        return small()
