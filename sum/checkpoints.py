"""What a stopped training goes on from: the two newest states of a folder, the newest good one of which counts.

A state is model, AdamW's moments, averaged weights, what else steps keep, the history so far, and how many masks fitted
at once. The batch, the random numbers and the learning rate of step t are functions of t, so nothing else has to be
remembered.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sum.errors import CheckpointError, StorageError
from sum.storage import disk_errors, is_left
from sum.tensor_files import check, read_facts, read_tensors, write_tensors

log = logging.getLogger(__name__)

KEPT = 2
Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that was whole when it was looked at; every process must find the same digest in it."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class State:
    """What changes while a training runs. The tensors are its own: `put_back` writes into them."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Mapping[str, Tensor]  # parameter's name -> averaged value; empty without an average
    more: Mapping[str, Tensor] = field(default_factory=dict)  # by name, what else the steps change and read


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training stands."""

    step: int  # the next one
    history: list[Row]
    mask_chunk: int  # masks at work at once: another number would round otherwise


def keep(folder: Path, state: State, position: Position) -> Path:
    """Write the checkpoint of this step, and only then remove what is older than the one before it.

    Newer ones stay: they were passed over as damaged, and this run will write them anew. Raises StorageError.
    """
    path = place(folder, position.step)
    text = bytearray(json.dumps(position.history).encode())
    tensors = tensors_of(state) | {"history": torch.frombuffer(text, dtype=torch.uint8)}  # no limit, as of a header
    write_tensors(path, tensors, facts={"step": str(position.step), "mask_chunk": str(position.mask_chunk)})
    known = [old for old in _by_step(folder) if old.name <= path.name]
    with disk_errors(folder):
        for old in known[:-KEPT]:
            old.unlink(missing_ok=True)
    return path


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint lies from which this step is the next."""
    return folder / f"checkpoint-{step:07d}.safetensors"


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole; a damaged one is named in the log. Sweeps up what killed runs left."""
    with disk_errors(folder):
        for left in folder.glob(".checkpoint-*.partial"):
            if is_left(left.name.split(".")[-2]):
                left.unlink(missing_ok=True)
    for path in reversed(_by_step(folder)):
        try:
            return Checkpoint(path.name, check(path))
        except (CheckpointError, StorageError) as error:
            log.warning("%s cannot be read (%s): going back to the checkpoint before it", path, error)
    return None


def trouble_with(folder: Path, chosen: Checkpoint) -> str:
    """Why this process cannot go on from the checkpoint that another one chose; empty if it can."""
    try:
        digest = check(folder / chosen.name)
    except (CheckpointError, StorageError) as error:
        return str(error)
    return "" if digest == chosen.digest else f"{folder / chosen.name}: another file than that of process 0"


def put_back(folder: Path, chosen: Checkpoint, state: State) -> Position:
    """Give model, optimizer, average and what else is kept the values of a checkpoint; returns where it stood.

    Raises CheckpointError when it is of another model.
    """
    path = folder / chosen.name
    own = tensors_of(state)
    parameters = dict(state.model.named_parameters())
    moments: dict[str, dict[str, Tensor]] = {}
    history: list[Row] = []
    missing = {name for name in own if not name.startswith("adam.")}
    for key, tensor in read_tensors(path):
        kind, _, name = key.partition(".")
        part, _, owner = name.partition(".")
        if key == "history":
            history = json.loads(tensor.numpy().tobytes())
        elif kind == "adam" and owner in parameters and tensor.shape in ((), parameters[owner].shape):
            home = torch.device("cpu") if part == "step" else parameters[owner].device
            moments.setdefault(owner, {})[part] = tensor.to(home, copy=True)
        elif key in missing and own[key].shape == tensor.shape:
            own[key].copy_(tensor)
            missing.remove(key)
        else:
            raise _of_another(path, key)
    if missing:
        raise _of_another(path, min(missing))
    for name, values in moments.items():
        state.optimizer.state[parameters[name]] = values
    facts = read_facts(path)
    return Position(int(facts["step"]), history, int(facts["mask_chunk"]))


def tensors_of(state: State) -> dict[str, Tensor]:
    """All tensors of a state by their names in a checkpoint, not copied: model.N, average.N, more.N, adam.MOMENT.N."""
    names = {id(value): name for name, value in state.model.named_parameters()}
    found = {f"model.{name}": value for name, value in state.model.state_dict().items()}  # buffers, too
    found |= {f"average.{name}": value for name, value in state.average.items()}
    found |= {f"more.{name}": value for name, value in state.more.items()}
    kept: Mapping[Any, Mapping[str, Tensor]] = state.optimizer.state
    for value, moments in kept.items():
        found |= {f"adam.{key}.{names[id(value)]}": moment for key, moment in moments.items()}
    return found


def _by_step(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.safetensors"))


def _of_another(path: Path, name: str) -> CheckpointError:
    return CheckpointError(f"{path}: '{name}' is not as this model has it. Delete the folder to train anew.")
