"""Training against the public pieces: the authors' sampling and losses, segment_anything's modules. CPU, one thread.

    python benchmarks/training.py --official FOLDER [--rows sampling losses decoder step] [--repeats 5] [--compiled]

FOLDER: a checkout of the authors' repository (Kangningthu/SUM); without it only the row `decoder` can run. One
process, in turn, warm-up discarded, CPU time, the ratio of medians; memory: the peak of the process in a call less
what it held before. Masks are smooth blobs of 0.1 to 35 % of the image, errors slivers of a smooth displacement,
weights random. `--compiled` adds rows in which torch.compile has both sides' losses. The step is the whole of it but
the optimizer's update: 1024 px, ViT-B, losses at 1024; its equality is shown on a small model.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.generator import resident
from benchmarks.training_duels import Duel, duels
from benchmarks.training_peers import Authors

SHORT = 0.2  # s


@dataclass(frozen=True)
class Cost:
    """Medians of one side."""

    seconds: float  # CPU
    megabytes: float  # peak of a call, less what was there before


def measure(duel: Duel, repeats: int) -> tuple[Cost, Cost, str]:
    """Both sides in turn: the reference's cost, ours, and how far they are apart. A single repeat has no warm-up."""
    spent = []
    for _ in range(repeats + (repeats > 1)):
        (reference, want), (ours, got) = one(duel.reference), one(duel.ours)
        spent.append((reference, ours))
    same = duel.agree(want, got)
    reference, ours = (median(costs) for costs in zip(*spent[repeats > 1 :], strict=True))
    return reference, ours, same


def one(call: Callable[[], Any]) -> tuple[Cost, Any]:
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls freed does not count as there
    Path("/proc/self/clear_refs").write_text("5")  # nor does their peak
    before, began = resident(), time.process_time()
    found = call()
    seconds, megabytes = time.process_time() - began, resident() - before
    if seconds < SHORT:  # again and again, as rounds do: a lone call pays for memory that the next finds ready
        times = int(SHORT / max(seconds, 1e-4)) + 1
        began = time.process_time()
        for _ in range(times):
            found = call()
        seconds = (time.process_time() - began) / times
    return Cost(seconds, megabytes), found


def median(costs: tuple[Cost, ...]) -> Cost:
    return Cost(statistics.median(cost.seconds for cost in costs), statistics.median(cost.megabytes for cost in costs))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="checkout of the authors' repository")
    parser.add_argument("--rows", nargs="+", help="beginnings of their names; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--masks", type=int, default=30)
    parser.add_argument("--backbone", default="vit_b", help="of the rows decoder and step")
    parser.add_argument("--compiled", action="store_true", help="also the losses by torch.compile")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    authors = Authors(options.official) if options.official else None
    rows = duels(authors, masks=options.masks, backbone=options.backbone, compiled=options.compiled)
    if authors is None:
        print("sampling, losses and step are skipped: they need --official.")
    chosen = [name for name in rows if options.rows is None or name.startswith(tuple(options.rows))]
    if not chosen:
        raise SystemExit(f"--rows {' '.join(options.rows)}: none of {', '.join(rows)}")
    title = f"{options.masks} masks, {options.repeats} repeats, 1 thread, CPU seconds; load {os.getloadavg()[0]:.1f}"
    columns = ("", "reference", "ours", "ratio", "MB", "ours", "ratio", "equality")
    table = Table(*columns, title=title, title_justify="left")
    for name in chosen:
        reference, ours, same = measure(rows[name](), options.repeats)
        seconds = pair(reference.seconds, ours.seconds, ".4g")
        table.add_row(name, *seconds, *pair(reference.megabytes, ours.megabytes, ",.0f"), same)
    Console(width=150).print(table)


def pair(reference: float, ours: float, style: str) -> tuple[str, str, str]:
    return f"{reference:{style}}", f"{ours:{style}}", f"{reference / max(ours, 1e-9):.1f}"


if __name__ == "__main__":
    main()
