"""Do the uncertainty maps glow where people disagree? python benchmarks/annotators.py --folder DATA/entity

Run it in a project after `python -m sum refine`: it asks data/refiner about the test images of which
FOLDER/bsds_annotators has label maps of several people (NAME_aK.png, 8-bit, of the photo's size). For every mask that
SAM's own filters pass, the pixels within TOLERANCE px of SAM's outline (at the photo's size) have
    u       the uncertainty of the method,
    denial  the share of annotators who drew no boundary within TOLERANCE px.
Printed: Pearson's and Spearman's correlation over these pixels, a value an image, as the mean over images with its
95 % interval (bootstrap over images); and over the masks, by their means of u and denial, with the chance of such a
Spearman when masks are shuffled within their image. Without the folder there is nothing to do, and that is said.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

from sum.config import load_config
from sum.core.agreement import boundary, denial, near, pearson, permutation_p, spearman
from sum.core.metrics import bootstrap_interval
from sum.core.uncertainty import OTHERS
from sum.data.records import ImageRecord, Manifest, read_manifest
from sum.models.checkpoint import fingerprint, load_segmenter
from sum.models.refiner import load_other, load_refiner
from sum.refinements import Trial, images_of, trials
from sum.stages.common import base_weights

MANIFEST, REFINER = Path("data/manifest"), Path("data/refiner")
NAME = re.compile(r"(?P<image>.+)_a(?P<number>\d+)\.png")


def annotations(folder: Path) -> dict[str, list[Path]]:
    """Name of the photo -> label maps of its annotators."""
    found = defaultdict(list)
    for path in sorted(folder.glob("*.png")):
        match = NAME.fullmatch(path.name)
        if match:
            found[match["image"]].append(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def pixels(
    trial: Trial, record: ImageRecord, denied: np.ndarray, *, tolerance: float
) -> Iterator[tuple[str, np.ndarray]]:
    """(method, `[2, N]` u and denial) of the pixels near SAM's outline, at the photo's size."""
    inner = np.s_[: int(trial.valid.any(1).sum()), : int(trial.valid.any(0).sum())]
    size = (record.width, record.height)

    def enlarge(plane: np.ndarray) -> np.ndarray:
        return cv2.resize(plane[inner].astype(np.float32), size, interpolation=cv2.INTER_LINEAR)

    band = near(boundary(enlarge(trial.probability["sam"]) > 127.5), tolerance)
    for method, codes in trial.uncertainty.items():
        if method != "none":
            yield method, np.stack([enlarge(codes)[band] / 255, denied[band]])


def measure(found: Iterable[Trial], manifest: Manifest, maps: dict[str, list[Path]], *, tolerance: float) -> tuple:
    """(rows of masks, rows of images)."""
    records = {image.image_id: image for image in manifest.images}
    masks, pool = [], defaultdict(list)
    known: dict[str, np.ndarray] = {}
    for trial in found:
        name = trial.mask.image_id
        if name not in known:
            labels = [np.asarray(Image.open(path)) for path in maps[Path(name).name]]
            known = {name: denial(labels, tolerance=tolerance)}
        for method, values in pixels(trial, records[name], known[name], tolerance=tolerance):
            if values.size:
                pool[name, method].append(values)
                u, denied = values.mean(1)
                masks.append({"image": name, "method": method, "u": u, "denial": denied})
    images = []
    for (name, method), parts in pool.items():
        both = np.concatenate(parts, axis=1)
        images.append({"image": name, "method": method, "pearson": pearson(*both), "spearman": spearman(*both)})
    return pd.DataFrame(masks), pd.DataFrame(images)


def summary(masks: pd.DataFrame, images: pd.DataFrame) -> dict[str, dict[str, object]]:
    """The printed figures by method."""
    told = {}
    for method, part in masks.groupby("method"):
        each = images[images["method"] == method].dropna()
        spread = {
            name: [round(v, 3) for v in bootstrap_interval(each[name], each["image"])]
            for name in ("pearson", "spearman")
        }
        told[str(method)] = {
            "images": len(each),
            "masks": len(part),
            "pixels, mean of images [low, high]": spread,
            "masks, pearson": round(pearson(part["u"], part["denial"]), 3),
            "masks, spearman": round(spearman(part["u"], part["denial"]), 3),
            "masks, p within images": round(permutation_p(part["u"], part["denial"], part["image"]), 4),
        }
    return told


def main() -> None:
    """Print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="holds bsds_annotators/NAME_aK.png")
    parser.add_argument("--tolerance", type=float, default=2.0, help="px at the photo's size")
    options = parser.parse_args()
    maps = annotations(options.folder / "bsds_annotators")
    if not maps:
        print(
            f"{options.folder / 'bsds_annotators'} has no label maps NAME_aK.png of several annotators: nothing to do"
        )
        return
    config = load_config()
    manifest = read_manifest(MANIFEST, reader="annotators").select(split="test")
    manifest = images_of(manifest, {i.image_id for i in manifest.images if Path(i.image_id).name in maps})
    weights = base_weights(config)
    base, origin = load_segmenter(weights, backbone=config.model.backbone), fingerprint(weights)
    refiner = load_refiner(REFINER / "model.safetensors", base=base, origin=origin)
    there = {method: name for method, name in OTHERS.items() if (REFINER / f"{name}.safetensors").is_file()}
    others = {name: load_other(REFINER, method=method, base=base, origin=origin) for method, name in there.items()}
    filters = (config.refine.pred_iou_thresh, config.refine.stability_thresh)
    found = trials(refiner, base, manifest, others=others, filters=filters, seed=config.seed)
    told = summary(*measure(found, manifest, maps, tolerance=options.tolerance))
    print(json.dumps({"photos": len(manifest.images), "tolerance": options.tolerance, **told}, indent=2))


if __name__ == "__main__":
    main()
