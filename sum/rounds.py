"""The interactive rounds of one batch (Appendix B.1): prompt, predict, lose, prompt where it was wrong.

Gradients of a round are released before the next one begins; the image encoder is run once and receives the sum of
all rounds. Masks do not see each other: they may take turns, a few at a time, and the gradients add up to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sum.core.chance import normal, uniform
from sum.core.geometry import mask_to_box
from sum.core.losses import LossWeights, best_of, iou_loss, mask_iou, mask_losses
from sum.core.prompts import correction_points, jitter_boxes, place_points
from sum.data.batches import TrainBatch
from sum.models.mask_chunk import MaskChunk, needs_room
from sum.models.segmenter import BOX_FIRST, BOX_SECOND, PAD, POSITIVE, Prediction, Prompts, Segmenter
from sum.one_shot import OneShot, ask, one_shot_prompts
from sum.terms import Term, add_terms

LESS_ENCODER = (
    "When fine-tuning, set finetune.recompute_encoder to true, with which it goes on from its last checkpoint, or "
    "raise finetune.accumulate. "
)
Backward = Callable[[Tensor], None]
Autocast = Callable[[], AbstractContextManager[object]]
Relabel = Callable[[TrainBatch, Prompts], TrainBatch]
NOISE, FIRST, LATER = 0, 8, 10  # places in a mask's stream of random numbers: box's noise; point, box or not; rounds


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How a batch is prompted and what it loses; the defaults are the paper's."""

    count: int = 7  # rounds
    idle_last: bool = True  # the last round only feeds the logits back
    box_odds: float = 0.5  # share of masks that start with a box
    box_noise: float = 0.1  # sd, share of the box's side
    box_noise_limit: float = 20.0  # px of a 1024 frame
    task_prompt: Literal["first", "all", "off"] = "first"  # the rounds in which the task prompt is added
    weigh_points: bool = True  # points are drawn by certainty; False: evenly
    weigh_loss: bool = True  # losses count a pixel by its certainty; False: every pixel of the image the same
    iou_of_all: bool = False  # the IoU head learns from all three outputs, as SAM 2's
    one_shot: bool = False  # one round, whose prompts are those of sum/one_shot.py
    weights: LossWeights = field(default_factory=LossWeights)
    terms: tuple[Term, ...] = ()  # further losses, of the image embedding
    relabel: Relabel | None = None  # gives the masks of a batch, whose first prompts it knows, other labels
    views: Rounds | None = None  # how images that are students' views are trained; None: as all others

    def __post_init__(self) -> None:
        if self.one_shot and self.count != 1:
            raise ValueError(f"one-shot prompts are of one round, got {self.count}")
        if self.one_shot and self.relabel is not None:
            raise ValueError("one-shot prompts go without relabel: a teacher answers boxes and points")


def train_rounds(
    model: Segmenter,
    batch: TrainBatch,
    *,
    rounds: Rounds,
    generator: torch.Generator,
    backward: Backward,
    autocast: Autocast = nullcontext,
    chunk: MaskChunk | None = None,
) -> dict[str, Tensor]:
    """Run all rounds of a batch and leave the gradients in the model's parameters.

    backward takes a scalar loss; the losses of all rounds and masks add up to the mean over images and rounds. chunk:
    how many masks are at work at once (default: all). What chance decides for a mask hangs on its seed alone.
    Returns scalars: loss and its parts (masks, IoU head, terms), the IoU after the first and the last round, how many
    masks were at work at once, how often memory did not suffice; and `mask_losses` `[N]` a round. Raises OutOfMemory.
    """
    chunk = chunk or MaskChunk()
    failures = chunk.failures
    with needs_room("the first prompts"):
        seeds = seeds_of(batch, generator)
        asked = batch if rounds.weigh_points else without_doubt(batch)
        prompts = prompts_of(asked, model=model, rounds=rounds, seeds=seeds)
    if rounds.relabel is not None and isinstance(prompts, Prompts):  # never one-shot prompts, see Rounds
        batch = rounds.relabel(batch, prompts)
    with needs_room("the image encoder", mend=LESS_ENCODER), autocast():  # now: a teacher has given its memory back
        features = model.encode(batch.image, batch.hw)
    chances = uniform(seeds, start=LATER, count=rounds.count - 1).unbind(1)
    share = image_shares(batch.image_index, images=len(batch.image))

    def attempt(parts: Sequence[slice]) -> tuple[Tensor, dict[str, Tensor]]:
        embedding = features.detach().requires_grad_(features.requires_grad)
        log: dict[str, Tensor] = {}
        losses = []
        for part in parts:
            turn = Turn(batch.masks(part), prompts.masks(part), share[part], [drawn[part] for drawn in chances])
            found = play(model, embedding, turn, rounds=rounds, backward=backward, autocast=autocast)
            losses.append(found.pop("mask_losses"))
            log = {name: log[name] + value if log else value for name, value in found.items()}
        return embedding, log | {"mask_losses": torch.cat(losses)}

    embedding, log = chunk.over(len(batch.mask), model.parameters(), attempt)
    parts = chunk.parts(len(batch.mask))
    log |= add_terms(rounds.terms, embedding, batch, parts=parts, seeds=seeds, share=share, backward=backward, log=log)
    if embedding.grad is not None:
        with needs_room("the image encoder", mend=LESS_ENCODER):
            features.backward(embedding.grad)  # type: ignore[no-untyped-call]
    log |= {name: log[name] / len(batch.mask) for name in ("iou_first", "iou_last")}
    at_once = torch.tensor(min(chunk.size, len(batch.mask)))
    return {**log, "mask_chunk": at_once, "out_of_memory": torch.tensor(chunk.failures - failures)}


@dataclass(frozen=True, slots=True)
class Turn:
    """Masks that are at work at once: `n` of the `N` of a batch."""

    batch: TrainBatch  # with these masks only, and all images
    prompts: Prompts | OneShot  # of the first round
    share: Tensor  # [n] float: what each counts in the loss of the batch
    chances: Sequence[Tensor]  # [n] float64 in [0, 1) a later round: where its point falls


def play(
    model: Segmenter, embedding: Tensor, turn: Turn, *, rounds: Rounds, backward: Backward, autocast: Autocast
) -> dict[str, Tensor]:
    """All rounds of some masks; adds to the gradients of the model and of `embedding` `[B, C, h, w]`.

    Returns scalars: the part of these masks in the batch's losses, and the sums of their IoUs of the first and last
    round; and `mask_losses` `[n]`, the mean over the rounds of each.
    """
    batch, prompts = turn.batch, turn.prompts
    asked = batch if rounds.weigh_points else without_doubt(batch)
    judged = batch if rounds.weigh_loss else without_doubt(batch)
    log: dict[str, Tensor] = {}
    for number in range(rounds.count):
        with_task = rounds.task_prompt == "all" or (rounds.task_prompt == "first" and number == 0)
        with autocast():
            tasks = batch.task if with_task else None
            prediction = ask(model, embedding, batch.image_index, prompts, multimask=number == 0, task=tasks)
        found = round_loss(prediction, judged, rounds=rounds, share=turn.share)
        backward(found.total / rounds.count)
        for name, value in found.parts(turn.share).items():
            log[name] = log.get(name, 0.0) + value / rounds.count
        if number == 0:
            log["iou_first"] = log["iou_last"] = found.iou.sum()
        if number + 1 == rounds.count:
            log["iou_last"] = found.iou.sum()
        else:
            assert isinstance(prompts, Prompts)  # one-shot prompts have no second round
            idle = rounds.idle_last and number + 2 == rounds.count
            last = found.best.logits.detach().float()
            prompts = (
                prompts.with_logits(last)
                if idle
                else correct(prompts, found.fine, asked, logits=last, side=model.side, chance=turn.chances[number])
            )
    return log


@dataclass(frozen=True, slots=True)
class RoundLoss:
    """What a round of `n` masks comes to; only `total` has a gradient."""

    total: Tensor  # the mean over images of the mean over an image's masks
    best: Prediction  # the best output of each mask, low resolution
    fine: Tensor  # [n, 1, L, L] float32, its logits at the loss side
    iou: Tensor  # [n], its IoU with the label
    mask: Tensor  # [n], focal and Dice
    quality: Tensor  # [n], the IoU head's error, weighted

    def parts(self, share: Tensor) -> dict[str, Tensor]:
        """What the history tells of it; share `[n]`: what each mask counts."""
        return {
            "loss": self.total.detach(),
            "loss_mask": (share * self.mask).sum(),
            "loss_iou": (share * self.quality).sum(),
            "mask_losses": self.mask + self.quality,
        }


def round_loss(prediction: Prediction, batch: TrainBatch, *, rounds: Rounds, share: Tensor | None = None) -> RoundLoss:
    """Loss of a round of the best output of each mask: the mean over images of the mean over an image's masks.

    share: `[N]`, what each mask counts, where `batch` holds only some of the masks of a larger one.
    """
    side = batch.mask.shape[-1]
    losses = mask_losses(prediction.logits, batch.mask, batch.certainty, rounds.weights)
    index = best_of(losses.detach())
    rows = torch.arange(len(index), device=index.device)
    best = prediction.pick(index)
    chosen = enlarged(best.logits.detach(), side)
    valid = valid_pixels(batch)
    iou = mask_iou(chosen, batch.mask, valid)
    if rounds.iou_of_all and prediction.iou.shape[1] > 1:
        fine = enlarged(prediction.logits.detach(), side)
        every = torch.stack([mask_iou(plane[:, None], batch.mask, valid) for plane in fine.unbind(1)], 1)
        quality = iou_loss(prediction.iou.float().flatten(), every.flatten()).view_as(every).mean(1)
    else:
        quality = iou_loss(prediction.iou[rows, index].float(), iou)
    share = image_shares(batch.image_index, images=len(batch.image)) if share is None else share
    each, quality = losses[rows, index], rounds.weights.iou * quality
    total = (share * (each + quality)).sum()
    return RoundLoss(total, best, chosen, iou, each.detach(), quality.detach())


def enlarged(logits: Tensor, side: int) -> Tensor:
    """Low-resolution logits `[N, M, L, L]` at another side, float32 `[N, M, side, side]`."""
    return F.interpolate(logits.float(), (side, side), mode="bilinear", align_corners=False)


def image_shares(image_index: Tensor, *, images: int) -> Tensor:
    """Weight of each mask so that every image counts the same: `[N]` -> float `[N]`, 1 in all.

    The paper has one image a GPU and averages over GPUs. A mean over masks would let an image with 30 pseudo-labels
    drown one with a single human mask, whatever the budget's ratio of images says.
    """
    counts = torch.zeros(images, device=image_index.device).index_add_(
        0, image_index, torch.ones(len(image_index), device=image_index.device)
    )
    return 1 / (counts[image_index] * images)


def without_doubt(batch: TrainBatch) -> TrainBatch:
    """The same batch with certainty 1 on every pixel of the images; padding keeps 0."""
    return replace(batch, certainty=valid_pixels(batch).to(batch.certainty.dtype))


def valid_pixels(batch: TrainBatch) -> Tensor:
    """Which pixels at the loss side are image, as `image_part` has it: bool `[N, 1, L, L]`."""
    loss_side, side = batch.mask.shape[-1], batch.image.shape[-1]
    place = torch.arange(loss_side, device=batch.mask.device)
    size = (batch.hw[batch.image_index] * loss_side // side).clamp(min=1)
    inside = (place[None, :, None] < size[:, 0, None, None]) & (place[None, None, :] < size[:, 1, None, None])
    return inside[:, None]


def seeds_of(batch: TrainBatch, generator: torch.Generator) -> Tensor:
    """`[N]` int64: what the random numbers of each mask hang on; drawn now where the batch has none."""
    if batch.seed is not None:
        return batch.seed
    return torch.randint(2**62, (len(batch.mask),), generator=generator).to(batch.mask.device, non_blocking=True)


def prompts_of(batch: TrainBatch, *, model: Segmenter, rounds: Rounds, seeds: Tensor) -> Prompts | OneShot:
    """What each mask is asked first, by its seed `[N]`."""
    if rounds.one_shot:
        return one_shot_prompts(batch, side=model.side, low_side=model.low_side, seeds=seeds)
    return first_prompts(batch, side=model.side, rounds=rounds, seeds=seeds)


def first_prompts(batch: TrainBatch, *, side: int, rounds: Rounds, seeds: Tensor) -> Prompts:
    """A noisy box or a point for each mask, by its seed `[N]`; the point is drawn over the mask by certainty."""
    loss_side = batch.mask.shape[-1]
    scale = side / loss_side
    box = mask_to_box(batch.mask[:, 0] > 0.5).float()
    box = torch.cat([box[:, :2] * scale, (box[:, 2:] + 1) * scale - 1], 1)
    noise, limit = normal(seeds, start=NOISE, count=4), rounds.box_noise_limit * side / 1024
    box = jitter_boxes(box, side=side, noise=noise, scale=rounds.box_noise, limit=limit).view(-1, 2, 2)
    spot, which = uniform(seeds, start=FIRST, count=2).unbind(1)
    xy, found = place_points(batch.mask * batch.certainty, spot)
    xy = torch.where(found[:, None], (xy + 0.5) * scale - 0.5, batch.point)
    point = torch.stack([xy, torch.zeros_like(xy)], 1)
    boxed = which < rounds.box_odds
    labels = [torch.where(boxed, BOX_FIRST, POSITIVE), torch.where(boxed, BOX_SECOND, PAD)]
    return Prompts(torch.where(boxed[:, None, None], box, point), torch.stack(labels, 1))


def correct(prompts: Prompts, fine: Tensor, batch: TrainBatch, *, logits: Tensor, side: int, chance: Tensor) -> Prompts:
    """One more point where the prediction is wrong, drawn by certainty, and the logits fed back.

    fine: the prediction's logits `[N, 1, L, L]` at the loss side; chance: `[N]` float64 in [0, 1). Without
    a certain error the mask's own point is repeated.
    """
    xy, label, found = correction_points(fine, batch.mask, batch.certainty, chance=chance)
    scale = side / batch.mask.shape[-1]
    xy = torch.where(found[:, None], (xy + 0.5) * scale - 0.5, batch.point)
    return prompts.with_point(xy, label, logits=logits)
