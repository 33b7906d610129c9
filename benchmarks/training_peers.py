"""What benchmarks/training.py measures against: the authors' public sampling and losses, segment_anything's modules.

The authors' files are read from a checkout of their repository (Kangningthu/SUM). Of what is known to be wrong there
(their box noise moves right and down only, theta is 0.5 by default) nothing is used here; theta is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor

from benchmarks.checkouts import module_at
from sum.core.losses import LossWeights
from sum.models.segmenter import BOX_FIRST, PAD, Prompts

Draw = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # prediction [N, 1, L, L], round -> xy [N, 2], label [N]


class Authors:
    """The authors' functions, from `utils/` of their repository."""

    def __init__(self, folder: Path) -> None:
        self.sampling = module_at(folder / "utils" / "interactive_sampling.py", "--official")
        self.losses = module_at(folder / "utils" / "losses.py", "--official")

    def points(self, prediction: Tensor, target: Tensor, certainty: Tensor) -> tuple[Tensor, Tensor]:
        """A correction point of each mask: xy `[N, 2]`, label `[N]`. All maps `[N, 1, L, L]`, prediction cut."""
        count = len(target)
        backup = torch.zeros(count, 1, 2)
        so_far = torch.zeros(count, 0, 2), torch.zeros(count, 0, dtype=torch.int)
        xy, label = self.sampling.sample_point_frommask(
            target, backup, binary_mask=prediction, previous_points=so_far, device="cpu", prob_weights=certainty
        )
        return xy[:, -1], label[:, -1]

    def mask_losses(self, logits: Tensor, target: Tensor, doubt: Tensor, weights: LossWeights) -> Tensor:
        """Weighted focal + Dice, `[N]`, of logits `[N, 1, l, l]` that are enlarged to the label `[N, 1, L, L]`."""
        if logits.shape != target.shape:
            logits = F.interpolate(logits, target.shape[2:], mode="bilinear", align_corners=False)
        focal = self.losses.uncertainty_aware_focal_loss(
            logits, target, doubt, alpha=weights.alpha, gamma=weights.gamma
        )
        dice = self.losses.uncertainty_aware_dice_loss(
            logits, target, smooth=weights.eps, uncertain_map=doubt, uncertain_map_threshold=weights.theta
        )
        return weights.focal * focal + weights.dice * dice


def decode(sam: Sam, embedding: Tensor, prompts: Prompts, *, multimask: bool) -> tuple[Tensor, Tensor]:
    """Logits `[N, M, L, L]` and predicted IoU `[N, M]` by SAM's own modules, masks with a box and without in turn.

    SAM's prompt encoder wants prompts of one kind in a call. embedding `[1, C, h, w]`.
    """
    boxed = (prompts.label == BOX_FIRST).any(1)
    order, parts = [], []
    for kind in (True, False):
        rows = (boxed == kind).nonzero().flatten()
        if len(rows):
            order.append(rows)
            parts.append(_decode_alike(sam, embedding, prompts, rows, boxed=kind, multimask=multimask))
    back = torch.cat(order).argsort()
    logits, iou = (torch.cat(part)[back] for part in zip(*parts, strict=True))
    return logits, iou


def _decode_alike(
    sam: Sam, embedding: Tensor, prompts: Prompts, rows: Tensor, *, boxed: bool, multimask: bool
) -> tuple[Tensor, Tensor]:
    """The same for some masks, all with a box or none. Clicks come first, then two corners or a point and padding."""
    xy, label = prompts.xy[rows], prompts.label[rows]
    clicks = slice(0, -2) if boxed else slice(0, -1)
    assert boxed or (label[:, -1] == PAD).all()
    points = (xy[:, clicks], label[:, clicks]) if label[:, clicks].numel() else None
    sparse, dense = sam.prompt_encoder(
        points=points,
        boxes=xy[:, -2:].flatten(1) if boxed else None,
        masks=None if prompts.logits is None else prompts.logits[rows],
    )
    return sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )


def train_step(
    sam: Sam, authors: Authors, image: Tensor, maps: Sequence[Tensor], *, prompts: Prompts, draw: Draw, rounds: int
) -> list[float]:
    """One step of SUM made of the public pieces; leaves gradients in `sam`, returns the loss of each round.

    image `[1, 3, S, S]`; maps: target and doubt, float `[N, 1, L, L]`; prompts: of the first round. A round's graph is
    gone before the next, as in sum/rounds.py: all seven at once would take seven times the memory.
    """
    target, doubt = maps
    weights = LossWeights()
    features = sam.image_encoder((image - sam.pixel_mean) / sam.pixel_std)
    embedding = features.detach().requires_grad_()
    log = []
    for number in range(rounds):
        logits, iou = decode(sam, embedding, prompts, multimask=number == 0)
        losses = torch.stack([authors.mask_losses(x[:, None], target, doubt, weights) for x in logits.unbind(1)], 1)
        best = losses.detach().argmin(1)
        rows = torch.arange(len(best))
        low = logits.detach()[rows, best][:, None]
        seen = (F.interpolate(low, target.shape[2:], mode="bilinear", align_corners=False) > 0).float()
        actual = authors.losses.calc_iou(seen[:, 0], target[:, 0])[:, 0]
        loss = (losses[rows, best] + weights.iou * (iou[rows, best] - actual) ** 2).mean()
        (loss / rounds).backward()
        log.append(loss.item())
        if number + 2 < rounds:
            prompts = prompts.with_point(*draw(seen, number), logits=low)
        else:
            prompts = prompts.with_logits(low)
    features.backward(embedding.grad)
    return log
