"""The store of pseudo-labels and uncertainty: bytes a mask, time to read, and two million masks.

    python benchmarks/label_store.py [--masks 2000000] [--folder WORK] [--project FOLDER] [--images 8] [--repeats 7]

--masks 0 leaves the last part out. --project: a project after stage uncertainty, whose shards are measured too.

Size: synthetic masks at L = 256 (the blobs of benchmarks/generator.py; refined: the same blob moved, smoothly, by
about a pixel), 60 an image of 1024 x 1024. All bytes of both shards count; decoded, every code is what went in.
Reading: 30 of the 60 masks of an image, chosen at random, with their refined masks, against two tars of PNGs, the
layout of the official SUM loader, read with tarfile and PIL. Of each mask both sides end with two `[256, 256]` uint8
maps, of SAM's and of the refined probability; the store gives the records too, after their checksum. The official
layout has the label at full size, which is read and shrunk; a kinder one has both at 256. The files are in the page
cache, the store is open, as in training, a tar is opened for every image. One process, one thread, in turn, CPU time,
the ratio of medians.

Scale: the masks of 500 rows over and over through write_shard and LabelStore, 100 an image, 256 images a shard, each
step in a process of its own; what it holds in memory, mapped files apart, is told at a tenth and at the end. Its CPU
time a mask, times 100 masks of 250,000 images, is the extrapolation; making the rows (compression) is timed apart.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent))

import cv2
import numpy as np
import torch
from generator import LOW, SIDE, candidates
from PIL import Image
from pycocotools import mask as coco
from rich.console import Console
from rich.table import Table

from sum.core.uncertainty import to_codes
from sum.data.labels import Codes, LabelStore, PseudoMask, label_rows, map_rows
from sum.data.shards import LABELS, UNCERTAINTY, shard_name, write_shard

AN_IMAGE, CHOSEN = 60, 30
DENSE, SHARD, POOL = 100, 256, 500  # of the last part: masks an image, images a shard, distinct rows
PAPER = 250_000 * DENSE
ROOM = 10e9  # bytes of free disk for all the masks
FEWER = 500_000


def drawn(count: int, *, seed: int) -> tuple[Codes, Codes]:
    """Codes `[count, L, L]` of SAM's and of the refined probability."""
    logits = candidates(-(-count // 3), inner=(SIDE, SIDE), seed=seed)[0].reshape(-1, LOW, LOW)[:count]
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:LOW, :LOW].astype(np.float32)
    moved = np.empty((count, LOW, LOW), dtype=np.float32)
    for plane, out in zip(logits.numpy(), moved, strict=True):
        dx, dy = (cv2.resize(rng.normal(0, 1.5, (5, 5)).astype(np.float32), (LOW, LOW), interpolation=cv2.INTER_CUBIC)
                  for _ in range(2))  # fmt: skip
        out[:] = cv2.remap(plane, x + dx, y + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return to_codes(torch.sigmoid(logits)).numpy(), to_codes(torch.sigmoid(torch.from_numpy(moved))).numpy()


def described(image_id: str, codes: Codes) -> list[PseudoMask]:
    """The record of each mask, with the RLE of its 1024 x 1024 label."""
    rng, masks = np.random.default_rng(0), []
    for index, plane in enumerate(codes):
        full = cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) > 127
        code = coco.encode(np.asfortranarray(full, dtype=np.uint8))
        x, y, width, height = (int(value) for value in coco.toBbox(code))
        box = (x, y, x + max(width, 1) - 1, y + max(height, 1) - 1)
        place, iou, stability = rng.random(2) * SIDE, *np.float32(rng.random(2)).tolist()
        text = code["counts"].decode("ascii")
        masks.append(PseudoMask(image_id, index, text, int(full.sum()), box, tuple(place.tolist()), iou, stability))
    return masks


class Layouts:
    """The same masks as shards, as the official pair of tars, and as a pair of tars of small PNGs."""

    def __init__(self, folder: Path, *, images: int) -> None:
        self.folder, self.names = folder, [f"sa/{number:06d}" for number in range(images)]
        self.labels, self.maps = folder / "labels", folder / "maps"
        self.truth: dict[str, tuple[Codes, Codes]] = {}
        with (
            write_shard(self.labels / shard_name(0), kind=LABELS, side=LOW, shards=1) as labels,
            write_shard(self.maps / shard_name(0), kind=UNCERTAINTY, side=LOW, shards=1) as maps,
        ):
            for number, name in enumerate(self.names):
                sam, refined = self.truth[name] = drawn(AN_IMAGE, seed=AN_IMAGE * number)
                masks = described(name, sam)
                labels.add(name, label_rows(masks, sam))
                maps.add(name, map_rows([True] * AN_IMAGE, refined=refined, uncertainty=None))
                self._tars(name)
            maps.about(labels.info)
        self.store = LabelStore(self.labels, self.maps)

    def _tars(self, name: str) -> None:
        sam, refined = self.truth[name]
        full = [cv2.resize(plane, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) for plane in sam]
        for kind, planes in (("full", full), ("small", sam), ("refined", refined)):
            with tarfile.open(self.tar(kind, name), "w") as tar:
                for index, plane in enumerate(planes):
                    data = io.BytesIO()
                    Image.fromarray(plane).save(data, "PNG")
                    member = tarfile.TarInfo(f"{index}.png")
                    member.size = len(data.getvalue())
                    tar.addfile(member, io.BytesIO(data.getvalue()))

    def tar(self, kind: str, name: str) -> Path:
        """Of one image."""
        return self.folder / f"{name.replace('/', '_')}.{kind}.tar"

    def ours(self, name: str, chosen: list[int]) -> tuple[Codes, Codes]:
        """SAM's and the refined codes of the chosen masks, after their records have been read too."""
        self.store.masks(name, chosen)
        return self.store.sam(name, chosen), self.store.refined(name, chosen)

    def tars(self, kind: str, name: str, chosen: list[int]) -> tuple[Codes, Codes]:
        """As the official loader: it reads all masks of both tars, then takes those it wants."""
        read = []
        for which in (kind, "refined"):
            with tarfile.open(self.tar(which, name)) as tar:
                planes = [np.array(Image.open(tar.extractfile(member))) for member in tar.getmembers()]
            read.append(np.stack([plane[:: len(plane) // LOW, :: len(plane) // LOW] for plane in planes])[chosen])
        return read[0], read[1]

    def check(self) -> str:
        """Whether every code comes back."""
        store = LabelStore(self.labels, self.maps)
        same = True
        for name, (sam, refined) in self.truth.items():
            distance = np.abs(sam.astype(int) - refined.astype(int))
            pairs = ((store.sam(name), sam), (store.refined(name), refined), (store.uncertainty(name), distance))
            same &= all(np.array_equal(found, want) for found, want in pairs)
        return f"all codes equal: {same}"


def turns(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median CPU seconds of each side, measured in turn; the first round warms up."""
    seconds = {side: list[float]() for side in sides}
    for turn in range(repeats + 1):
        for side, call in sides.items():
            began = time.process_time()
            call()
            if turn:
                seconds[side].append(time.process_time() - began)
    return {side: statistics.median(times) for side, times in seconds.items()}


def small(table: Table, folder: Path, *, images: int, repeats: int) -> None:
    """Rows on size and on reading."""
    layouts = Layouts(folder, images=images)
    masks, same = images * AN_IMAGE, layouts.check()
    ours = sum(path.stat().st_size for path in (*layouts.labels.iterdir(), *layouts.maps.iterdir())) / masks
    sizes = {kind: sum(layouts.tar(kind, name).stat().st_size for name in layouts.names) / masks
             for kind in ("full", "small", "refined")}  # fmt: skip
    texts = {"full": "1024 and 256 px PNG, two tars", "small": "256 px PNG, two tars"}
    for kind, text in texts.items():
        other = sizes[kind] + sizes["refined"]
        table.add_row(f"bytes a mask: {text}", f"{other:,.0f}", f"{ours:,.0f}", f"{other / ours:.1f}", same)
    chosen = sorted(np.random.default_rng(0).permutation(AN_IMAGE)[:CHOSEN].tolist())
    sides: dict[str, Callable[[], list[tuple[Codes, Codes]]]] = {
        "ours": lambda: [layouts.ours(name, chosen) for name in layouts.names],
        **{
            kind: partial(lambda kind: [layouts.tars(kind, name, chosen) for name in layouts.names], kind)
            for kind in texts
        },
    }
    times = {side: seconds / images for side, seconds in turns(dict(sides), repeats).items()}
    for kind, text in texts.items():
        pairs = zip(sides["ours"](), sides[kind](), strict=True)
        equal = f"maps equal: {all(np.array_equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))}"
        row = f"{times[kind] * 1000:,.1f}", f"{times['ours'] * 1000:,.2f}", f"{times[kind] / times['ours']:.0f}", equal
        table.add_row(f"ms, {CHOSEN} of {AN_IMAGE} masks: {text}", *row)


def project(table: Table, folder: Path) -> None:
    """Bytes a mask of a project's shards, and how many pixels of its maps are not 0."""
    paths = folder / "data/pseudo_labels", folder / "data/uncertainty"
    store = LabelStore(*paths)
    masks = sum(store.count(name) for name in store.image_ids)
    size = sum(file.stat().st_size for path in paths for file in path.glob("*.arrow"))
    text = f"bytes a mask: {folder.name}, {masks} masks of {len(store)} images, L = {store.side}"
    raw = 2 * store.side**2
    table.add_row(text, f"{raw:,} raw", f"{size / masks:,.0f}", f"{raw * masks / size:.1f}", "")


def pool() -> tuple[list, list, float]:
    """Rows of labels and of maps, and CPU seconds that making one of each took."""
    labels, maps, seconds = [], [], 0.0
    for start in range(0, POOL, DENSE):
        sam, refined = drawn(DENSE, seed=start)
        masks = described("pool", sam)
        began = time.process_time()
        labels += label_rows(masks, sam)
        maps += map_rows([True] * DENSE, refined=refined, uncertainty=None)
        seconds += time.process_time() - began
    return labels, maps, seconds / POOL


def write_all(folder: Path, masks: int) -> dict[str, float]:
    """Write `masks` masks, all shards; what it took, without the making of rows."""
    labels, maps, making = pool()
    images, at = masks // DENSE, 0
    shards, began, early = -(-images // SHARD), time.process_time(), 0.0
    for number in range(shards):
        first = number * SHARD
        with (
            write_shard(folder / "labels" / shard_name(number), kind=LABELS, side=LOW, shards=shards) as one,
            write_shard(folder / "maps" / shard_name(number), kind=UNCERTAINTY, side=LOW, shards=shards) as other,
        ):
            for image in range(first, min(first + SHARD, images)):
                at = (image * 37) % (POOL - DENSE)
                one.add(f"sa/{image:09d}", labels[at : at + DENSE])
                other.add(f"sa/{image:09d}", maps[at : at + DENSE])
            other.about(one.info)
        if number == shards // 10:
            early = held()
    return {"seconds": time.process_time() - began, "early": early, "end": held(), "making": making}


def read_all(folder: Path, masks: int) -> dict[str, float]:
    """Read 30 masks of every image, their records and uncertainty."""
    began = time.process_time()
    store, rng, images, early = LabelStore(folder / "labels", folder / "maps"), np.random.default_rng(0), 0, 0.0
    opening, total = time.process_time() - began, 0
    for name in store.image_ids:
        chosen = rng.permutation(DENSE)[:CHOSEN].tolist()
        total += len(store.masks(name, chosen)) + 0 * store.uncertainty(name, chosen).shape[0]
        images += 1
        if images == len(store) // 10:
            early = held()
    return {
        "seconds": time.process_time() - began, "opening": opening, "early": early, "end": held(),
        "kept": sum(store.count(name) for name in store.image_ids), "read": total, "images": images,
    }  # fmt: skip


def held() -> float:
    """MB that this process holds for itself, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def large(table: Table, folder: Path, *, masks: int) -> None:
    """Rows on writing and reading many masks."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as workers:
        wrote = workers.apply(write_all, (folder, masks))
        read = workers.apply(read_all, (folder, masks))
    size = sum(path.stat().st_size for path in folder.glob("*/*.arrow"))
    kept, hours = int(read["kept"]), PAPER / masks / 3600
    paper = f"{PAPER:,} masks"
    flat = "MB held at 10 %, at the end"
    table.add_row(f"{kept:,} masks written", "", f"{wrote['seconds']:.0f} s, {size / 1e9:.2f} GB", "", "")
    table.add_row(f"  {flat}", f"{wrote['early']:.0f}", f"{wrote['end']:.0f}", "", "")
    found = f"{CHOSEN} of {DENSE} of {int(read['images']):,} images read"
    table.add_row(found, "", f"{read['seconds']:.0f} s, opened in {read['opening']:.1f} s", "", "")
    table.add_row(f"  {flat}", f"{read['early']:.0f}", f"{read['end']:.0f}", "", "")
    table.add_row(f"{paper}, size", "", f"{size / kept * PAPER / 1e9:.1f} GB", "", "")
    table.add_row(f"{paper}, rows made and written", "", f"{PAPER * wrote['making'] / 3600:.1f} + "
                  f"{wrote['seconds'] * hours:.2f} h", "", "")  # fmt: skip
    table.add_row(f"{paper}, one epoch read", "", f"{read['seconds'] * hours:.2f} h", "", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("masks", 2_000_000), ("images", 8), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("folder", "project"):
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    for threads in (torch.set_num_threads, cv2.setNumThreads):
        threads(1)
    title = f"Label store, 1 thread, CPU time; load {os.getloadavg()[0]:.1f}"
    table = Table("", "reference", "ours", "ratio", "equality", title=title, title_justify="left")
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        small(table, Path(place) / "small", images=options.images, repeats=options.repeats)
        if options.project:
            project(table, options.project)
        if options.masks:
            room = shutil.disk_usage(place).free
            masks = options.masks if room > ROOM else min(options.masks, FEWER)
            large(table, Path(place) / "large", masks=masks)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
