"""Whole records of automatic mask generation against segment_anything's, with trained weights, option by option.

    python benchmarks/generator_records.py [--scenes 30] [--side 128]

On unlabelled demo scenes of that side, with the base weights and thresholds of params.yaml. One process, one thread, in
turn, CPU time. Every ratio has its equality beside it: masks that segment_anything does not have in the same place of
the list, masks with other run lengths, the largest distance of a score. bf16 is compared with this project's own
fp32: the share of masks with a partner of IoU >= 0.95, both ways.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from segment_anything import SamAutomaticMaskGenerator

from sum.config import load_config
from sum.data.demo_files import set_scene
from sum.models.agreement import partners
from sum.models.candidates import GeneratedMask
from sum.models.checkpoint import load_segmenter
from sum.models.generator import area_at_paper_side, generate
from sum.models.segmenter import Segmenter
from sum.models.sieve import GeneratorSettings

OPTIONS: dict[str, dict[str, Any]] = {
    "as labelled": {},
    "a crop layer": {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
    "two crop layers": {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
    "small regions": {"min_mask_region_area": 50},
}


@dataclass
class Tally:
    """What comparing two lists of records came to."""

    masks: int = 0
    unmatched: int = 0
    other: int = 0  # run lengths
    apart: float = 0.0  # scores
    reference: float = 0.0  # CPU seconds
    ours: float = 0.0

    def add(self, found: list[GeneratedMask], official: list[dict[str, Any]]) -> None:
        """Compare the records of one image, place by place."""
        self.masks += len(found)
        if len(found) != len(official):
            self.unmatched += max(len(found), len(official))
            return
        for mask, row in zip(found, official, strict=True):
            if list(mask.point) != row["point_coords"][0]:
                self.unmatched += 1
                continue
            self.other += row["segmentation"]["counts"] != mask.rle
            scores = (row["stability_score"] - mask.stability, row["predicted_iou"] - mask.predicted_iou)
            self.apart = max(self.apart, *map(abs, scores))


def official_of(model: Segmenter, settings: GeneratorSettings) -> SamAutomaticMaskGenerator:
    """segment_anything's generator under the same settings."""
    same = ("points_per_side", "points_per_batch", "pred_iou_thresh", "box_nms_thresh", "crop_n_layers")
    same += ("crop_overlap_ratio", "crop_n_points_downscale_factor", "crop_nms_thresh", "min_mask_region_area")
    return SamAutomaticMaskGenerator(
        model.sam,
        **{name: getattr(settings, name) for name in same},
        stability_score_thresh=settings.stability_thresh,
        stability_score_offset=settings.stability_offset,
        output_mode="coco_rle",
    )


def timed(tally: Tally, model: Segmenter, image: NDArray[np.uint8], settings: GeneratorSettings) -> None:
    """Both sides on one image."""
    began = time.process_time()
    records = official_of(model, settings).generate(image)
    between = time.process_time()
    found = generate(model, image, settings=settings)
    tally.reference, tally.ours = tally.reference + between - began, tally.ours + time.process_time() - between
    large = [row for row in records if area_at_paper_side(row["area"], image.shape[:2]) >= max(settings.min_area, 1e-9)]
    tally.add(found, large)


def agreement(model: Segmenter, images: Iterator[NDArray[np.uint8]], settings: GeneratorSettings) -> str:
    """Of bf16 with fp32, in words."""
    shares, seconds = [list[bool](), list[bool]()], [0.0, 0.0]
    for image in images:
        both = []
        for number, precision in enumerate(("fp32", "bf16")):
            began = time.process_time()
            both.append(generate(model, image, settings=replace(settings, precision=precision)))
            seconds[number] += time.process_time() - began
        for share, hits in zip(shares, partners(*both, hw=image.shape[:2]), strict=True):
            share += hits.tolist()
    told = " and ".join(f"{np.mean(share):.1%} of {len(share)}" for share in shares)
    return (
        f"bf16: {told} masks have a partner, fp32 in bf16 and back; CPU seconds {seconds[0]:.1f} and {seconds[1]:.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=30)
    parser.add_argument("--side", type=int, default=128)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config()
    label = config.pseudo_label
    settings = GeneratorSettings(**{field.name: getattr(label, field.name) for field in fields(GeneratorSettings)})
    settings = replace(settings, max_area_share=2.0)  # segment_anything has no such filter
    model = load_segmenter(Path(config.model.checkpoint), backbone=config.model.backbone)

    def images() -> Iterator[NDArray[np.uint8]]:
        for index in range(asked.scenes):
            yield set_scene("unlabelled", index, seeds=config.demo.seeds, side=asked.side).image

    title = (
        f"{asked.scenes} scenes of {asked.side} px, {config.model.backbone}, CPU seconds; load {os.getloadavg()[0]:.1f}"
    )
    table = Table("", "masks", "reference", "ours", "ratio", "equality", title=title, title_justify="left")
    for name, options in OPTIONS.items():
        tally = Tally()
        for image in images():
            timed(tally, model, image, replace(settings, **options))
        same = f"{tally.unmatched} unmatched, {tally.other} other RLE, scores {tally.apart:.0e} apart"
        ratio = tally.reference / tally.ours
        table.add_row(name, str(tally.masks), f"{tally.reference:.1f}", f"{tally.ours:.1f}", f"{ratio:.1f}", same)
    console = Console(width=120)
    console.print(table)
    console.print(agreement(model, images(), settings), highlight=False)


if __name__ == "__main__":
    main()
