"""Speed and memory of ingest, the manifest and its validation: python benchmarks/data_scale.py [--scale SHARE]

A COCO file of --masks masks (default 1 million), 20 an image, and its photos of 64 x 48 are generated on the disk and
read as stage ingest reads them (bound: 1.5 GB). At scale 1: a manifest of 250,000 images and 5 million masks, generated
on the fly and written as stage ingest writes it (bound: 1.5 GB), a million masks validated with Great Expectations,
pages and figures (bound: 30 s), and the search for copies among 300,000 x 20,000 perceptual hashes, plain and mirrored.
Each part is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

IMAGES, MASKS_AN_IMAGE = 250_000, 20
VALIDATED = 50_000  # images, with 20 masks each
HASHES = (300_000, 20_000)
HEIGHT, WIDTH = 480, 640
SMALL = (48, 64)  # of the photos that are read


def records(images: int, *, seed: int = 0) -> Iterator[tuple]:
    """(image, its 20 masks) after one another: ellipses of 300 sizes, one image in 20 of a test set."""
    from sum.data.records import ImageRecord, MaskRecord, encode_mask

    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    shapes = []
    for _ in range(300):
        x, y, wide, high = rng.integers((90, 70, 5, 5), (550, 410, 80, 60))
        mask = ((xs - x) / wide) ** 2 + ((ys - y) / high) ** 2 < 1
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))
        shapes.append((int(mask.sum()), *box, encode_mask(mask)))
    for number in range(images):
        split = "train" if number % 20 else "test"
        name, task = f"{split}/{number:07d}", ("salient", "entity", "part")[number % 3]
        one, other = (f"{int(value):016x}" for value in rng.integers(0, 2**63, 2))
        sha256 = f"{number:064x}"
        path = f"data/raw/{name}.jpg"
        image = ImageRecord(
            name, split, path, sha256, HEIGHT, WIDTH, task, split, "CC0-1.0", phash=one, mirror_phash=other
        )
        masks = [
            MaskRecord(f"{name}#{k}", name, split, task, split, *shapes[(number + 7 * k) % 300], f"class {k}", "a.json")
            for k in range(MASKS_AN_IMAGE)
        ]
        yield image, masks


def write(folder: Path, images: int) -> dict[str, object]:
    """Generate and write a manifest."""
    from sum.data.records import manifest_writer

    began = time.perf_counter()
    with manifest_writer(folder) as writer:
        for image, masks in records(images):
            writer.add(image, masks)
    seconds = time.perf_counter() - began
    rates = {"images/s": round(images / seconds), "masks/s": round(images * MASKS_AN_IMAGE / seconds)}
    return {"images": images, "masks": images * MASKS_AN_IMAGE, "seconds": round(seconds, 1), **rates}


def validate(folder: Path, images: int) -> dict[str, object]:
    """Validate a manifest made before, pages and figures included."""
    from sum.data.checks import CopyRules, check_manifest
    from sum.data.rules import Limits
    from sum.data.tables import SetFacts

    began = time.perf_counter()
    report = check_manifest(
        folder,
        sets={name: SetFacts(split=name) for name in ("train", "test")},
        budgets={},
        limits=Limits(min_side=32, max_side=20_000, min_area=16, max_area_share=0.99),
        copies=CopyRules(bits=8, alike=0.95, allowed=(("*", "*"),)),  # chance pairs of made-up hashes have no photo
        docs=folder / "docs",
    )
    seconds = time.perf_counter() - began
    failed = [outcome.text for outcome in report.failed if outcome.table != "images"]
    assert not failed, failed
    return {"images": images, "masks": report.rows["masks"], "seconds": round(seconds, 1)}


def search(_: Path, ours: int, theirs: int) -> dict[str, object]:
    """Look for copies among random hashes."""
    from sum.data.duplicates import near_pairs

    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, 2**64, count, dtype=np.uint64) for count in (ours, 2 * theirs))
    right[::7] = left[: len(right[::7])] ^ np.uint64(0b10001)
    began = time.perf_counter()
    found = near_pairs(left, right, bits=8)
    seconds = time.perf_counter() - began
    return {"images": ours, "test images": theirs, "seconds": round(seconds, 1), "pairs": len(found)}


def part(name: str, folder: Path, *counts: int) -> dict[str, object]:
    """Run one of the functions above in a process of its own."""
    command = [sys.executable, __file__, "--part", name, "--folder", str(folder), "--counts", *map(str, counts)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def make_coco(folder: Path, images: int) -> dict[str, object]:
    """Write a COCO file of 20 twelve-cornered masks an image, annotation by annotation, and its photos."""
    import io

    from PIL import Image

    rng, began = np.random.default_rng(0), time.perf_counter()
    photos = []
    for _ in range(100):
        buffer = io.BytesIO()
        noise = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        noise.resize((SMALL[1], SMALL[0])).save(buffer, "JPEG")
        photos.append(buffer.getvalue())
    turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    shapes = []
    for x, y, size in rng.uniform((12, 12, 3), (52, 36, 10), (300, 3)):
        corners = np.stack((x + size * np.cos(turn), y + size * np.sin(turn)), axis=1)
        shapes.append(json.dumps([corners.ravel().round(2).tolist()]))
    order = rng.permutation(images)  # annotations lie by image, as most tools write them, the images in no order
    with (folder / "annotations.json").open("w") as file:
        file.write('{"info": {}, "categories": [{"id": 1, "name": "thing"}], "annotations": [')
        for place, number in enumerate(order.tolist()):
            for k in range(MASKS_AN_IMAGE):
                key = number * MASKS_AN_IMAGE + k
                file.write("," if place or k else "")
                file.write(f'{{"id": {key}, "image_id": {number}, "category_id": 1, "iscrowd": 0, "area": 100.0, ')
                file.write(f'"bbox": [1, 2, 3, 4], "segmentation": {shapes[key % 300]}}}')
        file.write('], "images": [')
        for number in range(images):
            folders = folder / "images" / f"{number // 1000:03d}"
            if number % 1000 == 0:
                folders.mkdir(parents=True)
            (folders / f"{number:07d}.jpg").write_bytes(photos[number % 100])
            name = f'"file_name": "{number // 1000:03d}/{number:07d}.jpg", "height": {SMALL[0]}, "width": {SMALL[1]}'
            file.write(("," if number else "") + f'{{"id": {number}, {name}}}')
        file.write("]}")
    megabytes = round((folder / "annotations.json").stat().st_size / 1e6)
    return {"images": images, "JSON MB": megabytes, "seconds": round(time.perf_counter() - began, 1)}


def ingest(folder: Path, images: int) -> dict[str, object]:
    """Read that set and write its manifest, as stage ingest does."""
    from sum.data.records import manifest_writer
    from sum.data.sources import Sample
    from sum.data_settings import DatasetConfig
    from sum.datasets import read_set

    began, count, masks = time.perf_counter(), 0, 0
    entry = DatasetConfig(
        kind="coco", root=str(folder), split="train", task="entity", licence="CC0-1.0", max_json_mb=100_000
    )
    found, _ = read_set("set", entry)
    listed = time.perf_counter() - began
    with manifest_writer(folder / "manifest") as writer:
        for items in found:
            for item in items:
                assert isinstance(item, Sample), item
                writer.add(item.image, item.masks)
                count, masks = count + 1, masks + len(item.masks)
    seconds = time.perf_counter() - began
    assert (count, masks) == (images, images * MASKS_AN_IMAGE)
    times = {"seconds of the JSON": round(listed, 1), "seconds": round(seconds, 1)}
    return {
        "images": count,
        "masks": masks,
        **times,
        "images/s": round(count / seconds),
        "masks/s": round(masks / seconds),
    }


PARTS: dict[str, Callable[..., dict[str, object]]] = {
    "write": write,
    "validate": validate,
    "search": search,
    "make": make_coco,
    "ingest": ingest,
}


def main(argv: Sequence[str]) -> None:
    """Print a row a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--masks", type=int, default=1_000_000, help="of the COCO file; 0: leave it out")
    parser.add_argument("--only-read", action="store_true", help="the COCO file alone")
    parser.add_argument("--folder", type=Path, help="for the temporary files; about 0.5 GB a million masks")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--counts", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.part:
        from sum.provenance import peak_memory

        found = PARTS[options.part](options.folder, *options.counts)
        print(json.dumps({**found, "peak MB": round(peak_memory())}))
        return
    scaled = functools.partial(_scaled, scale=options.scale)
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        folder = Path(work)
        if options.masks:
            images = max(1, options.masks // MASKS_AN_IMAGE)
            _row("make a COCO set", part("make", folder, images))
            _row("ingest it", part("ingest", folder, images))
        if options.only_read:
            return
        _row("write the manifest", part("write", folder / "all", scaled(IMAGES)))
        part("write", folder / "some", scaled(VALIDATED))
        _row("validate", part("validate", folder / "some", scaled(VALIDATED)))
        _row("look for copies", part("search", folder, *map(scaled, HASHES)))


def _scaled(count: int, *, scale: float) -> int:
    return max(40, round(count * scale))


def _row(title: str, found: dict[str, object]) -> None:
    print(f"{title:20}" + ", ".join(f"{name} {value:,}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
