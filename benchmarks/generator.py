"""Automatic mask generation against segment_anything's own generator, behind the decoder: time, memory, equality.

    python benchmarks/generator.py [--height 1500 --width 2250] [--points 64] [--repeats 5]

One process, one thread, in turn, CPU time, the ratio of medians. The decoder's outputs are synthetic (smooth blobs of
0.1 to 35 % of the image, 45 % of them above the paper's predicted IoU), as no public weights are at hand; both sides
get the same ones. Peak memory is that of a process of its own for each side, less what it held before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from segment_anything import SamAutomaticMaskGenerator
from torch import Tensor

from sum.core.geometry import resized_hw
from sum.models import generator
from sum.models.backbones import build_tiny
from sum.models.generator import GeneratorSettings
from sum.models.segmenter import Prediction, Segmenter

SIDE, LOW = 1024, 256  # S and L of SAM


def candidates(count: int, *, inner: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Decoder outputs of `count` points: logits `[count, 3, L, L]` of blobs, scores `[count, 3]`."""
    generator = torch.Generator().manual_seed(0)
    height, width = (size * LOW / SIDE for size in inner)
    at = torch.arange(LOW) + 0.5
    share = 10 ** (torch.rand(count, 3, generator=generator) * 2.54 - 3)  # 0.1 % .. 35 %
    radius = (share * height * width / np.pi).sqrt()[..., None, None]
    y, x = (torch.rand(count, 3, 1, 1, generator=generator) * size for size in (height, width))
    aspect = 0.6 + torch.rand(count, 3, 1, 1, generator=generator)
    far = ((at[:, None] - y) ** 2 * aspect + (at[None, :] - x) ** 2 / aspect).sqrt()
    wobble = torch.randn(count, 3, 1, 1, generator=generator) * torch.sin(at / 9)[:, None] * torch.sin(at / 7)
    logits = ((radius - far + wobble) * 4).clamp(-20, 15)
    scores = (
        0.88
        + 0.12 * torch.rand(count, 3, generator=generator)
        - 0.12 * (torch.rand(count, 3, generator=generator) < 0.55)
    )
    return logits, scores


class Bench:
    """Both sides on the same outputs of one batch of points."""

    def __init__(self, *, hw: tuple[int, int], points: int) -> None:
        torch.set_num_threads(1)
        self.hw, self.inner = hw, resized_hw(*hw, SIDE)
        self.logits, self.scores = candidates(points, inner=self.inner)
        self.points = np.random.default_rng(0).random((points, 2)) * (hw[1], hw[0])
        model = build_tiny(side=64, channels=32).eval()
        self.settings = GeneratorSettings()
        self.model = Outputs(model, self.logits, self.scores)
        self.official = SamAutomaticMaskGenerator(model, points_per_batch=points, output_mode="coco_rle")
        self.official.predictor.original_size, self.official.predictor.input_size = hw, self.inner
        self.official.predictor.is_image_set = True
        self.official.predictor.predict_torch = self._predict
        model.image_encoder.img_size = SIDE

    @torch.no_grad()
    def _predict(self, *_: object, **__: object) -> tuple[Tensor, Tensor, None]:
        """What SamPredictor does behind the decoder: all three masks of every point to full size."""
        return self.model.sam.postprocess_masks(self.logits, self.inner, self.hw), self.scores, None

    @torch.no_grad()
    def reference(self) -> list[tuple[str, float, float]]:
        """RLE counts, predicted IoU and stability of what passes the filters, by segment_anything."""
        box = [0, 0, self.hw[1], self.hw[0]]
        data = self.official._process_batch(self.points, self.hw, box, self.hw)
        from segment_anything.utils.amg import coco_encode_rle

        codes = [coco_encode_rle(rle)["counts"] for rle in data["rles"]]
        return list(zip(codes, data["iou_preds"].tolist(), data["stability_score"].tolist(), strict=True))

    @torch.inference_mode()
    def ours(self) -> list[tuple[str, float, float]]:
        """The same by this project."""
        embedding = torch.zeros(1, 32, 4, 4)
        found = generator._ask(self.model, embedding, self.points, hw=self.hw, settings=self.settings)
        return [row for part in found for row in zip(part.rle, part.iou.tolist(), part.stability.tolist(), strict=True)]


class Outputs(Segmenter):
    """A Segmenter whose decoder has answered already."""

    def __init__(self, sam: torch.nn.Module, logits: Tensor, scores: Tensor) -> None:
        super().__init__(sam, backbone="tiny")
        self._answer = Prediction(logits, scores)

    side = property(lambda _: SIDE)
    low_side = property(lambda _: LOW)

    def decode(self, *_: object, **__: object) -> Prediction:
        return self._answer


def peak(side: str, hw: tuple[int, int], points: int) -> float:
    """MB that one batch needs beyond what was there before, in a process of its own."""
    bench = Bench(hw=hw, points=points)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that making the outputs took
    before = resident("VmHWM")
    getattr(bench, side)()
    return resident("VmHWM") - before


def resident(name: str) -> float:
    """MB, from Linux's account of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("height", 1500), ("width", 2250), ("points", 64), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    hw = options.height, options.width
    seconds = dict[str, list[float]](reference=[], ours=[])
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {side: pool.apply(peak, (side, hw, options.points)) for side in seconds}
    bench = Bench(hw=hw, points=options.points)
    found = {side: getattr(bench, side)() for side in seconds}  # warm-up, and what is compared
    for _ in range(options.repeats):
        for side, times in seconds.items():
            began = time.process_time()
            getattr(bench, side)()
            times.append(time.process_time() - began)
    middle = {side: statistics.median(times) for side, times in seconds.items()}
    same = [row[0] for row in found["ours"]] == [row[0] for row in found["reference"]]
    apart = max(
        (
            abs(a - b)
            for left, right in zip(*found.values(), strict=True)
            for a, b in zip(left[1:], right[1:], strict=True)
        ),
        default=0,
    )
    table = Table(
        "",
        "s a batch",
        "MB",
        title=f"{3 * options.points} candidates, {hw[0]} x {hw[1]}, 1 thread",
        title_justify="left",
    )
    for side in seconds:
        table.add_row(side, f"{middle[side]:.3f}", f"{memory[side]:,.0f}")
    ratio = middle["reference"] / middle["ours"]
    table.add_row("ratio", f"{ratio:.1f}", f"{memory['reference'] / max(memory['ours'], 1):.0f}")
    Console().print(table)
    print(
        f"{len(found['ours'])} masks pass; RLEs equal: {same}; scores apart: {apart:.1g}; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
