"""What `evaluate.workers` is worth where the model works on a device of its own, and whether the plan foresees it.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_workers.py [--side 1500] [--wait 10] [--images 8]

The device is played by waiting, `wait` milliseconds a mask of a decoder call, so that no GPU is needed and the CPU is
left to clicks, scores and the drawing of masks (which has the model's turn). Wall time, the fastest of `repeats`,
beside what the plan says from the parts of the run with one worker: at least and at most. All runs give the same rows.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from sum.commands.plan_evaluation import draw
from sum.data.timings import TIMES
from sum.evaluation import Bench
from sum.evaluation_time import Crew, estimate, measure, workers_wanted
from sum.models.backbones import build_tiny
from sum.models.interact import Protocol
from sum.models.rehearsal import Rehearsal
from sum.models.segmenter import Prediction
from sum.suite import Suite

MASKS = 6


class Elsewhere(Rehearsal):
    """Answers after a wait, without computing."""

    wait = 0.0  # s a mask

    def _decode_as_sam(
        self, source: Tensor, tokens: Tensor, offset: Tensor | None, feedback: Tensor | None, wanted: range
    ) -> Prediction:
        time.sleep(self.wait * len(source))
        shape = (len(source), len(wanted))
        return Prediction(torch.zeros(*shape, self.low_side, self.low_side), torch.zeros(shape))


def rows(bench: Bench, image: tuple, *, count: int, workers: int) -> tuple[float, list]:
    """Wall seconds, and the rows of an image played `count` times."""
    began = time.perf_counter()
    found = list(bench.images([image] * count, workers=workers))
    return time.perf_counter() - began, [{name: part[name] for name in part if name != TIMES} for part in found]


def main() -> None:
    """Print a row a number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("side", 1500), ("wait", 10), ("images", 8), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Elsewhere(build_tiny(), backbone="tiny").eval()
    model.wait = options.wait / 1000
    bench = Bench("model", model, Suite(Protocol()), keep=[])
    with tempfile.TemporaryDirectory() as folder:
        image = draw(Path(folder), 3, side=options.side, masks=MASKS)
        samples = measure(bench, [image] * options.repeats, limit=1e9)
        best = min(samples, key=lambda sample: math.fsum(sample.seconds.values()))
        found = estimate([best], images=options.images, masks=options.images * MASKS)
        cores = len(os.sched_getaffinity(0))
        print(
            f"model's turn {found.model:.2f} s, beside it {found.beside:.2f} s; workers wanted {workers_wanted(found)}"
        )
        print(f"{'workers':>7} {'wall s':>7} {'at least':>8} {'at most':>8}  same rows")
        kept = None
        for workers in (1, 2, 3, 4):
            taken = [rows(bench, image, count=options.images, workers=workers) for _ in range(options.repeats)]
            kept = kept or taken[0][1]
            least, most = Crew(workers=workers, cores=cores).span(found)
            same = all(repr(given) == repr(kept) for _, given in taken)
            print(f"{workers:>7} {min(wall for wall, _ in taken):>7.2f} {least:>8.2f} {most:>8.2f}  {same}")
    print(f"load {os.getloadavg()[0]:.1f}, {cores} cores, {torch.get_num_threads()} threads of PyTorch")


if __name__ == "__main__":
    main()
