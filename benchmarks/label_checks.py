"""Memory and time of stage check_labels: python benchmarks/label_checks.py [--masks 50000 200000] [--folder WORK]

For each number of masks a manifest and a store of that many made-up pseudo-masks are written, 100 an image, 256 images
a shard: ellipses of 300 sizes (benchmarks/data_scale.py), maps that are the same small blob. Then they are checked,
with pages, in a process of its own. Its peak is that of what it holds for itself (RssAnon, looked at every 10 ms):
pages of the mapped shards are the kernel's to take back. `before` is what it holds once all is imported. What the peak
grows by an image, times 250,000, is the extrapolation: the table of the masks comes in parts, that of images does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from data_scale import records

AN_IMAGE, SHARD, SIDE = 100, 256, 32  # masks, images, px of the maps
PAPER = 25_000_000  # masks


def blob() -> np.ndarray:
    """Codes `[AN_IMAGE, SIDE, SIDE]` of a small square."""
    codes = np.zeros((AN_IMAGE, SIDE, SIDE), dtype=np.uint8)
    codes[:, 8:20, 8:20] = 200
    return codes


def rows_of(shapes: Sequence[Any], *, start: int) -> list[tuple[Any, ...]]:
    """The label rows of an image: every seventh of the shapes."""
    from sum.data.labels import PseudoMask, label_rows

    found = []
    for k in range(AN_IMAGE):
        shape = shapes[(start + 7 * k) % len(shapes)]
        box = shape.x0, shape.y0, shape.x1, shape.y1
        point, score = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), 0.99 - k / 1000
        found.append(PseudoMask("", k, shape.rle, shape.area, box, point, score, 0.97))
    return label_rows(found, blob())


def write(folder: Path, masks: int) -> None:
    """A manifest of unlabelled photos and the shards about them."""
    from sum.data.labels import map_rows
    from sum.data.records import manifest_writer
    from sum.data.shards import LABELS, UNCERTAINTY, shard_name, write_shard
    from sum.storage import write_json

    images = masks // AN_IMAGE
    photo, _ = next(records(1))
    shapes = [shape for _, five in records(15, seed=0) for shape in five]  # 300, in turn
    names = [f"sa/{number:07d}" for number in range(images)]
    with manifest_writer(folder / "manifest") as writer:
        for number, name in enumerate(names):
            path, content = f"data/raw/{name}.jpg", f"{number:064x}"
            writer.add(
                replace(photo, image_id=name, dataset="sa", path=path, sha256=content, task="unspecified",
                        split="unlabelled"), []
            )  # fmt: skip
    labels = [rows_of(shapes, start=start) for start in range(len(shapes) // AN_IMAGE * 10)]
    maps = map_rows([True] * AN_IMAGE, refined=blob(), uncertainty=None)
    shards = -(-images // SHARD)
    for number in range(shards):
        with (
            write_shard(folder / LABELS / shard_name(number), kind=LABELS, side=SIDE, shards=shards) as one,
            write_shard(folder / UNCERTAINTY / shard_name(number), kind=UNCERTAINTY, side=SIDE, shards=shards) as other,
        ):
            for image, name in enumerate(names[number * SHARD : (number + 1) * SHARD]):
                one.add(name, labels[image % len(labels)])
                other.add(name, maps)
            other.about(one.info)
    write_json(folder / LABELS / "summary.json", {"unreadable": {}})


def held() -> float:
    """MB that this process holds for itself, without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


class Peak:
    """The most that this process holds for itself, in MB, from now to `end`."""

    def __init__(self) -> None:
        self.most, self._ended = held(), threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()

    def end(self) -> float:
        """Stop looking; the peak."""
        self._ended.set()
        self._watch.join()
        return self.most

    def _look(self) -> None:
        while not self._ended.wait(0.01):
            self.most = max(self.most, held())


def check(folder: Path, masks: int) -> dict[str, float]:
    """Check them; every rule must be met."""
    from sum.data.checks import make_context
    from sum.data.label_checks import LabelLimits, check_labels
    from sum.data.shards import LABELS, UNCERTAINTY

    with tempfile.TemporaryDirectory() as place:
        make_context(Path(place))
    limits = LabelLimits(
        min_area=10, max_area_share=0.9, pred_iou_thresh=0.5, stability_thresh=0.9, max_predicted_iou=1.2,
        max_share_without_masks=0.1, min_refine_area=10,
    )  # fmt: skip
    before, began = held(), time.process_time()
    peak = Peak()
    report = check_labels(
        folder / "manifest", folder / LABELS, folder / UNCERTAINTY, limits=limits, docs=folder / "docs"
    )
    seconds = time.process_time() - began
    assert report.rows["labels"] == masks, report.rows
    assert not report.failed, report.failed
    size = sum(path.stat().st_size for path in (folder / "docs").rglob("*.html"))
    return {"before MB": before, "peak MB": peak.end(), "CPU s": seconds, "pages kB": size / 1000}


def main(argv: Sequence[str]) -> None:
    """Print a row a number of masks, and the extrapolation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--masks", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--folder", type=Path, help="for the temporary files; about 0.2 kB a mask")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.only:
        print(json.dumps(check(options.folder, options.only)))
        return
    peaks = list[tuple[int, float]]()
    for masks in options.masks:
        with tempfile.TemporaryDirectory(dir=options.folder) as work:
            whole = masks // AN_IMAGE * AN_IMAGE
            write(Path(work), whole)
            command = [sys.executable, __file__, "--only", str(whole), "--folder", work]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = dict(json.loads(done.stdout.splitlines()[-1]))
            peaks.append((whole, found["peak MB"]))
            print(f"{whole:>10,} masks  " + ", ".join(f"{name} {value:,.0f}" for name, value in found.items()))
    (few, low), (many, high) = peaks[0], peaks[-1]
    if many > few:
        each = (high - low) / (many - few) * AN_IMAGE
        images = PAPER // AN_IMAGE
        print(f"{each * 1e6:,.0f} bytes an image; {images:,} images, {PAPER:,} masks: "
              f"{low + each * (images - few / AN_IMAGE):,.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
