"""What refinement did to held-out masks: the tables that stage refine writes, and every figure as a group-by over them.

`masks.parquet` has a row a mask, `pixels.parquet` a row a mask, region and method with counts of pixels a code. `pairs`
are the masks that SAM's filters pass and that fit the truth, as those that the module learns from; `all` are those that
the filters pass, as pseudo-labels are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from sum.core import evidence
from sum.core.evidence import CUTS
from sum.core.metrics import bootstrap_interval, paired_interval
from sum.data.score_tables import REAL, TEXT, read_table
from sum.data.scores import task_names

MASKS, PIXELS, FIGURES, CURVES = "masks.parquet", "pixels.parquet", "evidence.csv", "curves.csv"
SAM, REFINED = ("iou_sam", "boundary_sam"), ("iou_refined", "boundary_refined")
_PLACE = dict.fromkeys(("dataset", "task", "image_id", "mask_id"), TEXT)
_COUNTS = pa.list_(pa.int32())  # 256: one a code
MASK_SCHEMA = pa.schema({**_PLACE, **dict.fromkeys((*SAM, *REFINED), REAL)})
PIXEL_SCHEMA = pa.schema(
    {**_PLACE, **dict.fromkeys(("region", "kind", "method"), TEXT), "wrong": _COUNTS, "right": _COUNTS}
)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the change of IoU


def read_tables(folder: Path, *, reader: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Masks and pixels of data/refiner. Errors as `read_table`."""
    masks = read_table(folder / MASKS, MASK_SCHEMA, reader=reader, maker="refine")
    return masks, read_table(folder / PIXELS, PIXEL_SCHEMA, reader=reader, maker="refine")


def mask_figures(masks: pd.DataFrame, *, resamples: int, seed: int) -> dict[str, Any]:
    """Figures of all masks and by task (Fig. 7, Fig. 9, Table 3 of the paper), 0..1; 95 % intervals over images.

    IoU and boundary IoU before and after, what was gained, share of masks made worse, quantiles of the change of IoU.
    """
    groups = {name: masks[masks["task"] == name] for name in task_names(masks["task"])}
    return {
        name: _of_group(part, resamples=resamples, seed=seed)
        for name, part in {"all": masks, **groups}.items()
        if len(part)
    }


def pixel_figures(
    masks: pd.DataFrame, pixels: pd.DataFrame, *, min_iou: float, resamples: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(figures, curves) of every method, by which masks, region and task; every pixel weighs the same.

    min_iou: SAM's least IoU of a pair. figures: a row a masks, region, task, kind and method: images, pixels, error
    (share of wrong pixels), accuracies at the cuts, aurc with the interval over images and its lower bound, aurc_more
    (how far it lies above that of `refinement`, paired over images), ece; a probability has the last only. curves:
    points of the risk-coverage and the reliability curves.
    """
    good = set(masks.loc[masks["iou_sam"] >= min_iou, "mask_id"])
    figures, curves = [], []
    for which, chosen in (("pairs", pixels[pixels["mask_id"].isin(good)]), ("all", pixels)):
        for region, part in chosen.groupby("region", sort=True):
            tasks = task_names(part["task"])
            for task in ["all", *(tasks if len(tasks) > 1 else [])]:
                group = part if task == "all" else part[part["task"] == task]
                about = {"masks": which, "region": region, "task": task}
                rows, points = _of_methods(group, resamples=resamples, seed=seed)
                figures += [{**about, **row} for row in rows]
                curves += [{**about, **point} for point in points]
    return pd.DataFrame(figures), pd.DataFrame(curves)


def nested(figures: pd.DataFrame) -> dict[str, Any]:
    """The figures as masks -> region -> task -> method -> name -> value, rounded; NaN is left out."""
    keys = ["masks", "region", "task", "kind", "method"]
    found: dict[str, Any] = {}
    for row in figures.to_dict("records"):
        place = found
        for key in keys[:3]:
            place = place.setdefault(str(row[key]), {})
        name = str(row["method"]) if row["kind"] == "uncertainty" else f"probability of {row['method']}"
        values = {str(key): value for key, value in row.items() if key not in keys and not pd.isna(value)}
        place[name] = {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}
    return found


def counts_by_image(part: pd.DataFrame) -> NDArray[np.int64]:
    """`[K, 256, 2]` counts of the K images of these rows, in the order of their names."""
    found: dict[str, NDArray[np.int64]] = {}
    for image, wrong, right in zip(part["image_id"], part["wrong"], part["right"], strict=True):
        page = np.stack([np.asarray(wrong, np.int64), np.asarray(right, np.int64)], 1)
        found[str(image)] = found[str(image)] + page if image in found else page
    return np.stack([found[name] for name in sorted(found)])


def _of_group(part: pd.DataFrame, *, resamples: int, seed: int) -> dict[str, Any]:
    options = {"resamples": resamples, "seed": seed}
    found: dict[str, Any] = {"masks": len(part), "images": int(part["image_id"].nunique())}
    for before, after in zip(SAM, REFINED, strict=True):
        name, images = before.removesuffix("_sam"), part["image_id"]
        found[before] = _spread(bootstrap_interval(part[before], images, **options))
        found[after] = _spread(bootstrap_interval(part[after], images, **options))
        found[f"{name}_gain"] = _spread(paired_interval(part[after], part[before], images, **options))
        worse = (part[after] < part[before]).astype(float)
        found[f"{name}_worse_share"] = _spread(bootstrap_interval(worse, images, **options))
    change = np.quantile(part["iou_refined"] - part["iou_sam"], QUANTILES)
    found["iou_change"] = {f"q{100 * q:02.0f}": round(v, 5) for q, v in zip(QUANTILES, change.tolist(), strict=True)}
    return found


def _of_methods(group: pd.DataFrame, *, resamples: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    figures, points = [], []
    paired: dict[str, NDArray[np.float64]] = {}  # areas of the same draws of images
    for (kind, method), rows in group.groupby(["kind", "method"], sort=True):
        pages = counts_by_image(rows)
        counts = pages.sum(0)
        about = {"kind": kind, "method": method}
        size = {"images": len(pages), "pixels": int(counts.sum())}
        certainty = kind == "uncertainty"
        figure: dict[str, Any] = {**about, **size, "ece": evidence.ece(counts, certainty=certainty)}
        curve = evidence.reliability(counts, certainty=certainty)
        points += _points(about, "reliability", curve.stated, curve.found)
        if certainty:
            paired[str(method)] = evidence.resampled(pages, evidence.aurc, resamples=resamples, seed=seed)
            figure |= _doubt(counts, paired[str(method)])
            points += _points(about, "risk-coverage", *evidence.risk_coverage(counts))
        figures.append(figure)
    known = {row["method"]: row for row in figures if row["kind"] == "uncertainty"}
    for method, row in known.items():
        if "refinement" in known and method != "refinement":
            row["aurc_more"] = row["aurc"] - known["refinement"]["aurc"]
            row["aurc_more_low"], row["aurc_more_high"] = evidence.interval(paired[method] - paired["refinement"])
    return figures, points


def _doubt(counts: NDArray[np.int64], areas: NDArray[np.float64]) -> dict[str, float]:
    """The figures of an uncertainty: those that a probability has not."""
    low, high = evidence.interval(areas)
    found = {
        "error": evidence.error(counts),
        "aurc": evidence.aurc(counts),
        "aurc_low": low,
        "aurc_high": high,
        "aurc_best": evidence.best_aurc(counts),
    }
    for cut in CUTS:
        split = evidence.split_at(counts, cut)
        found |= {
            f"certain_share_{cut}": split.certain_share,
            f"certain_accuracy_{cut}": split.certain_accuracy,
            f"uncertain_accuracy_{cut}": split.uncertain_accuracy,
        }
    return found


def _points(about: Mapping[str, Any], curve: str, x: NDArray[Any], y: NDArray[Any]) -> list[dict[str, Any]]:
    return [{**about, "curve": curve, "x": a, "y": b} for a, b in zip(x.tolist(), y.tolist(), strict=True)]


def _spread(values: tuple[float, float, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in zip(("mean", "low", "high"), values, strict=True)}
