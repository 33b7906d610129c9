"""The training loop over a model, a step and batches; stops at any moment and goes on as if nothing had happened.

The batch, the random numbers and the learning rate of step t are functions of t: sum/checkpoints.py keeps the rest.
The only module that knows Accelerate.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from sum.checkpoints import Position, Row, State, keep, newest, place, put_back, trouble_with
from sum.culprits import Culprits, look
from sum.data.batches import TrainBatch
from sum.errors import Refused, StorageError, TrainingDiverged
from sum.exchange import Exchange
from sum.launch import images_each
from sum.models.groups import parameter_groups
from sum.models.mask_chunk import MaskChunk
from sum.progress import track
from sum.provenance import peak_memory

log = logging.getLogger(__name__)

Step = Callable[["Loop", TrainBatch, torch.Generator], dict[str, Tensor]]
Told = TypeVar("Told")
DROP = 0.1  # what is left of the learning rate in the last steps, if they are to have less
MACHINE = ("seconds", "peak_memory_mb")  # columns of the history that another run of the same training has otherwise


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """Numbers of the loop; see OptimConfig for units."""

    steps: int
    lr: float
    layer_decay: float
    weight_decay: float
    warmup_steps: int
    decay_steps: int
    clip_norm: float
    ema: float
    precision: str
    checkpoint_every: int
    images_per_batch: int  # over all processes
    seed: int
    max_skipped: int = 10  # steps in a row whose loss or gradient is not finite; with so many the run stops
    mask_chunk: int | None = None  # masks at work at once to begin with; None: all
    device: str = "auto"
    drop_last: int = 0  # steps


def learning_rate(step: int, options: LoopOptions) -> float:
    """Rate of `step` (0-based): linear warm-up, constant, and over the last steps linear to 0 (decay) or DROP of it."""
    rise = min(1.0, (step + 1) / (options.warmup_steps + 1))
    fall = min(1.0, (options.steps - step) / (options.decay_steps + 1))
    return options.lr * min(rise, DROP if step >= options.steps - options.drop_last else fall)


class Loop:
    """State of one training: model, optimizer, average, history. `run` brings it from where it is to the last step."""

    def __init__(self, model: nn.Module, *, options: LoopOptions, folder: Path) -> None:
        """folder: where checkpoints live; the newest good one in it is where `run` begins."""
        self.options, self.folder = options, folder
        self.accelerator = Accelerator(
            cpu=options.device == "cpu", mixed_precision="bf16" if options.precision == "bf16" else "no"
        )
        images_each(options.images_per_batch, count=self.ranks)
        self.model = model.to(self.accelerator.device)
        groups = parameter_groups(model, layer_decay=options.layer_decay, weight_decay=options.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr)
        self.average = (
            {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad} if options.ema else {}
        )
        self.more: dict[str, Tensor] = {}  # what else steps change and read, in place: kept in checkpoints
        self.chunk = MaskChunk(options.mask_chunk)
        self.exchange = Exchange(self.accelerator.gather, ranks=self.ranks, device=self.accelerator.device)
        self.culprits = Culprits()
        self.history: list[Row] = []
        self.step = 0
        self.good: Path | None = None  # the last checkpoint that was whole: taken up or written by this run
        self._owed = False  # a checkpoint was due in a row of steps that were left out
        self._reported = 0  # rows of the history

    @property
    def rank(self) -> int:
        """Number of this process."""
        return int(self.accelerator.process_index)

    @property
    def ranks(self) -> int:
        """How many processes share a batch."""
        return int(self.accelerator.num_processes)

    def autocast(self) -> AbstractContextManager[object]:
        """The precision in which encoder and decoder run."""
        context: AbstractContextManager[object] = self.accelerator.autocast()
        return context

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`."""
        self.accelerator.backward(loss)

    def run(
        self,
        batches: Callable[[int], Iterator[TrainBatch]],
        compute: Step,
        *,
        title: str,
        on_rows: Callable[[Sequence[Row]], None] = lambda rows: None,
        on_checkpoint: Callable[[], None] = lambda: None,
    ) -> None:
        """Train to the end. batches(start): the batches from step `start` on; compute leaves gradients and returns
        scalars to log; and, if it can, `mask_losses` `[N]`, to name the mask that made a step not finite.

        on_rows gets the new rows of the history at each checkpoint and when an error ends the run, and first of all the
        whole history of the run before: nobody knows how much of it was reported when that run died. on_checkpoint is
        called after it at the beginning and at each checkpoint, by all processes.
        """
        self.resume()
        self._tell(on_rows)
        on_checkpoint()
        try:
            self._train(batches, compute, title=title, on_rows=on_rows, on_checkpoint=on_checkpoint)
        except BaseException:  # the steps that led to it are those that one wants to see
            self._tell(on_rows)
            raise

    def _tell(self, on_rows: Callable[[Sequence[Row]], None]) -> None:
        new, self._reported = self.history[self._reported :], len(self.history)
        on_rows(new)

    def _train(
        self,
        batches: Callable[[int], Iterator[TrainBatch]],
        compute: Step,
        *,
        title: str,
        on_rows: Callable[[Sequence[Row]], None],
        on_checkpoint: Callable[[], None],
    ) -> None:
        device = self.accelerator.device
        stream = batches(self.step)
        began = time.perf_counter()
        for _ in track(
            range(self.options.steps),
            start=self.step,
            title=title,
            unit="step",
            quiet=not self.accelerator.is_main_process,
        ):
            generator = torch.Generator().manual_seed((self.options.seed << 32) + self.step * self.ranks + self.rank)
            rate = learning_rate(self.step, self.options)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            batch = next(stream).to(device)
            found = {**compute(self, batch, generator), "grad_norm": self._gradient()}
            losses = found.pop("mask_losses", None)  # stay where they are: nobody looks while all is well
            counts = {"masks": len(batch.image_index), "peak_memory_mb": peak_memory()}
            scalars = self.exchange.over({**counts, **found})  # waits for the device
            fit = all(math.isfinite(scalars.get(name, 0.0)) for name in ("loss", "grad_norm"))
            self._update(fit=fit)
            now = time.perf_counter()
            row = {"step": self.step, "lr": rate, "seconds": round(now - began, 4), "skipped": float(not fit)}
            self.history.append(row | (scalars if fit else {}))
            began = now
            self._judge(batch, losses, skipped=not fit)
            self.step += 1
            if self._due(fit=fit):
                self.save()
                self._tell(on_rows)
                on_checkpoint()

    def _due(self, *, fit: bool) -> bool:
        """Whether a checkpoint is written now. fit: whether the last step was finite.

        In a row of steps that are left out none replaces a good one: it comes after the next finite step, or at the
        end. So a run resumes before the row and, as this hangs on the history alone, saves where any other does.
        """
        self._owed = self._owed or self.step % self.options.checkpoint_every == 0
        due = (self._owed and fit) or self.step == self.options.steps
        self._owed = self._owed and not due
        return due

    def finish(self) -> nn.Module:
        """The trained model: with the averaged weights if there is an average."""
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                if name in self.average:
                    value.copy_(self.average[name])
        return self.model

    def _judge(self, batch: TrainBatch, losses: Tensor | None, *, skipped: bool) -> None:
        """Log a step that was left out, on all processes. Raises TrainingDiverged after too many in a row."""
        if not skipped:
            self.culprits.clear()
            return
        told = self.culprits.tell(gather_object([look(batch, losses)]))
        row = next((n for n, entry in enumerate(reversed(self.history)) if not entry.get("skipped")), len(self.history))
        log.warning("step %d is left out: its loss or gradient is not finite (%d in a row); %s", self.step, row, told)
        limit = self.options.max_skipped
        if row >= limit:
            first, clip = self.step + 1 - row, self.options.clip_norm
            rate = self.history[first - 1]["lr"] if first else None
            told = self.culprits.ended((first, self.step), limit=limit, checkpoint=self.good, rate=rate, clip_norm=clip)
            raise TrainingDiverged(told)

    def _gradient(self) -> Tensor:
        """The gradients of all processes as one, clipped; returns its norm before clipping, a scalar on the device."""
        values = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.ranks > 1:
            self._average(values)
        return torch.nn.utils.clip_grad_norm_(values, self.options.clip_norm or float("inf"))

    def _update(self, *, fit: bool) -> None:
        """One optimizer step. fit: whether loss and gradient of all processes are finite; if not, nothing changes.

        A parameter that no process has a gradient for is left alone, as with one process.
        """
        if fit:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if fit and self.average:
            decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
            for group in self.optimizer.param_groups:
                for name, value in zip(group["names"], group["params"], strict=True):
                    self.average[name].lerp_(value.detach(), 1 - decay)

    def _average(self, values: Sequence[nn.Parameter]) -> None:
        """Gradients become their mean over the processes.

        The device is waited for only where this process lacks a gradient: whether the others have it decides.
        """
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in values]
        own = [p.grad is not None for p in values]
        flags = torch.tensor(own, dtype=grads[0].dtype).to(grads[0].device, non_blocking=True)
        flat = torch.cat([*(g.flatten() for g in grads), flags])
        *pieces, told = torch.split(
            self.accelerator.reduce(flat, reduction="mean"), [*(p.numel() for p in values), len(flags)]
        )
        known = own if all(own) else (told > 0).tolist()
        for p, piece, there in zip(values, pieces, known, strict=True):
            p.grad = piece.view_as(p).clone() if there else None

    def save(self) -> None:
        """Write the checkpoint of this step atomically and keep the one before it.

        From here on all processes have as few masks at work at once as the one that fitted fewest: one number to keep.
        """
        sizes = self.accelerator.gather(torch.tensor([self.chunk.size], device=self.accelerator.device))
        self.chunk.size = int(sizes.min())
        if self.rank == 0:
            keep(self.folder, self._state(), Position(self.step, self.history, self.chunk.size))
        self.good = place(self.folder, self.step)

    def resume(self) -> None:
        """Take up the newest checkpoint that is whole, the same in all processes: process 0 chooses, all must read it.

        Raises Refused in all of them when one cannot.
        """
        found, trouble = None, ""
        try:
            found = newest(self.folder) if self.rank == 0 else None
        except StorageError as error:
            trouble = str(error)
        chosen = self.told_by_first(found)
        if chosen and self.rank:
            trouble = trouble_with(self.folder, chosen)
        for number, one in enumerate(gather_object([trouble])):
            if one:
                raise Refused(
                    f"process {number} of {self.ranks} cannot go on from the checkpoint: {one.rstrip('.')}. Mend that, "
                    "then run the same command again; all processes need the same work/, on a disk that they share."
                )
        if chosen:
            stood = put_back(self.folder, chosen, self._state())
            self.step, self.history, self.chunk.size = stood.step, stood.history, stood.mask_chunk
            self.good = self.folder / chosen.name
            log.info("resumed at step %d from %s", self.step, self.good)

    def told_by_first(self, value: Told) -> Told:
        """What process 0 has of this value: a decision that all must make alike."""
        told: list[Told] = broadcast_object_list([value])
        return told[0]

    def _state(self) -> State:
        return State(self.model, self.optimizer, self.average, self.more)
