"""Reading speed, one thread: python benchmarks/data_reading.py [--photos FOLDER] [--images 1000]

1. A training sample (photo and masks -> what training takes) by the project's loader and by the plain loop of Pillow
   and pycocotools, side by side: seconds of processor time, medians of 7 rounds, and whether both gave the same pixels.
   FOLDER: real photos instead, for instance an images folder of your own; the masks stay generated.
2. Ingest of each kind of data set, generated: images and masks a second, one thread.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco

from sum.core.geometry import resized_hw
from sum.data.images import read_image
from sum.data.layouts import LAYOUTS
from sum.data.records import ImageRecord, Manifest, MaskRecord, encode_mask
from sum.data.samples import HumanImages
from sum.data.sources import Sample, Source

ROUNDS = 7
SHAPES = {"SA-1B's size": (1500, 2250, 16), "DIS5K's size": (2400, 3200, 4), "COCO's size": (480, 640, 8)}
SIDES = {"SAM": (1024, 256), "tiny": (128, 64)}  # model side, loss side


def photo(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    """Smooth colours with some noise: as large as a JPEG of a real photo."""
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8))


def blobs(height: int, width: int, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Masks `[H, W]` bool of round shapes, a tenth of the image each."""
    for _ in range(count):
        field = cv2.resize(
            rng.standard_normal((12, 16)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
        yield field > np.quantile(field[::4, ::4], 0.9)


def plain_sample(path: str, rles: list[str], *, side: int, loss_side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The loop as one writes it: open, convert, resize; decode, resize, threshold. Frame and masks, no more."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    height, width = resized_hw(image.height, image.width, side)
    frame = np.zeros((side, side, 3), dtype=np.uint8)
    frame[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    rows, columns = resized_hw(image.height, image.width, loss_side)
    masks = np.zeros((len(rles), loss_side, loss_side), dtype=bool)
    for rle, place in zip(rles, masks, strict=True):
        full = coco.decode({"size": [image.height, image.width], "counts": rle})
        how = cv2.INTER_AREA if rows <= image.height and columns <= image.width else cv2.INTER_LINEAR
        place[:rows, :columns] = cv2.resize(full * 255, (columns, rows), interpolation=how) > 127
    return torch.from_numpy(frame).permute(2, 0, 1).contiguous(), torch.from_numpy(masks)


def seconds(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Median processor time of both, taken in turns after one round that does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for run, kept in zip((first, second), times, strict=True):
            began = time.process_time()
            run()
            if number:
                kept.append(time.process_time() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def compare(name: str, paths: list[str], masks: int) -> None:
    """Two rows of the table: these photos for both model sizes."""
    rng = np.random.default_rng(0)
    images, rows = list[ImageRecord](), list[MaskRecord]()
    for number, path in enumerate(paths):
        height, width, _ = read_image(path).shape
        key = f"x/{number:05d}"
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        images.append(ImageRecord(key, "x", path, digest, height, width, "entity", "train", "CC0-1.0"))
        for k, mask in enumerate(blobs(height, width, masks, rng)):
            box = (int(mask.sum()), 0, 0, width - 1, height - 1)
            rows.append(MaskRecord(f"{key}#{k}", key, "x", "entity", "train", *box, encode_mask(mask), "", ""))
    found = Manifest(images, rows).masks_of()
    for label, (side, loss_side) in SIDES.items():
        loader = HumanImages(Manifest(images, rows), side=side, loss_side=loss_side, tasks={"entity": 0})

        def ours(loader: HumanImages = loader) -> list[tuple[torch.Tensor, torch.Tensor]]:
            read = [loader.sample(n, masks=masks, rng=np.random.default_rng(n)) for n in range(len(paths))]
            return [(sample.image, sample.mask) for sample in read]

        def plain(side: int = side, loss_side: int = loss_side) -> list[tuple[torch.Tensor, torch.Tensor]]:
            read = []
            for n, image in enumerate(images):
                order = np.random.default_rng(n).permutation(masks)
                rles = [found[image.image_id][k].rle for k in order]
                read.append(plain_sample(image.path, rles, side=side, loss_side=loss_side))
            return read

        same = all(
            torch.equal(a, b)
            for one, other in zip(ours(), plain(), strict=True)
            for a, b in zip(one, other, strict=True)
        )
        mine, theirs = seconds(ours, plain)
        each = 1000 / len(paths)
        print(
            f"| {name} | {masks} | {label} {side}/{loss_side} | {mine * each:.1f} | {theirs * each:.1f} "
            f"| {theirs / mine:.2f} | {'yes' if same else 'NO'} |"
        )


def write_sets(root: Path, count: int) -> dict[str, Source]:
    """A set of `count` images of 240 x 320 and four masks each (raster: one), in every kind written here."""
    rng = np.random.default_rng(0)
    names = [f"{number:05d}" for number in range(count)]
    (root / "images").mkdir()
    (root / "masks").mkdir()
    pool = [photo(240, 320, rng) for _ in range(16)]
    shapes = list(blobs(240, 320, 64, rng))
    tree: dict[str, list[object]] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    via: dict[str, object] = {}
    for number, name in enumerate(names):
        pool[number % 16].save(root / "images" / f"{name}.jpg", quality=88)
        Image.fromarray(shapes[number % 64].astype(np.uint8) * 255).save(root / "masks" / f"{name}.png")
        tree["images"].append({"id": number, "file_name": f"{name}.jpg", "height": 240, "width": 320})
        regions = []
        for k in range(4):
            counts = encode_mask(shapes[(number * 4 + k) % 64])
            row = {"id": 4 * number + k, "image_id": number, "category_id": 1, "iscrowd": 0}
            tree["annotations"].append(row | {"segmentation": {"size": [240, 320], "counts": counts}})
            xs, ys = [10 + k, 200, 150, 20], [10, 20 + k, 180, 150]
            shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
            regions.append({"shape_attributes": shape, "region_attributes": {}})
        via[f"{name}.jpg1"] = {"filename": f"{name}.jpg", "size": 1, "regions": regions, "file_attributes": {}}
        sa1b = {"image": {"image_id": number, "file_name": f"{name}.jpg", "height": 240, "width": 320}}
        (root / "images" / f"{name}.json").write_text(json.dumps(sa1b | {"annotations": tree["annotations"][-4:]}))
    (root / "annotations.json").write_text(json.dumps(tree))
    (root / "via.json").write_text(json.dumps(via))
    common = {"name": "x", "root": str(root), "split": "train", "task": "entity", "licence": "CC0-1.0"}
    kinds: dict[str, dict[str, str]] = {
        "images": {"image_suffix": ".jpg"},
        "raster": {"image_suffix": ".jpg", "mask_suffix": ".png"},
        "coco": {},
        "via": {"annotations": "via.json"},
        "sa1b": {},
    }
    return {kind: Source(**common, **more) for kind, more in kinds.items() if kind in LAYOUTS}


def throughput(count: int) -> None:
    """One row a kind."""
    with tempfile.TemporaryDirectory() as folder:
        for kind, source in write_sets(Path(folder), count).items():
            began = time.perf_counter()
            found = [item for job in LAYOUTS[kind](source) for item in job.read() if isinstance(item, Sample)]
            took = time.perf_counter() - began
            masks = sum(len(sample.masks) for sample in found)
            print(f"| {kind} | {len(found):,} | {masks:,} | {len(found) / took:,.0f} | {masks / took:,.0f} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of real photos, at most 100 of them are read")
    parser.add_argument("--images", type=int, default=1000, help="size of the generated sets")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    print(
        "| photos | masks | model, loss side | ours, ms | plain, ms | ratio | same pixels |\n"
        "|---|--:|---|--:|--:|--:|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (height, width, masks)) in enumerate(SHAPES.items()):
            path = Path(folder) / f"{number}.jpg"
            photo(height, width, np.random.default_rng(number)).save(path, quality=90)
            compare(f"{name}, {width} x {height}", [str(path)], masks)
    if options.photos:
        paths = sorted(str(path) for path in options.photos.rglob("*.jpg"))
        chosen = paths[:: max(1, len(paths) // 100)][:100]
        compare(f"{len(chosen)} of {options.photos.name}", chosen, 8)
    print("\n| kind | images | masks | images/s | masks/s |\n|---|--:|--:|--:|--:|")
    throughput(options.images)


if __name__ == "__main__":
    main()
