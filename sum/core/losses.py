"""The losses of the method: focal, Dice and IoU head, where a pixel of a pseudo-label counts as much as it is certain.

Human masks have certainty 1 everywhere, so there is one training path. Sources: Liu et al., NeurIPS 2024, 3.2.1;
focal loss: Lin et al. 2017; ratios: Kirillov et al. 2023. Everything is computed in float32 (or float64 if the
logits are), whatever the logits come in. Every loss returns one number a mask; averaging is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_CPU = 3 << 16  # pixels of mask_losses at work at once: larger maps leave the cache, smaller ones are many calls
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

    logits: `[B, M, h, w]`, enlarged to the size of the label as `F.interpolate` does it (bilinear, align_corners
    False), all finite; target, certainty: `[B, 1, H, W]`, as in `focal_loss`; gradient to the logits only, and only
    once. Returns `[B, M]`. The same numbers as `focal_loss` and `dice_loss`, in a fraction of their time and memory.
    """
    losses: Tensor = _MaskLosses.apply(_wide(logits), target, certainty, weights)
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
    """Value and gradient in one pass over a few masks, and a few pixels of them, at a time: only the gradient by the
    logits, as small as they came, is kept for backward.

    Autograd would keep nine maps of each output (1.4 GB for 30 masks at 1024) and, on a CPU, reread them from memory.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, certainty: Tensor, weights: LossWeights) -> Tensor:
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        held = CHUNK_CPU if logits.device.type == "cpu" else CHUNK_GPU
        small, large = logits.shape[2:], target.shape[2:]
        step = max(1, held // max(1, logits.shape[1] * large.numel()))
        most = min(step, len(logits))  # new memory is dear, so all of them work in the same
        room = [logits.new_empty(most, maps, large.numel()) for maps in (logits.shape[1], 1)]
        losses = []
        for z, slope, y, c in zip(*(torch.split(x, step) for x in (logits, gradient, target, certainty)), strict=True):
            fine = z if small == large else _enlarged(z, large)
            out = slope if small == large else fine
            losses.append(
                _focal_and_dice(
                    fine.flatten(2),
                    y.flatten(2),
                    c.flatten(2),
                    weights=weights,
                    out=out.flatten(2),
                    room=[x[: len(z)] for x in room],
                    held=held,
                )
            )
            if small != large:
                slope.copy_(_shrunk(out, small))
        ctx.save_for_backward(gradient)
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():  # create_graph: `once_differentiable` would leave the second derivative out
            raise RuntimeError("mask_losses has no second derivative; build it of focal_loss and dice_loss, which have")
        (gradient,) = ctx.saved_tensors
        gradient.mul_(upstream[:, :, None, None])  # in place: autograd refuses a second backward
        return gradient, None, None, None


def _focal_and_dice(
    logits: Tensor,
    target: Tensor,
    certainty: Tensor,
    *,
    weights: LossWeights,
    out: Tensor,
    room: list[Tensor],
    held: int,
) -> Tensor:
    """Weighted losses `[n, M]` of logits `[n, M, P]`; their derivative fills `out`, which may be the logits.

    target, certainty: `[n, 1, P]`; room: scratch `[n, M, P]` and `[n, 1, P]`; held: pixels at work at once.
    Dice is a ratio, missed / (2 overlap + eps + missed): both sums must be known before its derivative is.
    """
    step = max(1, held // max(1, logits[:, :, 0].numel()))
    each = replace(weights, focal=weights.focal / max(1, logits.shape[2]))  # a mean over all pixels
    maps = (logits, target, certainty, out, *room)
    strips = list(zip(*(torch.split(x, step, dim=2) for x in maps), strict=True))
    parts = [_strip(*strip, weights=each) for strip in strips]
    focal, overlap, missed = torch.stack(parts).sum(0)
    doubled = 2 * overlap + weights.eps
    size = doubled + missed
    share = weights.dice / size
    pull, push = share * doubled / size, -2 * share
    for *_, part, slope, label in strips:
        part.addcmul_(slope, (label * push).add_(pull))
    losses: Tensor = (focal + share * missed)[..., 0]
    return losses


def _strip(
    logits: Tensor,
    target: Tensor,
    certainty: Tensor,
    out: Tensor,
    slope: Tensor,
    label: Tensor,
    *,
    weights: LossWeights,
) -> Tensor:
    """What some pixels, `[n, M, p]`, add to the sums of their masks, in few passes: on a CPU each pass is a cost.

    Returns `[3, n, M, 1]`: weighted focal loss; where Dice looks, the probability that is right on the object, and that
    which is wrong anywhere. Filled are: `out` with the focal loss's derivative; of those where Dice looks, `slope` with
    the derivative of the probabilities and `label` `[n, 1, p]` with the object's pixels.
    """
    _mark(target, above=0.5, out=label)
    certain = _mark(certainty, above=weights.theta, out=torch.empty_like(label))
    wrong = torch.addcmul(logits, logits, label, value=-2)  # above 0: on the wrong side
    miss = torch.sigmoid(wrong)
    hit = 1 - miss
    factor = torch.maximum(miss, hit)
    surprise = wrong.clamp_(min=0).sub_(factor.log_())  # softplus, which a CPU takes 6 times as long
    torch.addcmul(miss, surprise, hit, value=weights.gamma, out=out)
    others = weights.focal * (1 - weights.alpha)
    side = torch.rsub(label, others, alpha=weights.focal)  # -alpha on the object, as is the slope there
    torch.pow(miss, weights.gamma, out=factor).mul_(side.mul_(certainty))
    out.mul_(factor)
    focal = surprise.mul_(factor).abs_().sum(2, keepdim=True)
    overlap = torch.mul(hit, label.mul_(certain), out=factor).sum(2, keepdim=True)
    missed = miss.mul_(certain).sum(2, keepdim=True)
    torch.mul(miss, hit, out=slope)
    return torch.stack([focal, overlap, missed])


def _mark(values: Tensor, *, above: float, out: Tensor) -> Tensor:
    """1 above a number, 0 elsewhere, in the fewest passes: a comparison that makes bool is slow to turn into float."""
    if values.dtype == torch.bool:
        return out.copy_(values.view(torch.uint8))
    return torch.gt(values, above, out=out)


def _enlarged(logits: Tensor, hw: torch.Size) -> Tensor:
    """`[n, M, h, w]` -> `[n, M, H, W]`."""
    return F.interpolate(logits, tuple(hw), mode="bilinear", align_corners=False).contiguous()


def _shrunk(gradient: Tensor, hw: torch.Size) -> Tensor:
    """The gradient by what `_enlarged` enlarged: `[n, M, H, W]`, which is overwritten, -> `[n, M, h, w]`.

    torch's own takes a CPU ten times as long.
    """
    rows = _share_rows(gradient.flatten(0, 1), hw[0])
    columns = _share_rows(rows.transpose(1, 2).contiguous(), hw[1])
    return columns.transpose(1, 2).reshape(*gradient.shape[:2], *hw)


def _share_rows(values: Tensor, height: int) -> Tensor:
    """Each row to the two it was interpolated from: `[K, H, W]`, which is overwritten, -> `[K, height, W]`."""
    place = (torch.arange(values.shape[1], device=values.device, dtype=values.dtype) + 0.5) * height / values.shape[1]
    place = (place - 0.5).clamp(min=0)
    low = place.long()  # rounds down
    high = (low + 1).clamp(max=height - 1)
    out = values.new_zeros(len(values), height, values.shape[2]).index_add_(1, low, values)
    values.mul_((place - low)[:, None])
    return out.index_add_(1, low, values, alpha=-1).index_add_(1, high, values)
