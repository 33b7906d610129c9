"""The training loop over a model, a step and batches; stops at any moment and goes on as if nothing had happened.

A checkpoint is one safetensors file: parameters, AdamW's moments, the averaged weights, and the history so far. The
batch, the random numbers and the learning rate of step t are functions of t, so nothing else has to be remembered.
The only module that knows Accelerate.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sum.culprits import Culprits, diverged, look
from sum.data.batches import TrainBatch
from sum.errors import ConfigError, TrainingDiverged
from sum.models.groups import parameter_groups
from sum.models.mask_chunk import MaskChunk
from sum.progress import track
from sum.storage import write_atomic

log = logging.getLogger(__name__)

Step = Callable[["Loop", TrainBatch, torch.Generator], dict[str, Tensor]]
Row = dict[str, float]


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


def learning_rate(step: int, options: LoopOptions) -> float:
    """Learning rate of `step` (0-based): linear warm-up, constant, linear to 0 over the last `decay_steps`."""
    rise = min(1.0, (step + 1) / (options.warmup_steps + 1))
    fall = min(1.0, (options.steps - step) / (options.decay_steps + 1))
    return options.lr * min(rise, fall)


class Loop:
    """State of one training: model, optimizer, average, history. `run` brings it from where it is to the last step."""

    def __init__(self, model: nn.Module, *, options: LoopOptions, folder: Path) -> None:
        """folder: where checkpoints live; the newest good one in it is where `run` begins."""
        self.options, self.folder = options, folder
        self.accelerator = Accelerator(
            cpu=options.device == "cpu", mixed_precision="bf16" if options.precision == "bf16" else "no"
        )
        if options.images_per_batch % self.ranks:  # unequal shares would weigh images unequally
            raise ConfigError(
                f"params.yaml: optim.images_per_batch is {options.images_per_batch}, no multiple of the {self.ranks} "
                "processes that share a batch. Change it, or the number of processes."
            )
        self.model = model.to(self.accelerator.device)
        groups = parameter_groups(model, layer_decay=options.layer_decay, weight_decay=options.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr)
        self.names = {id(p): n for n, p in model.named_parameters()}
        self.average = (
            {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad} if options.ema else {}
        )
        self.chunk = MaskChunk(options.mask_chunk)
        self.culprits = Culprits()
        self.history: list[Row] = []
        self.step = 0

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
        on_rows: Callable[[Sequence[Row]], None] | None = None,
    ) -> None:
        """Train to the end. batches(start): the batches from step `start` on; compute leaves gradients and returns
        scalars to log; and, if it can, `mask_losses` `[N]`, to name the mask that made a step not finite.

        on_rows gets the new rows of the history at each checkpoint, and first of all the whole history of the run
        before: nobody knows how much of it was reported when that run died.
        """
        self.resume()
        tell = on_rows or (lambda rows: None)
        tell(self.history)
        reported = len(self.history)
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
            found = compute(self, batch, generator)
            losses = found.pop("mask_losses", None)  # stay where they are: nobody looks while all is well
            scalars = {k: float(v) for k, v in found.items()}
            norm = self._update(fit=math.isfinite(scalars.get("loss", 0.0)))
            now = time.perf_counter()
            about = {"step": self.step, "lr": rate, "seconds": round(now - began, 4)}
            kept = {"skipped": 1.0} if norm is None else {"skipped": 0.0, "grad_norm": norm, **scalars}
            self.history.append({**about, **kept})
            began = now
            self._judge(batch, losses, skipped=norm is None)
            self.step += 1
            if self.step % self.options.checkpoint_every == 0 or self.step == self.options.steps:
                self.save()
                tell(self.history[reported:])
                reported = len(self.history)

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
            newest = max(self.folder.glob("checkpoint-*.safetensors"), default=None)
            steps = (self.step + 1 - row, self.step)
            raise TrainingDiverged(diverged(steps, limit=limit, culprits=self.culprits, checkpoint=newest))

    def _update(self, *, fit: bool) -> float | None:
        """One optimizer step over the gradients of all processes; returns the gradient norm before clipping.

        fit: whether the loss of this process is finite. When that of any is not, or the gradient is not, nothing
        changes: None. A parameter that no process has a gradient for is left alone, as with one process.
        """
        values = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.accelerator.num_processes > 1:
            fit = self._average(values, fit=fit)
        limit = self.options.clip_norm or float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(values, limit))
        if not fit or not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            return None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
            for group in self.optimizer.param_groups:
                for name, value in zip(group["names"], group["params"], strict=True):
                    self.average[name].lerp_(value.detach(), 1 - decay)
        return norm

    def _average(self, values: Sequence[nn.Parameter], *, fit: bool) -> bool:
        """Gradients become their mean over the processes; returns whether the losses of all are finite."""
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in values]
        flags = torch.tensor([not fit, *(p.grad is not None for p in values)], device=grads[0].device)
        flat = torch.cat([*(g.flatten() for g in grads), flags.to(grads[0].dtype)])
        *pieces, told = torch.split(
            self.accelerator.reduce(flat, reduction="mean"), [*(p.numel() for p in values), len(flags)]
        )
        unfit, *has = (told > 0).tolist()
        for p, piece, there in zip(values, pieces, has, strict=True):
            p.grad = piece.view_as(p).clone() if there else None
        return not unfit

    def save(self) -> None:
        """Write the checkpoint of this step atomically and keep the one before it.

        From here on all processes have as few masks at work at once as the one that fitted fewest: one number to keep.
        """
        sizes = self.accelerator.gather(torch.tensor([self.chunk.size], device=self.accelerator.device))
        self.chunk.size = int(sizes.min())
        if not self.accelerator.is_main_process:
            return
        tensors = {
            f"model.{n}": value for n, value in self.model.state_dict().items()
        }  # buffers too: SAM's random frequencies
        tensors |= {f"average.{n}": t for n, t in self.average.items()}
        for value, state in self.optimizer.state.items():
            tensors |= {f"adam.{key}.{self.names[id(value)]}": t for key, t in state.items()}
        tensors = {name: t.contiguous().cpu() for name, t in tensors.items()}
        header = {"step": str(self.step), "history": json.dumps(self.history), "digest": _digest(tensors)}
        header["mask_chunk"] = str(self.chunk.size)  # another one would round otherwise
        write_atomic(self.folder / f"checkpoint-{self.step:07d}.safetensors", save(tensors, metadata=header))
        for old in sorted(self.folder.glob("checkpoint-*.safetensors"))[:-2]:
            old.unlink()

    def resume(self) -> None:
        """Take up the newest checkpoint that can be read; a damaged one is named in the log and passed over."""
        if self.accelerator.is_main_process:
            for left in self.folder.glob(".checkpoint-*.partial"):  # of a run that was killed while writing
                left.unlink()
        for path in sorted(self.folder.glob("checkpoint-*.safetensors"), reverse=True):
            try:
                with safe_open(path, framework="pt") as file:
                    header = file.metadata()
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                if (header or {}).get("digest") != _digest(tensors):
                    raise OSError("its content does not match its digest")
            except (SafetensorError, OSError) as error:
                log.warning("%s cannot be read (%s): going back to the checkpoint before it", path, error)
                continue
            self._restore(tensors, header)
            log.info("resumed at step %d from %s", self.step, path)
            return

    def _restore(self, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
        parameters, state_dict = dict(self.model.named_parameters()), self.model.state_dict()
        moments: dict[str, dict[str, Any]] = {}
        with torch.no_grad():
            for key, tensor in tensors.items():
                kind, _, name = key.partition(".")
                if kind == "model":
                    state_dict[name].copy_(tensor)
                elif kind == "average":
                    self.average[name].copy_(tensor)
                else:
                    part, _, name = name.partition(".")
                    home = "cpu" if part == "step" else parameters[name].device
                    moments.setdefault(name, {})[part] = tensor.to(home)
        for name, state in moments.items():
            self.optimizer.state[parameters[name]] = state
        self.step, self.history = int(header["step"]), json.loads(header["history"])
        self.chunk.size = int(header["mask_chunk"])


def _digest(tensors: dict[str, Tensor]) -> str:
    """sha256 over names and bytes of the tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
