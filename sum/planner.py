"""The memory that a training step needs, before it is run: a dry trace of the real code.

It runs `train_rounds` and AdamW on tensors without values and adds up the storages that are alive: nothing is
computed, and ViT-H is planned on a laptop. Nothing here knows what the model is made of, or which parts of it train.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from sum.accumulation import train_in_parts
from sum.data.batches import TrainBatch
from sum.models.mask_chunk import MaskChunk
from sum.models.segmenter import Segmenter
from sum.rounds import Rounds

Build = Callable[[], Segmenter]


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What decides about memory and time of a training step on one device."""

    images: int  # of this process
    masks: int  # of an image
    rounds: Rounds
    loss_side: int  # px
    chunk: int | None = None  # masks at work at once; None: all
    pieces: int = 1  # in which the images are gone through
    precision: str = "fp32"  # or bf16
    ema: bool = False
    averaged: bool = False  # gradients, over several processes


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of tensors at the peak of a step, and what of it stays from step to step."""

    peak: int
    weights: int
    training: int  # gradients, AdamW's two moments, the average


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        return tree_map_only(Tensor, self.add, func(*args, **(kwargs or {})))

    def add(self, value: Tensor) -> Tensor:
        """Count a tensor's storage until nothing holds it any more."""
        storage = value.untyped_storage()
        if storage not in self._seen:
            size = storage.nbytes()
            self._seen[storage] = size
            weakref.finalize(storage, self._free, size).atexit = False
            self.now += size
            self.peak = max(self.peak, self.now)
        return value

    def _free(self, size: int) -> None:
        self.now -= size


class FirstTurns(MaskChunk):
    """Lets only the first masks have their turn, twice as gradients are there then; the others need the same memory."""

    def parts(self, count: int) -> list[slice]:
        """The first two parts."""
        return super().parts(count)[:2]


def make_batch(shape: StepShape, *, side: int) -> TrainBatch:
    """A batch of this shape: noise, with a square in the middle as every mask."""
    count, loss_side = shape.images * shape.masks, shape.loss_side
    mask = torch.zeros(count, 1, loss_side, loss_side, dtype=torch.bool)
    mask[..., loss_side // 4 : -(-3 * loss_side // 4), loss_side // 4 : -(-3 * loss_side // 4)] = True
    return TrainBatch(
        image=torch.randint(0, 256, (shape.images, 3, side, side), dtype=torch.uint8),
        hw=torch.full((shape.images, 2), side),
        image_index=torch.arange(count) // shape.masks,
        mask=mask,
        certainty=torch.ones(count, 1, loss_side, loss_side),
        point=torch.full((count, 2), side / 2),
        task=torch.ones(count, dtype=torch.int64),
    )


def optimizer_of(model: Segmenter) -> torch.optim.AdamW:
    """AdamW over what trains; a learning rate of 0 leaves the weights alone."""
    return torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=0.0)


def update(model: Segmenter, optimizer: torch.optim.AdamW) -> None:
    """The optimizer's part of a step, which takes the gradients."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    optimizer.step()


def run_rounds(model: Segmenter, batch: TrainBatch, *, shape: StepShape, chunk: MaskChunk, parts: int = 1) -> None:
    """A step without the optimizer's part; leaves gradients. parts: pieces in which the batch is gone through."""
    dtype = torch.bfloat16 if shape.precision == "bf16" else None
    autocast: Callable[[], AbstractContextManager[object]] = partial(
        torch.autocast, batch.image.device.type, dtype=dtype, enabled=dtype is not None
    )
    train_in_parts(
        model,
        batch,
        parts=parts,
        rounds=shape.rounds,
        generator=torch.Generator().manual_seed(0),
        backward=lambda loss: loss.backward(),  # type: ignore[no-untyped-call]
        autocast=autocast,
        chunk=chunk,
    )


def make_without_values(build: Build) -> Segmenter:
    """The model on the CPU, to be called under FakeTensorMode.

    It is made on the device "meta", then its tensors are replaced: peft moves new adapters to the device of their layer
    except there, and `nn.Module.to` fails on tensors without values (torch 2.14: "Couldn't swap").
    """
    with torch.device("meta"):
        model = build()
    made = dict[Tensor, Tensor]()  # a tensor in two places stays one
    for module in model.modules():
        kinds: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for held in kinds:
            for name, value in held.items():
                if value is not None:
                    held[name] = made.setdefault(value, _on_cpu(value))
    return model


def _on_cpu(value: Tensor) -> Tensor:
    new = torch.empty_like(value, device="cpu")
    return nn.Parameter(new, value.requires_grad) if isinstance(value, nn.Parameter) else new


def trace_memory(build: Build, shape: StepShape, *, grouped: bool = False) -> Memory:
    """Bytes of a step after the first (AdamW has its moments then), without computing anything.

    grouped: AdamW works on all parameters at once, as on CUDA: it holds one more copy of them meanwhile. What
    operations need inside themselves (workspaces of convolutions) and gaps of the allocator are not seen.
    """
    with FakeTensorMode(), LiveBytes() as live:
        model = make_without_values(build)
        trained = [value for value in model.parameters() if value.requires_grad]
        weights = sum(value.untyped_storage().nbytes() for value in [*model.parameters(), *model.buffers()])
        learnt = sum(value.untyped_storage().nbytes() for value in trained)
        kept = [torch.zeros_like(value) for value in trained for _ in range(3 if shape.ema else 2)]
        batch = make_batch(shape, side=model.side)
        live.peak = live.now
        piece = replace(shape, images=-(-shape.images // shape.pieces))
        for _ in range(min(shape.pieces, 2)):  # the second finds the gradients of the first
            part = batch if shape.pieces == 1 else make_batch(piece, side=model.side)
            run_rounds(model, part, shape=shape, chunk=FirstTurns(shape.chunk))
        at_work = learnt if grouped else 2 * max(value.untyped_storage().nbytes() for value in trained)
        if shape.averaged:
            at_work = max(at_work, 2 * learnt)  # all gradients in one piece, and what the others make of it
        peak = max(live.peak, live.now + at_work)  # of the rounds, or of averaging and update
        training = sum(value.untyped_storage().nbytes() for value in kept) + learnt
    return Memory(peak, weights, training)
