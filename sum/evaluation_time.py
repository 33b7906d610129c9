"""The time of an evaluation on this machine, told from a few of its images: the model's, and what is done beside it.

Threads of a process (`evaluate.workers`) ask the model one after the other; reading, clicks and scores of one go on
while another asks. So an evaluation takes at least the model's time, and at most both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit

from sum.bench import read_image
from sum.data.timings import TIMES
from sum.evaluation import Bench, Pair
from sum.models.rehearsal import Rehearsal
from sum.suite import Suite

MODEL = ("encode", "decode", "everything", "fidelity")  # parts that have the model's turn, drawing masks included
BESIDE = ("read", "scores")
EACH_IMAGE = frozenset({"read", "encode", "everything"})  # the others grow with the masks
STEPS = {"redraw": "decode"}  # of the stopwatch, where a part has another name
LEAST = 2  # masks of an image that is measured, if it has as many
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of each part, of one image with so many masks."""

    masks: int
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of each part of a whole evaluation, one thread; error: relative, of their total, half of an interval."""

    seconds: dict[str, float]
    error: float | None  # None: of one image nothing can be said

    @property
    def model(self) -> float:
        """Seconds of the model's turns."""
        return math.fsum(self.seconds[part] for part in MODEL)

    @property
    def beside(self) -> float:
        """Seconds of the rest."""
        return math.fsum(self.seconds[part] for part in BESIDE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Who evaluates: `processes` with a model and `workers` threads each."""

    workers: int
    processes: int = 1
    cores: int = 1  # of this machine
    threads: int = 1  # cores that the model keeps busy in its turn

    def span(self, found: Estimate) -> tuple[float, float]:
        """Seconds of the evaluation: at least, with the rest done beside the model as far as can be; and at most."""
        model, both = found.model / self.processes, (found.model + found.beside) / self.processes
        busy = (found.model * self.threads + found.beside) / self.cores
        least = max(model, both / self.workers, busy)
        return least, max(least, both)


def workers_wanted(found: Estimate) -> int:
    """How many threads of a process keep its model busy, if the rest is done beside it."""
    return 1 + math.ceil(found.beside / found.model)


def mask_rounds(suite: Suite, *, masks: int) -> int:
    """How many masks decoder calls of games are asked for, at most: a perfect mask is not asked for any more.

    In each round for the oracle and for the single output; masks: of all images, whose task is not `unspecified`.
    """
    games = len(list(suite.games("entity")))
    return masks * games * 2 * suite.protocol.rounds


def well_spread(count: int) -> Iterator[int]:
    """0 .. count - 1 in an order whose every beginning lies well spread: the middle, the quarters, the eighths, ..."""
    seen = set[int]()
    size = 1
    while len(seen) < count:
        for odd in range(1, 2 * size, 2):
            at = count * odd // (2 * size)
            if at not in seen:
                seen.add(at)
                yield at
        size *= 2


def measure(bench: Bench, pairs: Iterable[Pair], *, limit: float) -> list[Sample]:
    """What the first of these images take, one after the other: one at least, and about `limit` seconds of bench.clock.

    One mask is played before, to warm up; where masks are slow, not all of an image are played.
    """
    began, samples = bench.clock(), list[Sample]()
    most = None
    for image, masks in pairs:
        if most is None:
            most = max(LEAST, int(limit / (3 * _warm_up(bench, (image, masks[:1])))))
        samples.append(_measure(bench, (image, masks[:: -(-len(masks) // most)])))
        took = bench.clock() - began
        if took * (1 + 1 / len(samples)) > limit:
            break
    return samples


def _warm_up(bench: Bench, pair: Pair) -> float:
    """Seconds of the games of one mask."""
    suite = bench.suite
    try:
        bench.suite = replace(suite, everything=None, fidelity=False)
        taken = _measure(bench, pair).seconds
    finally:
        bench.suite = suite
    return taken["decode"] + taken["scores"]


def _measure(bench: Bench, pair: Pair) -> Sample:
    image, masks = pair
    _, _, truths = read_image(image, masks, side=bench.model.side)
    if isinstance(bench.model, Rehearsal):
        bench.model.show(truths)
    start = bench.clock()
    read_image(image, masks, side=bench.model.side)
    reading = bench.clock() - start
    start = bench.clock()
    records = bench.image(image, masks)
    whole = bench.clock() - start
    seconds = dict.fromkeys(MODEL, 0.0)
    for lap in records[TIMES]:
        step = str(lap["step"])
        seconds[STEPS.get(step, step)] += float(str(lap["seconds"]))
    rest = whole - math.fsum(seconds.values())
    reading = min(reading, rest)
    return Sample(len(masks), {**seconds, "read": reading, "scores": rest - reading})


def estimate(samples: Sequence[Sample], *, images: int, masks: int) -> Estimate:
    """The parts of an evaluation of so many images and masks.

    Of each part its seconds over its images or masks (a ratio estimate); the error is that of a sample drawn by chance,
    by how far the samples lie from these ratios (Cochran, Sampling Techniques, section 6.4), `LEVEL`, Student's t.
    """
    units = {part: [1 if part in EACH_IMAGE else sample.masks for sample in samples] for part in (*MODEL, *BESIDE)}
    taken = {part: [sample.seconds[part] for sample in samples] for part in units}
    ratios = {part: math.fsum(taken[part]) / math.fsum(units[part]) for part in units}
    seconds = {part: ratio * (images if part in EACH_IMAGE else masks) for part, ratio in ratios.items()}
    count = len(samples)
    if count < 2:
        return Estimate(seconds, None)
    # of a sample what it takes more than its ratios say, each counted as the whole has images or masks to a sample's
    scale = {part: seconds[part] / math.fsum(taken[part]) if any(taken[part]) else 0.0 for part in units}
    off = [
        math.fsum(scale[part] * (taken[part][row] - ratios[part] * units[part][row]) for part in units)
        for row in range(count)
    ]
    deviation = float(np.std(off, ddof=1)) * math.sqrt(count * max(0.0, 1 - count / max(images, 1)))
    width = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * deviation
    return Estimate(seconds, width / math.fsum(seconds.values()))
