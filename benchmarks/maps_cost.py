"""What uncertainty maps cost on top of pseudo-labelling: in the same pass, and in a stage of their own.

    python benchmarks/maps_cost.py [--photos FOLDER] [--count 20] [--repeats 3]
    python benchmarks/maps_cost.py --vit-b 60

The first with the base weights and settings of params.yaml and an untrained refinement module (its cost is that of a
trained one), on demo scenes or on the .jpg of a folder; one process, one thread, in turn, CPU time. The second: seconds
that ViT-B's refinement module takes for so many masks of one image, random weights; what labelling the image takes is
the row `32 x 32 points` of benchmarks/generator.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sum.config import load_config
from sum.core.uncertainty import refinement
from sum.data.ahead import Photo
from sum.data.demo_files import set_scene
from sum.data.frames import to_square
from sum.data.labels import PseudoMask
from sum.labelling import Labelled, embeddings_of, label
from sum.mapping import MapMaker, ToMap
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import load_segmenter
from sum.models.generator import Batches
from sum.models.halving import Halving
from sum.models.refiner import Refiner
from sum.models.segmenter import Segmenter
from sum.models.sieve import GeneratorSettings


def photo_of(image: np.ndarray, *, side: int) -> Photo:
    frame, inner = to_square(Image.fromarray(image), side=side)
    return Photo(image, torch.from_numpy(frame).permute(2, 0, 1).contiguous(), inner)


def images_of(options: argparse.Namespace) -> list[np.ndarray]:
    if options.photos:
        paths = sorted(options.photos.rglob("*.jpg"))[: options.count]
        return [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    config = load_config()
    seeds, side = config.demo.seeds, config.demo.side
    return [set_scene("unlabelled", n, seeds=seeds, side=side).image for n in range(options.count)]


class Bench:
    def __init__(self, images: list[np.ndarray]) -> None:
        config = load_config()
        self.model = load_segmenter(Path(config.model.checkpoint), backbone=config.model.backbone)
        picked = {part.name: getattr(config.pseudo_label, part.name) for part in fields(GeneratorSettings)}
        self.settings = GeneratorSettings(**picked)
        self.maker = MapMaker(refinement, config.uncertainty.min_refine_area, Refiner(self.model).eval())
        self.photos = [photo_of(image, side=self.model.side) for image in images]

    def labelled(self, photo: Photo) -> Labelled:
        return label(self.model, [photo], ["i"], settings=self.settings, batches=Batches.of(self.settings))[0]

    def together(self) -> list[Labelled]:
        """Labels alone, all images in shared encoder calls and batches."""
        settings = replace(self.settings, images_per_batch=len(self.photos), points_per_batch=1024)
        ids = ["i"] * len(self.photos)
        return label(self.model, self.photos, ids, settings=settings, batches=Batches.of(settings))

    def rows(self, photo: Photo, found: Labelled, embedding: Callable[[], Tensor]) -> list[tuple[object, ...]]:
        hw = (photo.image.shape[0], photo.image.shape[1])
        return self.maker.rows([ToMap("i", hw, found.masks, found.codes, embedding)])[0].rows

    def encoded(self, photo: Photo) -> Tensor:
        return embeddings_of(self.model, [photo], precision="fp32", batch=Halving(1))[0]

    def alone(self) -> list[Labelled]:
        return [self.labelled(photo) for photo in self.photos]

    def one_pass(self) -> list[list[tuple[object, ...]]]:
        done = []
        for photo in self.photos:
            found = self.labelled(photo)
            done.append(self.rows(photo, found, partial(_same, found.embedding)))
        return done

    def two_passes(self) -> list[list[tuple[object, ...]]]:
        return [self.rows(photo, self.labelled(photo), partial(self.encoded, photo)) for photo in self.photos]


def _same(embedding: Tensor) -> Tensor:
    return embedding


def codes_of(found: list[Labelled]) -> list[list[str]]:
    """Run lengths of the masks of each image."""
    return [[mask.rle for mask in labelled.masks] for labelled in found]


def vit_b(masks: int) -> float:
    """CPU seconds."""
    model = Segmenter(BACKBONES["vit_b"].build(), backbone="vit_b").eval()
    maker = MapMaker(refinement, 0.0, Refiner(model).eval())
    chosen = [PseudoMask("i", n, "", 10**6, (10, 10, 500, 500), (99.0, 99.0), 0.9, 0.9) for n in range(masks)]
    codes = np.random.default_rng(0).integers(0, 256, (masks, model.low_side, model.low_side), dtype=np.uint8)
    embedding = torch.randn(1, 256, 64, 64)
    began = time.process_time()
    maker.rows([ToMap("i", (1500, 2250), chosen, codes, lambda: embedding)])
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vit-b", type=int, metavar="MASKS")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.vit_b:
        print(f"ViT-B, {options.vit_b} masks refined: {vit_b(options.vit_b):.1f} s; load {os.getloadavg()[0]:.1f}")
        return
    bench = Bench(images_of(options))
    same = bench.one_pass() == bench.two_passes()
    masks = sum(map(len, bench.one_pass()))
    alike = codes_of(bench.alone()) == codes_of(bench.together())
    runs = {
        "labels alone": bench.alone,
        "labels and maps, one pass": bench.one_pass,
        "maps in a second pass": bench.two_passes,
        "labels alone, all images together": bench.together,
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            began = time.process_time()
            run()
            seconds[name].append(time.process_time() - began)
    title = (
        f"{len(bench.photos)} images, {masks} masks, CPU seconds; rows the same: {same}, run lengths of all together: "
        f"{alike}; load {os.getloadavg()[0]:.1f}"
    )
    table = Table("", "seconds", "ratio", title=title, title_justify="left")
    base = statistics.median(seconds["labels alone"])
    for name, times in seconds.items():
        table.add_row(name, f"{statistics.median(times):.2f}", f"{statistics.median(times) / base:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
