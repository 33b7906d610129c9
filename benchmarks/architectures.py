"""Every `finetune.arch` in one table: numbers that train, memory and time of a training step, size of the delta file.

    python benchmarks/architectures.py [--backbone vit_b] [--masks 4] [--steps 3]

A step is what stage finetune runs with method sum and defaults: one image, its masks, 7 rounds of prompts (hq: one-shot
prompts), then AdamW; random weights and pixels, fp32, one thread. Each arch has a process of its own. Memory: the
highest resident size beyond that before the model was made (Linux). Seconds: processor time of the fastest step after
the first. Sizes: files as they are published, MB of 10^6 bytes. --steps 0: numbers and files only.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from rich.console import Console
from rich.table import Table

from sum.models.archs import ARCHS, ArchSpec
from sum.models.backbones import BACKBONES
from sum.models.deltas import DELTA, WEIGHTS, save_both
from sum.models.mask_chunk import MaskChunk
from sum.models.parts import select_parts
from sum.models.segmenter import Segmenter
from sum.planner import StepShape, make_batch, optimizer_of, run_rounds, update
from sum.stages.common import round_options
from sum.training_settings import RoundsConfig

SPECS = {
    **{name: ArchSpec(name) for name in ARCHS},
    "lora (encoder, decoder)": ArchSpec("lora", {"decoder": True}),
}


def measure(name: str, *, backbone: str, masks: int, steps: int) -> dict[str, float]:
    """The figures of one arch, by this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = SPECS[name]
    if spec.arch.adds == "lora":
        importlib.import_module("sum.models.lora")  # its size is not the step's
    before = resident()
    model = Segmenter(BACKBONES[backbone].build(), backbone=backbone)
    model = select_parts(model, spec=spec, task_prompt=True, seed=0)
    rounds = round_options(RoundsConfig(), task_prompt="first", arch=spec.name)
    shape = StepShape(images=1, masks=masks, rounds=rounds, loss_side=BACKBONES[backbone].side)
    optimizer, times = optimizer_of(model), []
    for _ in range(steps):
        batch = make_batch(shape, side=model.side)
        began = time.process_time()
        run_rounds(model, batch, shape=shape, chunk=MaskChunk())
        update(model, optimizer)
        optimizer.zero_grad(set_to_none=True)
        times.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    with tempfile.TemporaryDirectory() as folder:
        save_both(Path(folder), model, base="0" * 64, about={})
        sizes = [(Path(folder) / file).stat().st_size for file in (DELTA, WEIGHTS)]
    return {
        "trained": trained,
        "peak": peak,
        "seconds": min(times[1:], default=math.nan),
        "delta": sizes[0],
        "whole": sizes[1],
    }


def resident() -> int:
    """Bytes of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny", choices=sorted(BACKBONES))
    parser.add_argument("--masks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--arch", choices=list(SPECS), help="this one only, as JSON")
    asked = parser.parse_args()
    if asked.arch:
        print(json.dumps(measure(asked.arch, backbone=asked.backbone, masks=asked.masks, steps=asked.steps)))
        return
    table = Table("arch", "numbers that train", "memory of a step", "seconds a step", "delta", "whole file")
    for name in SPECS:
        command = [sys.executable, __file__, *sys.argv[1:], "--arch", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        if not asked.steps:
            found["peak"] = math.nan
        megabytes = [f"{found[key] / 1e6:,.1f} MB" for key in ("peak", "delta", "whole")]
        table.add_row(name, f"{found['trained']:,}", megabytes[0], f"{found['seconds']:.2f}", *megabytes[1:])
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
