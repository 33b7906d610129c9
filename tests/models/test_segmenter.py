"""Segmenter against the stock package: the same numbers for every kind of prompt, many images at once or one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from sum.errors import ConfigError
from sum.models.backbones import BACKBONES
from sum.models.segmenter import PAD, TASKS, Prompts, Segmenter


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(1)
    return Segmenter(BACKBONES["tiny"].build(), backbone="tiny").eval()


@pytest.fixture(scope="module")
def predictor(model: Segmenter) -> SamPredictor:
    image = np.random.default_rng(0).integers(0, 256, (90, 128, 3), dtype=np.uint8)
    found = SamPredictor(model.sam)
    found.set_image(image)
    return found


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", ["point", "points", "box", "box+point", "point+mask"])
@torch.no_grad()
def test_decode_equals_sam_predictor(model: Segmenter, predictor: SamPredictor, kind: str, multimask: bool) -> None:
    xy, label = torch.tensor([[[30.0, 40.0], [100.0, 12.0]]]), torch.tensor([[1, 0]])
    box, logits = torch.tensor([[10.0, 20.0, 90.0, 70.0]]), torch.randn(1, 1, 64, 64)
    ours, theirs = {
        "point": (
            Prompts.from_points(xy[:, :1], label[:, :1]),
            {"point_coords": xy[:, :1], "point_labels": label[:, :1]},
        ),
        "points": (Prompts.from_points(xy, label), {"point_coords": xy, "point_labels": label}),
        "box": (Prompts.from_boxes(box), {"point_coords": None, "point_labels": None, "boxes": box}),
        "box+point": (
            Prompts.from_boxes(box).with_point(xy[:, 0], label[:, 0], logits=None),
            {"point_coords": xy[:, :1], "point_labels": label[:, :1], "boxes": box},
        ),
        "point+mask": (
            Prompts.from_points(xy[:, :1], label[:, :1], logits=logits),
            {"point_coords": xy[:, :1], "point_labels": label[:, :1], "mask_input": logits},
        ),
    }[kind]
    _, want_iou, want_logits = predictor.predict_torch(**theirs, multimask_output=multimask, return_logits=True)
    found = model.decode(predictor.features, torch.zeros(1, dtype=torch.int64), ours, multimask=multimask)
    torch.testing.assert_close(found.logits, want_logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.iou, want_iou, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_encode_equals_sam_predictor(model: Segmenter, predictor: SamPredictor) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 128, 3), dtype=np.uint8)
    frame = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    frame[0, :, :90] = torch.from_numpy(image).permute(2, 0, 1)
    frame[0, :, 90:] = 77  # whatever stands in the padding must not be seen
    torch.testing.assert_close(model.encode(frame, torch.tensor([[90, 128]])), predictor.features, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_prompts_of_several_images_share_a_call(model: Segmenter) -> None:
    embedding = torch.randn(3, 64, 16, 16)
    index = torch.tensor([2, 0, 0, 1])
    prompts = Prompts.from_points(torch.rand(4, 2, 2) * 128, torch.tensor([[1, 0], [1, 1], [1, PAD], [1, 0]]))
    together = model.decode(embedding, index, prompts, multimask=True)
    for n in range(4):
        alone = model.decode(
            embedding[index[n]][None],
            torch.tensor([0]),
            Prompts(prompts.xy[n : n + 1], prompts.label[n : n + 1]),
            multimask=True,
        )
        torch.testing.assert_close(together.logits[n : n + 1], alone.logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_task_zero_is_stock_sam_bit_for_bit_even_after_training(model: Segmenter) -> None:
    embedding, index = torch.randn(1, 64, 16, 16), torch.zeros(4, dtype=torch.int64)
    prompts = Prompts.from_points(torch.full((4, 1, 2), 50.0), torch.ones(4, 1, dtype=torch.int64))
    tuned = Segmenter(model.sam, backbone="tiny")
    tuned.task_prompt.fill_(0.5)
    stock = model.decode(embedding, index, prompts, multimask=True).logits
    asked = tuned.decode(embedding, index, prompts, multimask=True, task=torch.arange(4)).logits
    assert torch.equal(asked[0], stock[0])
    assert all(not torch.allclose(asked[k], stock[k]) for k in range(1, len(TASKS)))


def test_row_zero_of_the_task_prompt_gets_no_gradient(model: Segmenter) -> None:
    prompts = Prompts.from_points(torch.full((2, 1, 2), 50.0), torch.ones(2, 1, dtype=torch.int64))
    out = model.decode(
        torch.randn(1, 64, 16, 16), torch.tensor([0, 0]), prompts, multimask=True, task=torch.tensor([0, 2])
    )
    (gradient,) = torch.autograd.grad(out.logits.square().sum(), model.task_prompt)
    assert gradient[0].abs().max() == 0
    assert gradient[2].abs().max() > 0
    assert gradient[[1, 3]].abs().max() == 0


def test_a_predictor_of_the_unspecified_task_is_stock_sam_bit_for_bit(model: Segmenter) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 128, 3), dtype=np.uint8)
    found = []
    for sam in (model.sam, Segmenter(model.sam, backbone="tiny").for_task("unspecified")):
        predictor = SamPredictor(sam)
        predictor.set_image(image)
        found.append(
            predictor.predict(np.array([[40.0, 30.0]]), np.array([1]), multimask_output=True, return_logits=True)
        )
    for stock, ours in zip(*found, strict=True):
        assert np.array_equal(stock, ours)


@pytest.mark.parametrize("task", list(TASKS))
def test_a_predictor_for_a_task_answers_as_the_benchmark_asks(model: Segmenter, task: str) -> None:
    tuned = Segmenter(model.sam, backbone="tiny").eval()
    with torch.no_grad():
        tuned.task_prompt.normal_()
    predictor = SamPredictor(tuned.for_task(task))
    image = np.random.default_rng(0).integers(0, 256, (90, 128, 3), dtype=np.uint8)
    predictor.set_image(image)
    masks, scores, low = predictor.predict(np.array([[40.0, 30.0]]), np.array([1]), multimask_output=True)
    stock = SamPredictor(model.sam)
    stock.set_image(image)
    prompts = Prompts.from_points(torch.tensor([[[40.0, 30.0]]]), torch.ones(1, 1, dtype=torch.int64))
    with torch.no_grad():
        want = tuned.decode(
            stock.features, torch.tensor([0]), prompts, multimask=True, task=torch.tensor([TASKS[task]])
        )
    assert (masks.shape, scores.shape) == ((3, 90, 128), (3,))
    if task == "unspecified":  # row 0 is never used, whatever it holds
        want = model.decode(stock.features, torch.tensor([0]), prompts, multimask=True)
    torch.testing.assert_close(torch.from_numpy(low), want.logits[0].detach(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_task_acts_where_no_mask_is_given_and_the_image_embedding_is_the_same_for_all(model: Segmenter) -> None:
    tuned = Segmenter(model.sam, backbone="tiny").eval()
    tuned.task_prompt.normal_()
    image = np.random.default_rng(0).integers(0, 256, (90, 128, 3), dtype=np.uint8)
    click = {"point_coords": np.array([[40.0, 30.0]]), "point_labels": np.array([1]), "multimask_output": False}
    first, later, embedded = [], [], []
    for task in TASKS:
        predictor = SamPredictor(tuned.for_task(task))
        predictor.set_image(image)
        embedded.append(predictor.get_image_embedding())
        first.append(predictor.predict(**click)[2])
        later.append(predictor.predict(**click, mask_input=first[0])[2])
    assert all(torch.equal(embedding, embedded[0]) for embedding in embedded)
    assert all(np.array_equal(logits, later[0]) for logits in later)
    assert not any(np.allclose(logits, first[0]) for logits in first[1:])


def test_a_sam_for_a_task_shares_weights_has_stock_keys_and_draws_no_random_number(model: Segmenter) -> None:
    tuned = Segmenter(model.sam, backbone="tiny").eval()
    with torch.no_grad():
        tuned.task_prompt.fill_(0.5)
    before = torch.get_rng_state()
    found = tuned.for_task("part").state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    stock = model.sam.state_dict()
    assert list(found) == list(stock)
    moved = "prompt_encoder.no_mask_embed.weight"
    assert torch.equal(found[moved], stock[moved] + 0.5)
    assert all(found[name].data_ptr() == stock[name].data_ptr() for name in stock if name != moved)


def test_a_predictor_for_an_unknown_task_is_refused(model: Segmenter) -> None:
    with pytest.raises(ConfigError, match=r"unknown 'parts'\. Known: unspecified, salient, entity, part"):
        model.for_task("parts")


def test_prompts_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Prompts.xy has shape \(2, 3, 2\), wants \(2, 4, 2\)"):
        Prompts(torch.zeros(2, 3, 2), torch.zeros(2, 4, dtype=torch.int64))


def test_tiny_is_small() -> None:
    assert sum(p.numel() for p in BACKBONES["tiny"].build().parameters()) < 5_000_000
