"""The losses of the method: focal, Dice and IoU head, where a pixel of a pseudo-label counts as much as it is certain.

Human masks have certainty 1 everywhere, so there is one training path. Sources: Liu et al., NeurIPS 2024, 3.2.1;
focal loss: Lin et al. 2017; ratios: Kirillov et al. 2023. Everything is computed in float32 (or float64 if the
logits are), whatever the logits come in. Every loss returns one number a mask; averaging is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_CPU = 1 << 17  # pixels of mask_losses at work at once: half a megabyte a map stays in the cache
CHUNK_GPU = 1 << 24  # 64 MB a map: enough to fill the device


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """The numbers of the loss; the defaults are the paper's."""

    focal: float = 20.0  # focal : Dice = 20 : 1, as SAM
    dice: float = 1.0
    iou: float = 1.0  # of the IoU head's squared error
    alpha: float = 0.25  # focal weight of the object's pixels; 1 - alpha for the others
    gamma: float = 2.0  # focal exponent
    theta: float = 0.6  # Dice looks only at pixels with certainty above it; the public code's 0.5 is not the paper's
    eps: float = 1.0  # smooths Dice for small masks


def focal_loss(logits: Tensor, target: Tensor, certainty: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss in which a pixel counts as much as it is certain, averaged over all pixels, certain or not.

    logits, target, certainty: `[B, 1, H, W]`; target is 0 or 1, certainty is 1 - uncertainty, in 0..1.
    Returns `[B]`: one loss a mask.
    """
    wide = _wide(logits)
    label = (target > 0.5).to(wide.dtype)
    wrong = wide * (1 - 2 * label)  # above 0: on the wrong side
    surprise = -F.logsigmoid(-wrong)
    hardness = torch.sigmoid(wrong) ** gamma  # 1 - exp(-surprise) would be 0 wherever wrong is below -17
    side = alpha * label + (1 - alpha) * (1 - label)
    return (side * hardness * surprise * _wide(certainty)).flatten(1).mean(1)


def dice_loss(logits: Tensor, target: Tensor, certainty: Tensor, *, theta: float = 0.6, eps: float = 1.0) -> Tensor:
    """Dice loss over the pixels whose certainty is above `theta`; a mask without such pixels costs 0.

    logits, target, certainty: `[B, 1, H, W]`; target is 0 or 1, certainty is 1 - uncertainty, in 0..1.
    Returns `[B]`: one loss a mask, 0..1.
    """
    certain = (certainty > theta).flatten(1)
    label = (target > 0.5).flatten(1) & certain
    probs = torch.sigmoid(_wide(logits)).flatten(1) * certain
    overlap = (probs * label).sum(1)
    return 1 - (2 * overlap + eps) / (probs.sum(1) + label.sum(1) + eps)


def mask_losses(logits: Tensor, target: Tensor, certainty: Tensor, weights: LossWeights) -> Tensor:
    """Weighted focal + Dice of every output of the decoder against the one label.

    logits: `[B, M, H, W]`; target, certainty: `[B, 1, H, W]`, as in `focal_loss`; gradient to the logits only, and only
    once. Returns `[B, M]`. The same numbers as `focal_loss` and `dice_loss`, in a fraction of their memory.
    """
    losses: Tensor = _MaskLosses.apply(_wide(logits), target > 0.5, _wide(certainty), weights)
    return losses


def best_of(losses: Tensor) -> Tensor:
    """Pick the output that is trained: the lowest loss. `[B, M]` -> index `[B]`, the first one on a tie."""
    return losses.argmin(dim=1)


@torch.no_grad()
def mask_iou(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """IoU of the prediction (probability 0.5, that is logit 0) with the label; what the IoU head should say.

    logits, target, valid: `[B, 1, H, W]`; target is 0 or 1, valid is False on padding. Returns `[B]`, float32, 0..1,
    without gradient; two empty masks agree: 1.
    """
    keep = valid > 0
    prediction, truth = (logits > 0) & keep, (target > 0.5) & keep
    both = (prediction & truth).flatten(1).sum(1)
    either = (prediction | truth).flatten(1).sum(1)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def iou_loss(predicted: Tensor, actual: Tensor) -> Tensor:
    """Squared error of the IoU head. predicted, actual: `[B]`, 0..1; no gradient to `actual`. Returns `[B]`."""
    return (_wide(predicted) - _wide(actual).detach()) ** 2


def _wide(values: Tensor) -> Tensor:
    """At least float32: a mean over 10^6 pixels loses its digits in bfloat16."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _MaskLosses(torch.autograd.Function):
    """Value and gradient in one pass over a few masks at a time: only the gradient is kept for backward.

    Autograd would keep nine maps of each output (1.4 GB for 30 masks at 1024) and, on a CPU, reread them from memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, inside: Tensor, certainty: Tensor, weights: LossWeights) -> Tensor:
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        losses = logits.new_empty(logits.shape[:2])
        held = CHUNK_CPU if logits.device.type == "cpu" else CHUNK_GPU
        step = max(1, held // max(1, logits[0].numel() if len(logits) else 1))
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            losses[part] = _focal_and_dice(
                logits[part], inside[part], certainty[part], weights=weights, gradient=gradient[part]
            )
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, :, None, None], None, None, None


def _focal_and_dice(
    logits: Tensor, inside: Tensor, certainty: Tensor, *, weights: LossWeights, gradient: Tensor
) -> Tensor:
    """Weighted losses `[B, M]` of `[B, M, H, W]` logits; writes their derivative by the logits into `gradient`."""
    label, certain = inside.to(logits.dtype), (certainty > weights.theta).to(logits.dtype)
    turn = 1 - 2 * label
    wrong = logits * turn  # above 0: on the wrong side
    miss, surprise = torch.sigmoid(wrong), F.softplus(wrong)
    hit = 1 - miss
    side = (1 - weights.alpha + (2 * weights.alpha - 1) * label).mul_(certainty)
    factor = (miss**weights.gamma).mul_(side.mul_(weights.focal / logits[0, 0].numel()))
    focal = (factor * surprise).sum(dim=(2, 3))

    label *= certain
    truth = label.sum(dim=(2, 3), keepdim=True)
    overlap = truth - (miss * label).sum(dim=(2, 3), keepdim=True)  # the probability of the right side is hit or miss
    found = truth + (miss * (certain * turn)).sum(dim=(2, 3), keepdim=True)
    doubled, size = 2 * overlap + weights.eps, found + truth + weights.eps
    pull = (certain * (doubled / size) - 2 * label).mul_(weights.dice / size)

    torch.mul(surprise.mul_(weights.gamma).mul_(hit).add_(miss).mul_(factor), turn, out=gradient)
    gradient.addcmul_(miss.mul_(hit), pull)
    return focal + weights.dice * (1 - doubled / size)[:, :, 0, 0]
