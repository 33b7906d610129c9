"""What an evaluation is said to take, against simulated threads, drawn populations and a clock of known steps."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sum import bench as bench_module
from sum import evaluation
from sum.commands.plan_evaluation import draw
from sum.evaluation import Bench
from sum.evaluation_time import (
    BESIDE,
    EACH_IMAGE,
    MODEL,
    Crew,
    Estimate,
    Sample,
    estimate,
    mask_rounds,
    measure,
    well_spread,
    workers_wanted,
)
from sum.models import everything, fidelity, interact
from sum.models.backbones import build_tiny
from sum.models.interact import Protocol
from sum.models.segmenter import Segmenter
from sum.models.sieve import GeneratorSettings
from sum.suite import Suite

SUITE = Suite(
    Protocol(rounds=3),
    others=("box",),
    unspecified=True,
    everything=GeneratorSettings(points_per_side=2, pred_iou_thresh=0, stability_thresh=0, min_area=1),
    fidelity=True,
)
PARTS = (*MODEL, *BESIDE)


def total(model: float, beside: float) -> Estimate:
    seconds = {**dict.fromkeys(PARTS, 0.0), "encode": 0.25 * model, "decode": 0.75 * model, "scores": beside}
    return Estimate(seconds, 0.1)


def simulated(pieces: list[tuple[float, float]], *, workers: int) -> float:
    """Wall time of threads that take images in turn; pieces: of each image, seconds alone and seconds with the lock.

    A thread does an image's own part first and then waits for the model; whoever asked first has it first.
    """
    ready = [(0.0, number) for number in range(workers)]
    heapq.heapify(ready)
    asked: list[tuple[float, float]] = []
    free, end, queue = 0.0, 0.0, iter(pieces)
    while ready or asked:
        if ready and (not asked or ready[0][0] <= max(asked[0][0], free)):
            now, _ = heapq.heappop(ready)
            if (image := next(queue, None)) is not None:
                heapq.heappush(asked, (now + image[0], image[1]))
        else:
            at, taken = heapq.heappop(asked)
            free = max(free, at) + taken
            end = free
            heapq.heappush(ready, (free, 0))
    return end


@pytest.mark.parametrize("beside", [0.1, 0.9, 1.0, 2.5])
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_span_holds_simulated_threads(beside: float, workers: int) -> None:
    rng = np.random.default_rng(0)
    pieces = [(beside * rng.exponential(), float(rng.exponential())) for _ in range(400)]
    found = total(math.fsum(taken for _, taken in pieces), math.fsum(alone for alone, _ in pieces))
    took = simulated(pieces, workers=workers)
    least, most = Crew(workers=workers, cores=64).span(found)
    assert least <= took * 1.000001
    assert took <= most * 1.000001
    if workers == 1:
        assert least == pytest.approx(most) == pytest.approx(took)
    enough = workers_wanted(found)
    even = [(found.beside / 400, found.model / 400)] * 400
    assert simulated(even, workers=enough) == pytest.approx(found.model, rel=0.02)
    if found.beside and enough > 1:
        assert simulated(even, workers=enough - 1) > 1.02 * found.model or found.beside % found.model < 0.02


def test_processes_share_images_and_cores() -> None:
    found = total(600, 300)
    assert Crew(workers=2, cores=8).span(found) == (600, 900)
    assert Crew(workers=2, processes=3, cores=64).span(found) == (200, 300)
    assert Crew(workers=2, processes=3, cores=3).span(found) == (300, 300)  # 900 s of work on 3 cores
    assert Crew(workers=4, cores=4, threads=4).span(found) == (675, 900)  # the model fills all cores in its turn


def test_every_beginning_lies_well_spread() -> None:
    for count in range(1, 70):
        assert sorted(well_spread(count)) == list(range(count))
    assert list(well_spread(64))[:7] == [32, 16, 48, 8, 24, 40, 56]


def test_what_grows_with_images_and_masks_is_told_exactly() -> None:
    rates = dict(zip(PARTS, (2.0, 0.5, 3.0, 0.25, 0.125, 1.5), strict=True))
    samples = [Sample(n, {part: rates[part] * (1 if part in EACH_IMAGE else n) for part in PARTS}) for n in (1, 5, 12)]
    found = estimate(samples, images=100, masks=730)
    want = {part: rate * (100 if part in EACH_IMAGE else 730) for part, rate in rates.items()}
    assert found.seconds == pytest.approx(want)
    assert found.model + found.beside == pytest.approx(math.fsum(want.values()))
    assert found.error == pytest.approx(0)
    assert estimate(samples[:1], images=100, masks=730).error is None


def test_the_error_holds_the_truth_19_times_of_20() -> None:
    rng = np.random.default_rng(3)
    masks = rng.integers(1, 20, 200)
    population = [
        Sample(int(n), {part: rng.uniform(0.5, 1.5) * (1 if part in EACH_IMAGE else n) for part in PARTS})
        for n in masks
    ]
    truth = math.fsum(value for sample in population for value in sample.seconds.values())
    held = []
    for _ in range(400):
        rows = rng.choice(200, 12, replace=False)
        found = estimate([population[row] for row in rows], images=200, masks=int(masks.sum()))
        assert found.error is not None
        held.append(abs(found.model + found.beside - truth) <= found.error * (found.model + found.beside))
    assert 0.91 <= np.mean(held) <= 0.985
    everyone = estimate(population, images=200, masks=int(masks.sum()))
    assert everyone.model + everyone.beside == pytest.approx(truth)
    assert everyone.error == 0  # nothing is left to chance


class Ticking:
    """A clock that goes on only when a known step is taken; counts the steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.patch = 0.0, monkeypatch
        self.calls: dict[str, int] = {}

    def __call__(self) -> float:
        return self.now

    def step(self, owner: object, name: str, seconds: float) -> None:
        call: Callable[..., object] = getattr(owner, name)
        key = f"{getattr(owner, '__name__', owner)}.{name}"

        def slow(*args: object, **options: object) -> object:
            self.now += seconds
            self.calls[key] = self.calls.get(key, 0) + 1
            return call(*args, **options)

        self.patch.setattr(owner, name, slow)


def test_every_second_of_an_image_is_of_the_part_that_took_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Ticking(monkeypatch)
    torch.manual_seed(0)
    model = Segmenter(build_tiny(side=64), backbone="tiny").eval()
    model.task_prompt.data += 1
    clock.step(bench_module, "load_photo", 7)
    clock.step(bench_module, "encode_frame", 100)
    clock.step(Segmenter, "decode", 1000)
    clock.step(evaluation, "generate", 10**5)
    for owner, name in ((interact, "boundary_iou"), (everything, "boundary_iou"), (fidelity, "iou")):
        clock.step(owner, name, 10**7)
    bench = Bench("model", model, SUITE, keep=[1], clock=clock)
    (found,) = measure(bench, [draw(tmp_path, 3, side=64, masks=4)], limit=0)
    assert found.masks == 2  # no time for more: with a limit of 0 two are enough
    clock.calls.clear()
    began = clock.now
    (again,) = measure(bench, [draw(tmp_path, 3, side=64, masks=2)], limit=0)
    games, rounds = 3, 3
    assert again.seconds["read"] == 7
    assert again.seconds["encode"] == 100
    assert again.seconds["decode"] == 1000 * games * 2 * rounds
    assert again.seconds["everything"] == 10**5
    assert again.seconds["fidelity"] in (2000, 3000)  # the clicks on masks and background; negative ones, if any
    assert again.seconds["scores"] % 10**7 == 0
    warming = 7 + 7 + 7 + 100 + 1000 * games * 2 * rounds
    scored_before = 10**7 * games * (2 * rounds + 1)  # one mask
    spent = clock.now - began - warming - scored_before
    assert (
        math.fsum(again.seconds.values()) == spent - 7 - 7
    )  # the masks are read twice more: to show, to take the time


def test_mask_rounds_are_those_of_the_laps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Segmenter(build_tiny(side=64), backbone="tiny").eval()
    model.task_prompt.data += 1
    image, masks = draw(tmp_path, 3, side=64, masks=5)
    laps = Bench("model", model, SUITE, keep=[], clock=time.perf_counter).image(image, masks)["times.parquet"]
    asked = math.fsum(int(str(lap["asked"])) for lap in laps if lap["step"] == "decode")
    assert asked == mask_rounds(SUITE, masks=5) == 5 * 3 * 2 * 3  # random weights solve nothing
