"""`python -m sum plan`: memory and time of fine-tuning before it is begun, and settings that fit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sum.config import Config
    from sum.models.segmenter import Segmenter
    from sum.planner import StepShape

GAPS, MOST_GAPS = 0.4, 400e6  # of the C library on a CPU: share of the tensors, bytes; see docs/results.md, "Planner"
CONTEXT = 0.6e9  # bytes of CUDA and its libraries
ROOM = 0.9  # share of the free memory that a plan may fill


@dataclass(frozen=True, slots=True)
class Device:
    """A device of this machine; bytes."""

    name: str
    device: torch.device
    free: float
    base: float  # what the program itself takes there

    def whole(self, tensors: float) -> float:
        """Bytes of a process whose tensors take `tensors` at the peak."""
        return self.base + tensors + (min(GAPS * tensors, MOST_GAPS) if self.device.type == "cpu" else 0)

    def fits(self, tensors: float) -> bool:
        """Whether such a process has room here."""
        return self.whole(tensors) <= ROOM * self.free


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind the command's name."""
    parser.add_argument(
        "changes", nargs="*", metavar="key=value", help="numbers of params.yaml, as finetune.optim.images_per_batch=2"
    )
    parser.add_argument("--no-time", action="store_true", help="memory only: nothing is computed")


def run(options: argparse.Namespace) -> str:
    """The plan of stage finetune for params.yaml, a paragraph a device."""
    from sum.config import load_config
    from sum.models.backbones import BACKBONES
    from sum.models.segmenter import Segmenter

    config = load_config(options.changes)
    name = config.model.backbone

    def build() -> Segmenter:
        return Segmenter(BACKBONES[name].build(), backbone=name)

    shape = shape_of(config, side=BACKBONES[name].side)
    optim = config.finetune.optim
    lines = [
        (
            f"finetune: {name} at {BACKBONES[name].side} px, {shape.images} images x {shape.masks} masks a step, "
            f"{shape.rounds.count} rounds, losses at {shape.loss_side} px, {shape.precision}, "
            f"mask_chunk {shape.chunk or 'null'}, {optim.steps} steps"
        )
    ]
    for device in find_devices():
        lines += [f"{device.name}, {_gb(device.free)} free", *plan(build, shape, device)]
        if not options.no_time:
            lines += time_lines(build, shape, device, steps=optim.steps)
    lines.append("Not in it: reading images, checkpoints, labelling and evaluation.")
    return "\n".join(lines) + "\n"


def shape_of(config: Config, *, side: int) -> StepShape:
    """What stage finetune would run, on one process."""
    from sum.planner import StepShape
    from sum.stages.common import round_options

    optim = config.finetune.optim
    return StepShape(
        images=optim.images_per_batch,
        masks=optim.masks_per_image,
        rounds=round_options(config.finetune.rounds, task_prompt="first"),
        loss_side=config.finetune.rounds.loss_side or side,
        chunk=optim.mask_chunk,
        precision=optim.precision,
        ema=optim.ema > 0,
    )


def find_devices() -> list[Device]:
    """The CPU and every CUDA device."""
    import torch

    found = [Device(f"cpu ({torch.get_num_threads()} threads)", torch.device("cpu"), _free_memory(), _resident())]
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        found.append(Device(torch.cuda.get_device_name(device), device, torch.cuda.mem_get_info(device)[0], CONTEXT))
    return found


def plan(build: Callable[[], Segmenter], shape: StepShape, device: Device) -> list[str]:
    """Memory of the step on a device, and where it does not fit, the first change that makes it fit."""
    from sum.planner import trace_memory

    grouped = device.device.type == "cuda"
    memory = trace_memory(build, shape, grouped=grouped)
    said = "fits" if device.fits(memory.peak) else "does NOT fit"
    lines = [
        (
            f"  memory: {_gb(device.whole(memory.peak))} at the peak, {said}: tensors {_gb(memory.peak)} (weights "
            f"{_gb(memory.weights)}, gradients, AdamW and average {_gb(memory.training)}, the rest of a step "
            f"{_gb(memory.peak - memory.weights - memory.training)}), program {_gb(device.base)}"
        )
    ]
    if device.fits(memory.peak):
        return lines
    for words, smaller in proposals(shape):
        peak = trace_memory(build, smaller, grouped=grouped).peak
        if device.fits(peak):
            return [*lines, f"  proposal: {words}: {_gb(device.whole(peak))}"]
    return [*lines, "  proposal: none; not even one image with one mask at a time fits here"]


def proposals(shape: StepShape) -> Iterator[tuple[str, StepShape]]:
    """Smaller steps in the order in which they should be tried: first those that train the same."""
    tried = shape.chunk or shape.images * shape.masks
    for chunk in sorted({max(1, tried // part) for part in (2, 4, 8, 32, tried)} - {tried}, reverse=True):
        yield f"finetune.optim.mask_chunk={chunk} (the same gradients)", replace(shape, chunk=chunk)
    images = shape.images
    if shape.precision == "fp32":
        yield "finetune.optim.precision=bf16 mask_chunk=1", replace(shape, chunk=1, precision="bf16")
    while images > 1:
        images //= 2
        words = f"finetune.optim.images_per_batch={images} precision=bf16 mask_chunk=1 (another training)"
        yield words, replace(shape, images=images, chunk=1, precision="bf16")


def time_lines(build: Callable[[], Segmenter], shape: StepShape, device: Device, *, steps: int) -> list[str]:
    """Time of a step and of the run, from a probe with one image and few masks, if that has room."""
    from sum.planner import SOME, probe_time, trace_memory

    probe = replace(shape, images=1, masks=min(SOME, shape.masks), chunk=None)
    if not device.fits(trace_memory(build, probe).peak):
        return ["  time: not measured, not even the probe fits"]
    found = probe_time(build, shape, device=device.device)
    return [
        (
            f"  time: {found.step:.2f} s a step (an image {found.image:.3f}, all rounds of a mask {found.mask:.4f}, "
            f"update {found.update:.3f}), {found.step * steps / 3600:.2f} h for {steps} steps"
        )
    ]


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def _free_memory() -> float:
    """Bytes that this machine has left, and no more than a container's limit."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return float("inf")
    free = 1024.0 * int(info.read_text().split("MemAvailable:")[1].split()[0])
    limit = Path("/sys/fs/cgroup/memory.max")
    words = limit.read_text().strip() if limit.is_file() else "max"
    return free if words == "max" else min(free, float(words))


def _resident() -> float:
    """Bytes of this process now: about what the program takes without any tensor."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
