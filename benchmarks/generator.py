"""Automatic mask generation against segment_anything's own generator: time, memory, equality, at ViT-B's shapes.

    python benchmarks/generator.py [--height 1500 --width 2250] [--points 64] [--repeats 5]

Whole records with trained weights: benchmarks/generator_records.py.

One process, one thread, in turn, CPU time, the ratio of medians. The weights are random (no public ones are at hand),
so behind the decoder both sides get the same synthetic outputs: smooth blobs of 0.1 to 35 % of the image, 45 % of them
above the paper's predicted IoU. `32 x 32 points` is the encoder once and the two other parts 16 times, with 64 points.
Peak memory of one batch behind the decoder is measured in a process of its own for each side, less what it held before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.utils.amg import coco_encode_rle
from torch import Tensor

from sum.core.geometry import resized_hw
from sum.models.backbones import BACKBONES
from sum.models.crops import Crop
from sum.models.point_decoder import PointDecoder
from sum.models.segmenter import Segmenter
from sum.models.sieve import GeneratorSettings, Sieve

SIDE, LOW = 1024, 256  # S and L of SAM
Rows = list[tuple[str, float, float]]  # RLE counts, predicted IoU, stability


def candidates(count: int, *, inner: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Decoder outputs of `count` points: logits `[count, 3, L, L]` of blobs, scores `[count, 3]`."""
    chance = torch.Generator().manual_seed(seed)
    height, width = (size * LOW / SIDE for size in inner)
    at = torch.arange(LOW) + 0.5
    share = 10 ** (torch.rand(count, 3, generator=chance) * 2.54 - 3)  # 0.1 % .. 35 %
    radius = (share * height * width / np.pi).sqrt()[..., None, None]
    y, x = (torch.rand(count, 3, 1, 1, generator=chance) * size for size in (height, width))
    aspect = 0.6 + torch.rand(count, 3, 1, 1, generator=chance)
    far = ((at[:, None] - y) ** 2 * aspect + (at[None, :] - x) ** 2 / aspect).sqrt()
    wobble = torch.randn(count, 3, 1, 1, generator=chance) * torch.sin(at / 9)[:, None] * torch.sin(at / 7)
    logits = ((radius - far + wobble) * 4).clamp(-20, 15)
    good = torch.rand(count, 3, generator=chance) < 0.45
    return logits, torch.where(good, 0.9, 0.7) + 0.1 * torch.rand(count, 3, generator=chance)


class Behind:
    """Both sides on the same outputs of one batch of points."""

    def __init__(self, model: Segmenter, *, hw: tuple[int, int], points: int) -> None:
        self.model, self.hw, self.inner = model, hw, resized_hw(*hw, SIDE)
        self.logits, self.scores = candidates(points, inner=self.inner)
        self.points = np.random.default_rng(0).random((points, 2)) * (hw[1], hw[0])
        self.official = SamAutomaticMaskGenerator(model.sam, points_per_batch=points, output_mode="coco_rle")
        predictor = self.official.predictor
        predictor.original_size, predictor.input_size, predictor.is_image_set = hw, self.inner, True
        predictor.predict_torch = self._predict

    def _predict(self, *_: object, **__: object) -> tuple[Tensor, Tensor, None]:
        """What SamPredictor does behind the decoder: all three masks of every point to full size."""
        return self.model.sam.postprocess_masks(self.logits, self.inner, self.hw), self.scores, None

    @torch.inference_mode()
    def reference(self) -> Rows:
        """What passes the filters, by segment_anything."""
        data = self.official._process_batch(self.points, self.hw, [0, 0, self.hw[1], self.hw[0]], self.hw)
        codes = [coco_encode_rle(rle)["counts"] for rle in data["rles"]]
        return list(zip(codes, data["iou_preds"].tolist(), data["stability_score"].tolist(), strict=True))

    @torch.inference_mode()
    def ours(self) -> Rows:
        """The same by this project."""
        sieve = Sieve(self.model, crop=Crop.whole(self.hw), settings=GeneratorSettings())
        good = self.scores > GeneratorSettings().pred_iou_thresh
        points = self.points[torch.arange(len(self.points))[:, None].expand_as(good)[good].numpy()]
        found = sieve.sift(self.logits[good], self.scores[good], points)
        return [row for part in found for row in zip(part.rle, part.iou.tolist(), part.stability.tolist(), strict=True)]


class Decoders:
    """The mask decoder for a batch of single points, by both sides; all outputs are drawn."""

    def __init__(self, model: Segmenter, *, points: int) -> None:
        chance = torch.Generator().manual_seed(1)
        self.model, self.xy = model, torch.rand(points, 2, generator=chance) * SIDE
        self.embedding = torch.randn(1, 256, 64, 64, generator=chance)

    @torch.inference_mode()
    def reference(self) -> tuple[Tensor, Tensor]:
        """Logits and predicted IoU by segment_anything, as SamPredictor.predict_torch asks for them."""
        sam = self.model.sam
        asked = self.xy[:, None], torch.ones(len(self.xy), 1, dtype=torch.int)
        sparse, dense = sam.prompt_encoder(points=asked, boxes=None, masks=None)
        logits, scores = sam.mask_decoder(
            image_embeddings=self.embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        return logits, scores

    @torch.inference_mode()
    def ours(self) -> tuple[Tensor, Tensor]:
        """The same by this project."""
        decoder = PointDecoder(self.model, self.embedding)
        parts = list(decoder.ask(self.xy, floor=None, chunk=decoder.near))
        shape = len(self.xy), 3
        return (
            torch.cat([part.logits for part in parts]).view(*shape, LOW, LOW),
            torch.cat([part.iou for part in parts]).view(shape),
        )


def build() -> Segmenter:
    """ViT-B with random weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return Segmenter(BACKBONES["vit_b"].build().eval(), backbone="vit_b")


def peak(side: str, hw: tuple[int, int], points: int) -> float:
    """MB that one batch behind the decoder needs beyond what was there before, in a process of its own."""
    bench = Behind(build(), hw=hw, points=points)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak that making the outputs took
    before = resident()
    getattr(bench, side)()
    return resident() - before


def resident() -> float:
    """Peak MB, from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def turns(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each side, measured in turn."""
    seconds = {side: list[float]() for side in sides}
    for _ in range(repeats):
        for side, call in sides.items():
            began = time.process_time()
            call()
            seconds[side].append(time.process_time() - began)
    return {side: statistics.median(times) for side, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("height", 1500), ("width", 2250), ("points", 64), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    hw, points = (options.height, options.width), options.points
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {side: pool.apply(peak, (side, hw, points)) for side in ("reference", "ours")}
    model = build()
    behind, decoders = Behind(model, hw=hw, points=points), Decoders(model, points=points)
    post = turns({"reference": behind.reference, "ours": behind.ours}, options.repeats)
    decode = turns({"reference": decoders.reference, "ours": decoders.ours}, options.repeats)
    with torch.inference_mode():
        encode = turns({"both": lambda: model.sam.image_encoder(torch.zeros(1, 3, SIDE, SIDE))}, 1)["both"]
    whole = {side: encode + 1024 / points * (post[side] + decode[side]) for side in post}
    title = f"ViT-B, {hw[0]} x {hw[1]}, {points} points, 1 thread, CPU seconds; load {os.getloadavg()[0]:.1f}"
    table = Table("", "reference", "ours", "ratio", "equality", title=title, title_justify="left")
    for name, row, same in (
        ("decoder", decode, decoders_agree(decoders)),
        ("behind the decoder", post, rows_agree(behind)),
        ("32 x 32 points", whole, ""),
        ("peak MB behind the decoder", memory, ""),
    ):
        left, right = row["reference"], row["ours"]
        table.add_row(name, f"{left:,.2f}", f"{right:,.2f}", f"{left / max(right, 1e-9):.1f}", same)
    Console(width=120).print(table)


def decoders_agree(decoders: Decoders) -> str:
    (logits, scores), (want, wanted) = decoders.ours(), decoders.reference()
    return f"logits {(logits - want).abs().max() / want.std():.0e} of std, IoU {(scores - wanted).abs().max():.0e}"


def rows_agree(behind: Behind) -> str:
    ours, want = behind.ours(), behind.reference()
    same = [row[0] for row in ours] == [row[0] for row in want]
    pairs = [(a, b) for left, right in zip(ours, want, strict=False) for a, b in zip(left[1:], right[1:], strict=True)]
    return f"{len(ours)} of {len(want)} masks, same RLE: {same}, scores {max(abs(a - b) for a, b in pairs):.0e} apart"


if __name__ == "__main__":
    main()
