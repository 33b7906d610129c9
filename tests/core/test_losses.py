"""The truth here is the formula of the paper in Python loops and float64, torchvision's focal loss, and laws."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from sum.core import losses
from sum.core.losses import LossWeights, best_of, dice_loss, focal_loss, iou_loss, mask_iou, mask_losses
from tests.drawing import draw


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def case(*, masks=3, outputs=1, height=5, width=4, dtype=torch.float64, seed=0):
    """Random logits, target and certainty; a tenth of the pixels has certainty 0."""
    generator = seeded(seed)
    logits = torch.randn(masks, outputs, height, width, generator=generator, dtype=dtype) * 3
    target = (torch.rand(masks, 1, height, width, generator=generator) > 0.5).to(dtype)
    certainty = torch.rand(masks, 1, height, width, generator=generator, dtype=dtype)
    certainty[torch.rand(certainty.shape, generator=generator) < 0.1] = 0
    return logits, target, certainty


def pixels(*maps):
    """Python floats of each pixel of one mask."""
    return list(zip(*(plane.double().flatten().tolist() for plane in maps), strict=True))


def focal_by_hand(logits, target, certainty, *, alpha, gamma):
    total = 0.0
    for z, y, c in pixels(logits, target, certainty):
        p = 1 / (1 + math.exp(-z))
        right, side = (p, alpha) if y == 1 else (1 - p, 1 - alpha)
        total += c * side * (1 - right) ** gamma * -math.log(right)
    return total / target.numel()


def dice_by_hand(logits, target, certainty, *, theta, eps):
    overlap = size = 0.0
    for z, y, c in pixels(logits, target, certainty):
        if c > theta:
            p = 1 / (1 + math.exp(-z))
            overlap += y * p
            size += y + p
    return 1 - (2 * overlap + eps) / (size + eps)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 1.0), (0.9, 3.5), (0.25, 0.0)])
def test_focal_is_the_formula(alpha, gamma):
    maps = case()
    want = [focal_by_hand(*mask, alpha=alpha, gamma=gamma) for mask in zip(*maps, strict=True)]
    assert focal_loss(*maps, alpha=alpha, gamma=gamma).tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(("theta", "eps"), [(0.6, 1.0), (0.2, 1.0), (0.8, 0.1), (-1.0, 1.0)])
def test_dice_is_the_formula(theta, eps):
    maps = case()
    want = [dice_by_hand(*mask, theta=theta, eps=eps) for mask in zip(*maps, strict=True)]
    assert dice_loss(*maps, theta=theta, eps=eps).tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    "weights",
    [
        LossWeights(),
        LossWeights(focal=3.0, dice=0.5, alpha=0.7, gamma=1.5, theta=0.2, eps=0.3),
        LossWeights(theta=-1.0),  # every pixel is kept
    ],
)
def test_mask_losses_is_the_weighted_formula_for_every_output(weights):
    logits, target, certainty = case(outputs=3)
    got = mask_losses(logits, target, certainty, weights)
    for mask in range(3):
        for output in range(3):
            maps = logits[mask, output], target[mask], certainty[mask]
            focal = focal_by_hand(*maps, alpha=weights.alpha, gamma=weights.gamma)
            dice = dice_by_hand(*maps, theta=weights.theta, eps=weights.eps)
            assert got[mask, output].item() == pytest.approx(weights.focal * focal + weights.dice * dice, rel=1e-9)


@pytest.mark.parametrize(("target", "want"), [(1.0, 0.25 * 0.25 * math.log(2)), (0.0, 0.75 * 0.25 * math.log(2))])
def test_focal_of_a_coin_toss(target, want):
    logits = torch.zeros(1, 1, 3, 3)
    assert focal_loss(logits, logits + target, logits + 1).item() == pytest.approx(want)


@pytest.mark.parametrize(
    ("picture", "want"),
    [
        ("#### ####", 1 - (2 * 4 + 1) / (8 + 4 + 1)),  # 8 pixels, p = 0.5: I = 4, S = 8 + 4
        ("##.. ##..", 1 - (2 * 2 + 1) / (4 + 4 + 1)),
        (".... ....", 1 - 1 / (4 + 1)),
    ],
)
def test_dice_of_a_coin_toss(picture, want):
    target = draw(picture)
    assert dice_loss(torch.zeros_like(target), target, torch.ones_like(target)).item() == pytest.approx(want)


def test_full_certainty_is_the_plain_loss():
    logits, target, _ = case()
    sure = torch.ones_like(logits)
    plain = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2.0).mean(dim=(1, 2, 3))
    torch.testing.assert_close(focal_loss(logits, target, sure), plain)
    probs = logits.sigmoid()
    dice = 1 - (2 * (probs * target).sum((1, 2, 3)) + 1) / ((probs + target).sum((1, 2, 3)) + 1)
    torch.testing.assert_close(dice_loss(logits, target, sure), dice)


def test_focal_counts_a_pixel_as_much_as_it_is_certain():
    logits, target, certainty = case()
    torch.testing.assert_close(focal_loss(logits, target, certainty / 2), focal_loss(logits, target, certainty) / 2)


def test_dice_cuts_hard_and_leaves_out_the_threshold_itself():
    logits, target, certainty = case()
    hard = (certainty > 0.6).double()
    torch.testing.assert_close(dice_loss(logits, target, certainty), dice_loss(logits, target, hard))
    torch.testing.assert_close(
        dice_loss(logits, target, certainty, theta=-0.1), dice_loss(logits, target, torch.ones_like(certainty))
    )
    at_theta = torch.full_like(certainty, 0.6)
    assert dice_loss(logits, target, at_theta).tolist() == [0, 0, 0]
    assert mask_losses(logits, target, at_theta, LossWeights(focal=0)).tolist() == [[0], [0], [0]]


def test_the_defaults_are_the_papers():
    assert LossWeights() == LossWeights(focal=20.0, dice=1.0, iou=1.0, alpha=0.25, gamma=2.0, theta=0.6, eps=1.0)
    for function in (focal_loss, dice_loss):
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                assert parameter.default == getattr(LossWeights(), name)


def plain(logits, target, certainty):
    return 20 * focal_loss(logits, target, certainty) + dice_loss(logits, target, certainty)


def fused(logits, target, certainty):
    return mask_losses(logits, target, certainty, LossWeights())


@pytest.mark.parametrize("loss", [focal_loss, dice_loss, fused])
def test_uncertain_pixels_have_exactly_no_gradient(loss):
    logits, target, certainty = case(dtype=torch.float32)
    logits.requires_grad_()
    loss(logits, target, certainty).sum().backward()
    assert torch.all(logits.grad[certainty == 0] == 0)
    assert torch.all(logits.grad[certainty > 0.6] != 0)


@pytest.mark.parametrize("loss", [focal_loss, dice_loss, fused])
def test_what_stands_on_uncertain_pixels_changes_no_loss_and_no_gradient(loss):
    logits, target, certainty = case()
    unknown = certainty == 0
    assert unknown.any()
    results = []
    for there, label in ((logits, target), (torch.where(unknown, -5 * logits, logits), target.logical_xor(unknown))):
        leaf = there.clone().requires_grad_()
        out = loss(leaf, label.double(), certainty)
        out.sum().backward()
        results.append((out.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_threshold_below_zero_keeps_pixels_of_no_certainty():
    """Focal still weighs them by 0; Dice counts all of them, as without a map."""
    logits, target, certainty = case(outputs=3)
    got = mask_losses(logits, target, certainty, LossWeights(focal=0.0, theta=-0.1))
    assert torch.equal(got, mask_losses(logits, target, torch.ones_like(certainty), LossWeights(focal=0.0)))


def test_gradient_of_mask_losses_is_that_of_its_parts():
    logits, target, certainty = case(outputs=3)
    upstream = torch.randn(3, 3, generator=seeded(1), dtype=torch.float64)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad((fused(logits, target, certainty) * upstream).sum(), logits)
    for output in range(3):
        one = logits[:, output : output + 1].detach().requires_grad_()
        (want,) = torch.autograd.grad((plain(one, target, certainty) * upstream[:, output]).sum(), one)
        torch.testing.assert_close(gradient[:, output : output + 1], want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 2.5])
def test_gradient_of_mask_losses_is_its_slope(gamma):
    logits, target, certainty = case(masks=2, outputs=2, height=3, width=3)
    weights, step = LossWeights(gamma=gamma, alpha=0.4), 1e-6
    moves = step * torch.eye(logits.numel(), dtype=logits.dtype).view(-1, *logits.shape)
    up, down = ([mask_losses(logits + sign * move, target, certainty, weights) for move in moves] for sign in (1, -1))
    want = (torch.stack(up) - torch.stack(down)).view(logits.numel(), -1) / (2 * step)  # [numbers, losses]
    for number, column in enumerate(want.T):
        leaf = logits.clone().requires_grad_()  # gradcheck would go backward more than once
        mask_losses(leaf, target, certainty, weights).flatten()[number].backward()
        torch.testing.assert_close(leaf.grad.flatten(), column, rtol=1e-5, atol=1e-7)


def test_mask_losses_does_not_depend_on_how_many_masks_are_worked_at_once(monkeypatch):
    logits, target, certainty = case(masks=5, outputs=2)
    results = []
    for held in (1, 90, 10**6):
        monkeypatch.setattr(losses, "CHUNK_CPU", held)
        leaf = logits.clone().requires_grad_()
        out = fused(leaf, target, certainty)
        out.sum().backward()
        results.append((out.detach(), leaf.grad))
    for out, gradient in results[1:]:
        torch.testing.assert_close(out, results[0][0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("small", [(8, 6), (16, 12), (7, 5), (5, 9), (40, 20), (1, 1)])
def test_logits_are_enlarged_as_interpolate_does_and_so_is_their_gradient(small):
    _, target, certainty = case(height=16, width=12)
    logits = torch.randn(3, 2, *small, generator=seeded(3), dtype=torch.float64).mul_(3).requires_grad_()
    upstream = torch.randn(3, 2, generator=seeded(1), dtype=torch.float64)
    got = fused(logits, target, certainty)
    (gradient,) = torch.autograd.grad((got * upstream).sum(), logits)
    fine = torch.nn.functional.interpolate(logits, (16, 12), mode="bilinear", align_corners=False)
    want = torch.stack([plain(fine[:, k : k + 1], target, certainty) for k in range(2)], 1)
    (slope,) = torch.autograd.grad((want * upstream).sum(), logits)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-8, atol=1e-10)


def test_a_label_may_be_bool_and_nothing_given_is_changed():
    maps = case(outputs=2, dtype=torch.float32)
    before = [x.clone() for x in maps]
    logits, target, certainty = maps
    assert torch.equal(fused(logits, target.bool(), certainty), fused(logits, target, certainty))
    assert all(torch.equal(*pair) for pair in zip(maps, before, strict=True))


def test_a_second_backward_is_refused():
    logits, target, certainty = case()
    loss = fused(logits.requires_grad_(), target, certainty).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_derivative_is_refused():
    logits, target, certainty = case()
    loss = fused(logits.requires_grad_(), target, certainty).sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, logits, create_graph=True)


def test_mask_losses_keeps_only_the_gradient():
    logits, target, certainty = case()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda kept_one: kept.append(kept_one) or kept_one, lambda x: x):
        fused(logits.requires_grad_(), target, certainty)
    assert [tensor.shape for tensor in kept] == [logits.shape]


@pytest.mark.parametrize("loss", [focal_loss, dice_loss, fused, plain])
def test_permuting_masks_permutes_losses(loss):
    maps = case(masks=6)
    order = torch.randperm(6, generator=seeded(2))
    assert torch.equal(loss(*(plane[order] for plane in maps)), loss(*maps)[order])


@pytest.mark.parametrize("loss", [focal_loss, dice_loss, fused])
@pytest.mark.parametrize("size", [100.0, 1e4, 1e30])
def test_extreme_logits_give_finite_losses_and_gradients(loss, size):
    logits = torch.tensor([[-size, size, -size, size]]).view(1, 1, 2, 2).requires_grad_()
    target = draw(".# #.")  # the first row is right, the second wrong
    out = loss(logits, target, torch.ones_like(target))
    out.sum().backward()
    assert out.isfinite().all()
    assert logits.grad.isfinite().all()
    assert torch.all(logits.grad[0, 0, 0] == 0)


@pytest.mark.parametrize("loss", [focal_loss, dice_loss, fused])
def test_half_precision_logits_are_computed_in_float32(loss):
    logits, target, certainty = case(height=64, width=64, dtype=torch.float32)
    short = logits.bfloat16()
    got = loss(short, target, certainty)
    assert got.dtype == torch.float32
    assert torch.equal(got, loss(short.float(), target, certainty))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(short, target.bfloat16(), certainty), got)
    leaf = short.clone().requires_grad_()
    loss(leaf, target, certainty).sum().backward()
    assert leaf.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("loss", [focal_loss, dice_loss, fused])
def test_no_masks_no_losses(loss):
    logits, target, certainty = case(masks=0)
    out = loss(logits.requires_grad_(), target, certainty)
    out.sum().backward()
    assert len(out) == 0


def test_only_the_best_output_is_trained():
    logits, target, certainty = case(outputs=3)
    logits[1, 2] = target[1, 0] * 20 - 10  # the third output of the second mask is right
    out = fused(logits.requires_grad_(), target, certainty)
    best = best_of(out)
    assert best[1] == 2
    assert torch.equal(out.gather(1, best[:, None])[:, 0], out.min(dim=1).values)
    out.gather(1, best[:, None]).sum().backward()
    trained = logits.grad.abs().sum(dim=(2, 3)) > 0
    assert torch.equal(trained, torch.nn.functional.one_hot(best, 3).bool())


def test_best_of_takes_the_first_of_equals():
    assert best_of(torch.tensor([[2.0, 1.0, 1.0], [0.0, 0.0, 0.0]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("prediction", "target", "valid", "want"),
    [
        ("##. ##.", "##. ##.", "### ###", 1.0),  # same
        ("##. ##.", "#.. #..", "### ###", 0.5),  # one column too wide
        ("##. ...", ".## ...", "### ###", 1 / 3),
        ("#.. ...", "... ..#", "### ###", 0.0),  # apart
        ("... ...", "... ...", "### ###", 1.0),  # two empty masks agree
        ("### ...", "... ...", "### ###", 0.0),
        ("##. ###", "##. ...", "### ...", 1.0),  # the second row is padding
        ("### ###", "... ...", "... ...", 1.0),  # all is padding
    ],
)
def test_mask_iou(prediction, target, valid, want):
    logits = draw(prediction) * 0.6 - 0.3  # +-0.3: a cut at 0.5, as in lightning-sam, would see nothing
    assert mask_iou(logits, draw(target), draw(valid) > 0).item() == pytest.approx(want)


def test_mask_iou_is_a_float_a_mask_without_gradient():
    logits, target, _ = case(masks=4, dtype=torch.float32)
    out = mask_iou(logits.requires_grad_(), target, torch.ones_like(target, dtype=torch.bool))
    assert out.shape == (4,)
    assert out.dtype == torch.float32
    assert not out.requires_grad


def test_iou_loss_is_the_squared_error_and_moves_only_the_prediction():
    predicted = torch.tensor([0.5, 1.0], requires_grad=True)
    actual = torch.tensor([0.75, 1.0], requires_grad=True)
    out = iou_loss(predicted, actual)
    assert out.tolist() == [0.0625, 0.0]
    out.sum().backward()
    assert predicted.grad.tolist() == [-0.5, 0.0]
    assert actual.grad is None
    assert iou_loss(predicted.bfloat16(), actual).dtype == torch.float32
