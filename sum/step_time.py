"""The time of a training step on this device: the step itself where it is short, else put together from parts of it.

Images and masks do not see each other, so a step costs so much an image, so much a mask, the optimizer's update, and
something for all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from sum.models.attention import COUNTED
from sum.models.mask_chunk import MaskChunk
from sum.models.segmenter import Segmenter
from sum.planner import Build, StepShape, make_batch, make_without_values, optimizer_of, run_rounds, update

FEW, SOME = 2, 8  # masks of the parts, if the time allows no more
RUNS = 3  # of the whole step, the first of which warms up


def _of_product(_: Sequence[int], first: Sequence[int], second: Sequence[int], **__: object) -> int:
    """Operations of adding a product `[b, n, k]` x `[b, k, m]` in place, by shapes."""
    return 2 * prod(first) * second[-1]


UNKNOWN = {torch.ops.aten.baddbmm_: _of_product}  # PyTorch's counter knows only the one that is not in place
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step, and of its parts."""

    step: float
    update: float  # AdamW over all that trains, and the average of the weights
    image: float  # one image more, without masks
    mask: float  # one mask more, all its rounds
    whole: bool  # the step itself was run


class Probe:
    """A model on its device, and how long pieces of a step take it."""

    def __init__(self, build: Build, shape: StepShape, *, device: torch.device, clock: Clock) -> None:
        """clock: seconds."""
        torch.manual_seed(0)
        self.shape, self.device, self.clock = shape, device, clock
        self.model: Segmenter = build().to(device)
        self.optimizer = optimizer_of(self.model)
        trained = [value for value in self.model.parameters() if value.requires_grad]
        self.average = [value.detach().clone() for value in trained] if shape.ema else []
        self.trained = trained

    def rounds(self, images: int, masks: int, *, parts: int = 1) -> float:
        """Seconds of a step without the update."""
        shape = replace(self.shape, images=images, masks=masks)
        batch = make_batch(shape, side=self.model.side).to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        chunk = MaskChunk(shape.chunk)
        return self._take(partial(run_rounds, self.model, batch, shape=shape, chunk=chunk, parts=parts))

    def update(self) -> float:
        """Seconds of the update; takes the gradients that are there."""

        def work() -> None:
            update(self.model, self.optimizer)
            with torch.no_grad():
                for mean, value in zip(self.average, self.trained, strict=bool(self.average)):
                    mean.lerp_(value, 0.001)

        return self._take(work)

    def _take(self, work: Callable[[], object]) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        began = self.clock()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.clock() - began


def probe_time(
    build: Build,
    shape: StepShape,
    *,
    device: torch.device,
    limit: float,
    clock: Clock = time.perf_counter,
) -> StepTime:
    """Time of a step on `device`, which has the memory for it, undisturbed: the fastest counts. Without reading images.

    limit: seconds that the probe may take, about. clock: time.process_time on a machine that others use, with one
    thread.
    """
    probe = Probe(build, shape, device=device, clock=clock)
    probe.rounds(1, 1)  # warms up
    image, mask, rounds = _from_parts(probe, shape, limit=limit)
    probe.update()  # makes the moments
    updating = min(probe.update() for _ in range(2))
    runs = min(RUNS, int(limit / rounds))
    if runs > 1:
        times = [probe.rounds(shape.images, shape.masks, parts=shape.pieces) for _ in range(runs)]
        rounds = min(times[1:])
    return StepTime(rounds + updating, updating, image, mask, whole=runs > 1)


def _from_parts(probe: Probe, shape: StepShape, *, limit: float) -> tuple[float, float, float]:
    """Seconds of an image more, of a mask more, and of the rounds of a step.

    What one image with as many masks as the time allows takes, and what is missing. A step of no image and no mask
    would take time too, so an image more is told by running two.
    """
    images = -(-shape.images // shape.pieces)  # at work at once
    every = images * shape.masks
    few = min(FEW, every)
    first = probe.rounds(1, few)
    some = 2 * (min(every, max(SOME, int(few * limit / (10 * first)))) // 2)
    if some <= few:
        return first, first / (few + 1), first * shape.images
    sizes = [(1, few), (1, some), (2, some // 2)][: 3 if images > 1 else 2]
    times = {size: min(probe.rounds(*size) for _ in range(3)) for size in sizes}
    mask = max(0.0, times[1, some] - times[1, few]) / (some - few)
    image = max(0.0, times[2, some // 2] - times[1, some]) if images > 1 else times[1, some] - some * mask
    piece = times[1, some] + (every - some) * mask + (images - 1) * image
    return image, mask, piece * shape.images / images


def operations(build: Build, shape: StepShape) -> int:
    """Floating-point operations of the image encoder for an image, forward and, where it trains, backward."""
    token = COUNTED.set(True)
    try:
        with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter:
            model = make_without_values(build)
            batch = make_batch(replace(shape, images=1, masks=1), side=model.side)
            features = model.encode(batch.image, batch.hw)
            if features.requires_grad:
                features.sum().backward()  # type: ignore[no-untyped-call]
        return int(counter.get_total_flops())
    finally:
        COUNTED.reset(token)


def least_time(build: Build, shape: StepShape, *, device: torch.device) -> float:
    """Seconds that the image encoder cannot do without: its operations at the speed of a product of matrices."""
    dtype = torch.bfloat16 if shape.precision == "bf16" else torch.float32
    square = torch.ones(1024, 1024, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        (square @ square).sum().item()  # waits for it
        best = min(best, time.perf_counter() - began)
    return float(shape.images * operations(build, shape)) * best / (2 * 1024**3)
