"""Both sides of each row of benchmarks/training.py, on the same inputs, and what shows that they do the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from benchmarks.generator import candidates
from benchmarks.training_peers import Authors, decode, train_step
from sum.core.chance import uniform
from sum.core.losses import LossWeights, dice_loss, focal_loss, mask_losses
from sum.core.prompts import correction_points
from sum.data.batches import TrainBatch
from sum.models.backbones import BACKBONES
from sum.models.segmenter import BOX_FIRST, BOX_SECOND, PAD, POSITIVE, Prompts, Segmenter
from sum.rounds import LATER, Rounds, first_prompts, train_rounds


class Duel(Protocol):
    """Two sides that do the same, and how far they are apart."""

    def reference(self) -> Any: ...
    def ours(self) -> Any: ...
    def agree(self, want: Any, got: Any) -> str: ...  # what the last calls gave


@dataclass(frozen=True)
class World:
    """Labels, predictions that miss slivers of them, and certainty: `[N, 1, L, L]`."""

    target: Tensor  # bool
    logits: Tensor
    certainty: Tensor

    @classmethod
    def of(cls, masks: int, side: int, *, reach: float = 1 / 15) -> World:
        """reach: sd of the displacement, of half the side."""
        chance = torch.Generator().manual_seed(3)
        blob, _ = candidates(masks, inner=(1024, 1024))
        blob = _resized(blob[:, :1], side)
        move = _resized(torch.randn(masks, 2, 6, 6, generator=chance), side, "bicubic").permute(0, 2, 3, 1) * reach
        grid = F.affine_grid(torch.eye(2, 3).expand(masks, -1, -1), [masks, 1, side, side], align_corners=False)
        moved = F.grid_sample(blob, grid + move, padding_mode="border", align_corners=False)
        certainty = _resized(torch.rand(masks, 1, 24, 24, generator=chance), side, "bicubic").clamp(0, 1)
        return cls(blob > 0, moved, certainty)

    @property
    def wrong(self) -> float:
        """Share of pixels."""
        return ((self.logits > 0) != self.target).float().mean().item()


def _resized(x: Tensor, side: int, mode: str = "bilinear") -> Tensor:
    return F.interpolate(x, (side, side), mode=mode, align_corners=False)


class Sampling:
    """A correction point for each mask, of bool masks: the authors' loop is slower with float ones."""

    def __init__(self, authors: Authors, *, masks: int, side: int) -> None:
        world = World.of(masks, side)
        self.authors, self.maps = authors, (world.logits > 0, world.target, world.certainty)
        self.chance = torch.Generator().manual_seed(0)
        self.wrong = world.wrong

    def reference(self) -> tuple[Tensor, Tensor]:
        return self.authors.points(*self.maps)

    def ours(self) -> tuple[Tensor, Tensor]:
        return self._points(*self.maps)

    def _points(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        return correction_points(*maps, chance=torch.rand(len(maps[0]), generator=self.chance, dtype=torch.float64))[:2]

    def agree(self, *_: object) -> str:
        """Chi-square of both sides against the law on 8 maps of 32 x 32, 1,500 draws each."""
        torch.manual_seed(0)
        world, times = World.of(8, 32, reach=0.3), 1500
        maps = world.logits > 0, world.target, world.certainty
        law = torch.where(maps[0] != maps[1], maps[2], 0)[:, 0].flatten(1).double().numpy()
        worst = []
        for points in (self.authors.points, self._points):
            xy, label = points(*(x.repeat(times, 1, 1, 1) for x in maps))
            x, y = xy.long().unbind(1)
            assert torch.equal(label.bool(), maps[1].repeat(times, 1, 1, 1)[torch.arange(len(x)), 0, y, x])
            seen = (y * 32 + x).view(times, 8).numpy()
            worst.append(min(_p_value(seen[:, n], law[n]) for n in range(8)))
        return f"errors {self.wrong:.1%}; lowest p of 8 laws: {worst[0]:.2f} theirs, {worst[1]:.2f} ours"


def _p_value(drawn: np.ndarray, weights: np.ndarray) -> float:
    expected = weights / weights.sum() * len(drawn)
    seen = np.bincount(drawn, minlength=len(weights))
    assert not seen[weights == 0].any()
    often = expected >= 5
    groups = [(a[often], a[~often].sum(keepdims=True)) for a in (seen, expected)]  # rare pixels are counted together
    counts = [np.concatenate(parts if expected[~often].sum() else parts[:1]) for parts in groups]
    return float(stats.chisquare(*counts).pvalue)


class Losses:
    """Focal + Dice of 30 masks, forward and backward; compiled: of the plain formulas, by torch.compile."""

    def __init__(self, authors: Authors, *, masks: int, low: int, side: int, compiled: bool = False) -> None:
        world = World.of(masks, side)
        self.doubt = 1 - world.certainty
        self.target, self.certainty = world.target.float(), 1 - self.doubt
        self.logits = (_resized(world.logits, low) * 0.3).requires_grad_()
        self.sides = (
            lambda z: authors.mask_losses(z, self.target, self.doubt, LossWeights()),
            lambda z: mask_losses(z, self.target, self.certainty, LossWeights())[:, 0],
        )
        if compiled:
            self.sides = torch.compile(self.sides[0]), torch.compile(self._plain)

    def _plain(self, logits: Tensor) -> Tensor:
        fine = _resized(logits, self.target.shape[-1]) if logits.shape != self.target.shape else logits
        weights = LossWeights()
        focal = focal_loss(fine, self.target, self.certainty, alpha=weights.alpha, gamma=weights.gamma)
        return weights.focal * focal + dice_loss(fine, self.target, self.certainty, theta=weights.theta)

    def reference(self) -> tuple[Tensor, Tensor]:
        return self._learn(self.sides[0])

    def ours(self) -> tuple[Tensor, Tensor]:
        return self._learn(self.sides[1])

    def _learn(self, loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        losses = loss(self.logits)
        (gradient,) = torch.autograd.grad(losses.sum(), self.logits)
        return losses.detach(), gradient

    def agree(self, want: tuple[Tensor, Tensor], got: tuple[Tensor, Tensor]) -> str:
        return f"losses {(got[0] - want[0]).abs().max():.0e}, gradient {_apart(got[1], want[1]):.0e}"


def _apart(got: Tensor, want: Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((got - want).norm() / want.norm().clamp(min=1e-30))


@dataclass
class Decoder:
    """Seven rounds of the decoder with gradients: prompts grow by a point, all but the first have a mask prompt."""

    model: Segmenter
    masks: int
    rounds: int = 7
    embedding: Tensor = field(init=False)
    prompts: list[Prompts] = field(init=False)

    def __post_init__(self) -> None:
        chance = torch.Generator().manual_seed(1)
        sam = self.model.sam
        grid = sam.prompt_encoder.image_embedding_size
        self.embedding = torch.randn(1, sam.prompt_encoder.embed_dim, *grid, generator=chance)
        corners = torch.rand(self.masks, 2, 2, generator=chance).sort(1).values * self.model.side
        boxed = torch.arange(self.masks) % 2 == 0
        labels = torch.tensor([[BOX_FIRST, BOX_SECOND], [POSITIVE, PAD]])[(~boxed).long()]
        self.prompts = [Prompts(corners, labels)]
        feedback = _resized(candidates(self.masks, inner=(1024, 1024))[0][:, :1], self.model.low_side)
        for number in range(1, self.rounds):
            last = self.prompts[-1]
            xy = torch.rand(self.masks, 2, generator=chance) * self.model.side
            label = torch.randint(0, 2, (self.masks,), generator=chance)
            more = number + 1 < self.rounds
            self.prompts.append(last.with_point(xy, label, logits=feedback) if more else last.with_logits(feedback))

    def _learn(self, decoder: Callable[[Tensor, Prompts, bool], tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Answers and gradients of a function of them whose slope is noise."""
        self.model.zero_grad()
        embedding, found = self.embedding.clone().requires_grad_(), {}
        for number, prompts in enumerate(self.prompts):
            logits, iou = decoder(embedding, prompts, number == 0)
            noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(number))
            ((logits * noise).sum() + (iou**2).sum()).backward()
            found[f"logits {number}"] = logits.detach()
        grads = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        return found | grads | {"embedding": embedding.grad}

    def reference(self) -> dict[str, Tensor]:
        return self._learn(lambda e, prompts, many: decode(self.model.sam, e, prompts, multimask=many))

    def ours(self) -> dict[str, Tensor]:
        index = torch.zeros(self.masks, dtype=torch.int64)

        def answer(embedding: Tensor, prompts: Prompts, many: bool) -> tuple[Tensor, Tensor]:
            found = self.model.decode(embedding, index, prompts, multimask=many)
            return found.logits, found.iou

        return self._learn(answer)

    def agree(self, want: dict[str, Tensor], got: dict[str, Tensor]) -> str:
        logits = max(_apart(got[name], want[name]) for name in want if name.startswith("logits"))
        return f"logits {logits:.0e} of their norm, gradients {_farthest(got, want):.0e}"


def _farthest(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    """The keys' biases, whose gradient is zero and SAM's rounding, are left out."""
    return max(_apart(got.get(n, torch.zeros_like(x)), x) for n, x in want.items() if not n.endswith("k_proj.bias"))


class Step:
    """A whole step on one image but for the optimizer's update; in `agree` both sides draw the same points."""

    def __init__(self, authors: Authors, model: Segmenter, *, masks: int) -> None:
        self.authors, self.model, self.masks = authors, model, masks
        self.sam = copy.deepcopy(model.sam)
        side, world = model.side, World.of(masks, model.side)
        doubt = 1 - world.certainty
        self.maps = world.target.float(), doubt
        self.batch = TrainBatch(
            image=torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8),
            hw=torch.tensor([[side, side]]),
            image_index=torch.zeros(masks, dtype=torch.int64),
            mask=world.target,
            certainty=1 - doubt,
            point=torch.full((masks, 2), side / 2),
            task=torch.zeros(masks, dtype=torch.int64),
            seed=torch.arange(masks),
        )
        self.rounds = Rounds(task_prompt="off")

    def reference(self, *, alike: bool = False) -> tuple[float, dict[str, Tensor]]:
        self.sam.zero_grad()
        seeds = torch.arange(self.masks)  # the batch's
        prompts = first_prompts(self.batch, side=self.model.side, rounds=self.rounds, seeds=seeds)
        chances = uniform(seeds, start=LATER, count=self.rounds.count - 1).unbind(1)

        def draw(seen: Tensor, number: int) -> tuple[Tensor, Tensor]:
            if not alike:
                return self.authors.points(seen > 0, self.batch.mask, self.batch.certainty)
            return correction_points(seen, self.batch.mask, self.batch.certainty, chance=chances[number])[:2]

        log = train_step(
            self.sam,
            self.authors,
            self.batch.image.float(),
            self.maps,
            prompts=prompts,
            draw=draw,
            rounds=self.rounds.count,
        )
        return sum(log) / len(log), _grads(self.sam)

    def ours(self) -> tuple[float, dict[str, Tensor]]:
        self.model.zero_grad()
        chance = torch.Generator().manual_seed(0)
        log = train_rounds(
            self.model, self.batch, rounds=self.rounds, generator=chance, backward=lambda loss: loss.backward()
        )
        return float(log["loss"]), _grads(self.model.sam)

    def agree(self, *_: object) -> str:
        small = Step(self.authors, build("tiny"), masks=8)
        (want, slopes), (got, gradients) = small.reference(alike=True), small.ours()
        return f"tiny, 8 masks, same points: loss {abs(got - want):.0e}, gradients {_farthest(gradients, slopes):.0e}"


def _grads(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def build(backbone: str) -> Segmenter:
    """Random weights."""
    torch.manual_seed(0)
    return Segmenter(BACKBONES[backbone].build(), backbone=backbone)


def duels(authors: Authors | None, *, masks: int, backbone: str, compiled: bool) -> dict[str, Callable[[], Duel]]:
    """Makers of the rows by their names; without the authors' files only those that do not need them."""
    low, side = 256, 1024
    rows: dict[str, Callable[[], Duel]] = {"decoder": lambda: Decoder(build(backbone), masks)}
    if authors is None:
        return rows
    for at in (side, low):
        rows[f"sampling {at}"] = partial(Sampling, authors, masks=masks, side=at)
    for one, other in ((low, side), (side, side), (low, low)):
        name = f"losses {one} to {other}" if one != other else f"losses {one}"
        rows[name] = partial(Losses, authors, masks=masks, low=one, side=other)
        if compiled:
            rows[f"{name} compiled"] = partial(Losses, authors, masks=masks, low=one, side=other, compiled=True)
    return rows | {"step": lambda: Step(authors, build(backbone), masks=masks)}
