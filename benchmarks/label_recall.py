"""How much of what people annotated do automatic masks find? What they miss, pseudo-labels cannot protect.

    python benchmarks/label_recall.py [PROJECT] [--split train] [--images 60] [--set pseudo_label.pred_iou_thresh=0.5]

PROJECT: a folder after stage ingest; its params.yaml says base weights and thresholds. Of so many images of each data
set, evenly spread, all human masks are compared with the automatic masks of that image: the share of masks found with
IoU of at least 0.5 and 0.7, a row a task, with a 95 % interval over images.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from sum.config import load_config
from sum.core.metrics import bootstrap_interval, iou
from sum.data.frames import load_photo
from sum.data.records import ImageRecord, Manifest, decode_mask, read_manifest
from sum.models.checkpoint import load_segmenter
from sum.models.generator import generate
from sum.models.sieve import GeneratorSettings
from sum.progress import track

FOUND = (0.5, 0.7)  # IoU


def chosen(manifest: Manifest, *, count: int) -> list[ImageRecord]:
    """So many images of each data set with human masks, evenly spread over it."""
    masks = manifest.masks_of()
    named = pd.Series([image for image in manifest.images if masks[image.image_id]], dtype=object)
    groups = named.groupby([image.dataset for image in named])
    return [
        image for _, group in groups for image in group.iloc[np.linspace(0, len(group) - 1, count).astype(int)].unique()
    ]


def rows(config_words: list[str], *, split: str, count: int) -> Iterator[dict[str, object]]:
    """Of every human mask: its task, its image, and the best IoU that an automatic mask has with it."""
    config = load_config(config_words)
    manifest = read_manifest(Path("data/manifest"), reader="label_recall").select(split=split)
    model = load_segmenter(Path(config.model.checkpoint), backbone=config.model.backbone).eval()
    settings = GeneratorSettings(**{f.name: getattr(config.pseudo_label, f.name) for f in fields(GeneratorSettings)})
    humans = manifest.masks_of()
    images = chosen(manifest, count=count)
    for image in track(images, title="label_recall", unit="images", total=len(images)):
        size = {"height": image.height, "width": image.width}
        found = [decode_mask(mask.rle, **size) for mask in generate(model, load_photo(image), settings=settings)]
        for mask in humans[image.image_id]:
            truth = decode_mask(mask.rle, **size)
            best = max((iou(one, truth) for one in found), default=0.0)
            yield {"task": image.task, "image": image.image_id, "best": best, "masks": len(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, nargs="?", default=Path())
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--set", nargs="+", default=[], dest="settings", metavar="KEY=VALUE")
    options = parser.parse_args()
    os.chdir(options.project)
    table = pd.DataFrame(rows(options.settings, split=options.split, count=options.images))
    shown = Table("task", "images", "human masks", "automatic masks an image", *(f"found, IoU >= {x}" for x in FOUND))
    for task, group in table.groupby("task"):
        shares = [bootstrap_interval(group["best"] >= at, group["image"]) for at in FOUND]
        each = group.groupby("image")["masks"].first().median()
        said = [f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})" for mean, low, high in shares]
        shown.add_row(str(task), str(group["image"].nunique()), str(len(group)), f"{each:.0f} (median)", *said)
    Console(width=140).print(shown)


if __name__ == "__main__":
    main()
