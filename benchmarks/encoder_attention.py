"""Attention of SAM's image encoder against segment_anything's own module: time, memory, equality, at ViT-B's shapes.

    python benchmarks/encoder_attention.py [--repeats 7] [--whole]

A global block (64 x 64 positions) and the windows of an image (25 of 14 x 14), 768 channels, 12 heads, fp32, random
weights and positions. One process, one thread, in turn, CPU time, medians, the first turn discarded. Peak memory is
what Linux counts for a process of its own for each side beyond what it held before. Equality: the largest difference of
the answers over their standard deviation, and the largest of the gradients over their length, tensor by tensor.
--whole: instead, the image encoder on an image of 1024 px, forward and backward, once for each side, with its blocks'
values kept and made again (finetune.recompute_encoder); equal are the answer and the gradients before the first block.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn

from sum.models import vit
from sum.models.backbones import BACKBONES

SHAPES = {"global block, 64 x 64": (1, 64), "25 windows, 14 x 14": (25, 14)}
Side = Callable[[Tensor], Tensor]


def case(count: int, grid: int) -> tuple[Attention, Tensor]:
    """A module of ViT-B with positions that count, and what goes into it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = Attention(768, num_heads=12, use_rel_pos=True, input_size=(grid, grid))
    nn.init.normal_(layer.rel_pos_h, std=0.1)
    nn.init.normal_(layer.rel_pos_w, std=0.1)
    return layer, torch.randn(count, grid, grid, 768, requires_grad=True)


def encoder() -> tuple[nn.Module, Tensor]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = BACKBONES["vit_b"].build().image_encoder
    with torch.no_grad():
        for block in module.blocks:  # as drawn, attention is so even that its rounding drowns
            block.attn.qkv.weight *= 2  # with 4 float32 itself is 2e-4 from float64
            block.attn.rel_pos_h.normal_(std=0.1)
            block.attn.rel_pos_w.normal_(std=0.1)
    return module, torch.randn(1, 3, 1024, 1024)


def sides(module: nn.Module) -> dict[str, Side]:
    """Who answers: segment_anything, and this project."""
    if isinstance(module, Attention):
        return {"reference": module, "ours": partial(vit.attention, module)}
    kept, again = (partial(vit.encode, module, recompute=recompute) for recompute in (False, True))
    return {"reference": module, "ours": kept, "ours, blocks made again": again}


def work(side: Side, x: Tensor, *, learn: bool) -> Tensor:
    """One pass, or one forward and one backward."""
    with torch.set_grad_enabled(learn):
        out = side(x)
        if learn:
            chance = torch.Generator().manual_seed(0)  # plain sums over channels are 0 behind the neck's LayerNorm
            (out * torch.randn(out.shape, generator=chance)).sum().backward()
    return out.detach()


def forget(module: nn.Module, x: Tensor) -> None:
    module.zero_grad(set_to_none=True)
    x.grad = None
    gc.collect()


def peak(shape: tuple[int, int], side: str, learn: bool) -> float:
    """MB beyond what was there before, in a process of its own."""
    layer, x = case(*shape)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    work(sides(layer)[side], x, learn=learn)
    return resident() - before


def whole(side: str) -> tuple[float, float, list[np.ndarray]]:
    """CPU seconds and MB of the encoder in a process of its own; what it answers, and its first gradients."""
    module, x = encoder()
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident(), time.process_time()
    out = work(sides(module)[side], x, learn=True)
    seconds, memory = time.process_time() - began, resident() - before
    return seconds, memory, [out.numpy(), module.pos_embed.grad.numpy(), module.patch_embed.proj.weight.grad.numpy()]


def resident() -> float:
    """Peak MB, from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def turns(module: nn.Module, x: Tensor, *, learn: bool, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each side, measured in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides(module)}
    for turn in range(repeats + 1):
        for name, side in sides(module).items():
            forget(module, x)
            began = time.process_time()
            work(side, x, learn=learn)
            if turn:
                seconds[name].append(time.process_time() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def agreement(module: nn.Module, x: Tensor, *, learn: bool) -> str:
    """How far the sides are apart."""
    found = []
    for side in sides(module).values():
        forget(module, x)
        out = work(side, x, learn=learn)
        tensors = [*module.parameters(), x]
        found.append((out, [value.grad for value in tensors if value.grad is not None]))
    (want, wanted), (out, grads) = found
    said = f"{(out - want).abs().max() / want.std():.0e} of std"
    if learn:
        said += f", gradients {max(float((a - b).norm() / b.norm()) for a, b in zip(grads, wanted, strict=True)):.0e}"
    return said


def rows_of(
    name: str, times: dict[str, float], memory: dict[str, float], same: dict[str, str]
) -> Iterator[tuple[str, ...]]:
    """A row of the table a side."""
    for side, seconds in times.items():
        ratios = f"{times['reference'] / seconds:.2f}", f"{memory['reference'] / memory[side]:.1f}"
        yield name, side, f"{seconds:.3f}", ratios[0], f"{memory[side]:,.0f}", ratios[1], same.get(side, "")


def attention_rows(repeats: int) -> Iterator[tuple[str, ...]]:
    for name, shape in SHAPES.items():
        for learn in (False, True):
            layer, x = case(*shape)
            times = turns(layer, x, learn=learn, repeats=repeats)
            same = {"ours": agreement(layer, x, learn=learn)}
            memory = {side: alone(peak, shape, side, learn) for side in times}
            yield from rows_of(f"{name}, forward{' + backward' * learn}", times, memory, same)


def encoder_rows() -> Iterator[tuple[str, ...]]:
    found = {side: alone(whole, side) for side in ("reference", "ours", "ours, blocks made again")}
    out, *grads = found["reference"][2]
    same = {}
    for side, (_, _, (mine, *own)) in found.items():
        far = max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(own, grads, strict=True))
        same[side] = f"{np.abs(mine - out).max() / out.std():.0e} of std, gradients {far:.0e}"
    times, memory = ({side: row[number] for side, row in found.items()} for number in (0, 1))
    yield from rows_of("image encoder, forward + backward", times, memory, same)


def alone(call: Callable[..., Any], *args: object) -> Any:
    """What a call answers in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.apply(call, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--whole", action="store_true")
    options = parser.parse_args()
    rows = list(encoder_rows() if options.whole else attention_rows(options.repeats))
    title = f"ViT-B, fp32, 1 thread, CPU seconds; load {os.getloadavg()[0]:.1f}"
    table = Table("", "side", "seconds", "ratio", "peak MB", "ratio", "equality", title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
