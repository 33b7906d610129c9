"""Photos read ahead by threads against one by one: wall time of reading alone, and with the model working.

    python benchmarks/read_ahead.py [--photos FOLDER] [--count 40] [--workers 2] [--repeats 3]

FOLDER: photos of your own; without it demo scenes are written to a temporary folder. The model is `tiny`'s encoder and
16 points; both sides must give the same photos. Wall time depends on what else the machine does: the load is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from PIL import Image

from sum.config import load_config
from sum.data.ahead import Photo, read_ahead, read_photo
from sum.data.demo_files import set_scene
from sum.data.images import read_image
from sum.data.records import ImageRecord
from sum.errors import DataError
from sum.labelling import embeddings_of
from sum.models.checkpoint import load_segmenter
from sum.models.generator import generate
from sum.models.halving import Halving
from sum.models.sieve import GeneratorSettings
from sum.storage import sha256_file

CPU = torch.device("cpu")
Sides = dict[str, Callable[[], Iterator[Photo | DataError]]]


def records_of(paths: Iterable[Path]) -> list[ImageRecord]:
    """As ingest would write them."""
    found = []
    for path in paths:
        height, width = read_image(str(path)).shape[:2]
        place = ("unspecified", "unlabelled", "")
        found.append(ImageRecord(path.stem, "bench", str(path), sha256_file(path), height, width, *place))
    return found


def write_scenes(folder: Path, count: int) -> None:
    """Demo scenes as PNG."""
    demo = load_config().demo
    for index in range(count):
        scene = set_scene("unlabelled", index, seeds=demo.seeds, side=demo.side)
        Image.fromarray(scene.image).save(folder / f"{index:03}.png")


def compare(name: str, work: Callable[[Photo | DataError], object], sides: Sides, repeats: int) -> None:
    """Print the median wall time of both sides, in turn, when `work` is done on every photo."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, photos in sides.items():
            began = time.perf_counter()
            for photo in photos():
                work(photo)
            seconds[side].append(time.perf_counter() - began)
    left, right = (statistics.median(times) for times in seconds.values())
    print(f"{name}: one by one {left:.2f} s, ahead {right:.2f} s, ratio {left / right:.2f}")


def bench(paths: list[Path], *, workers: int, repeats: int) -> None:
    """Both sides on these photos."""
    model_of = load_config().model
    model = load_segmenter(Path(model_of.checkpoint), backbone=model_of.backbone)
    records = records_of(paths)
    sides: Sides = {
        "one by one": lambda: (read_photo(record, side=model.side, device=CPU) for record in records),
        "ahead": lambda: (photo for _, photo in read_ahead(records, side=model.side, device=CPU, workers=workers)),
    }
    pairs = list(zip(*(photos() for photos in sides.values()), strict=True))
    good = [(a, b) for a, b in pairs if isinstance(a, Photo) and isinstance(b, Photo)]
    same = sum(np.array_equal(a.image, b.image) and torch.equal(a.frame, b.frame) for a, b in good)
    print(f"{same} of {len(records)} photos the same; load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")

    def label(photo: Photo | DataError) -> None:
        if isinstance(photo, Photo):
            (embedding,) = embeddings_of(model, [photo], precision="fp32", batch=Halving(1))
            generate(model, photo.image, settings=GeneratorSettings(points_per_side=4), embedding=embedding)

    compare("reading alone", id, sides, repeats)
    compare("reading and labelling", label, sides, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path)
    for name, default in (("count", 40), ("workers", 2), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if asked.photos is None:
            write_scenes(Path(folder), asked.count)
        found = sorted((asked.photos or Path(folder)).iterdir())
        photos = [path for path in found if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
        bench(photos[: asked.count], workers=asked.workers, repeats=asked.repeats)


if __name__ == "__main__":
    main()
