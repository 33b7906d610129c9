"""The evidence on refinement as charts and as a part of the report: plots of curves, the table, pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sum.data.lines import Axis, Line, line_chart, standalone
from sum.data.overview import histograms
from sum.data.refined import CURVES, FIGURES
from sum.data.scores import task_names

REGIONS = {"image": "all pixels", "box": "pixels in the box around mask and truth"}
PICTURES = "pictures"  # the folder of them; pictures.json beside it says what they show
NUMBERS = {  # column of FIGURES -> heading of the report's table, whether it is per cent
    "certain_share_0.6": ("share c > 0.6", True),
    "certain_accuracy_0.6": ("right where c > 0.6", True),
    "uncertain_accuracy_0.6": ("right elsewhere", True),
    "certain_share_0.8": ("share c > 0.8", True),
    "certain_accuracy_0.8": ("right where c > 0.8", True),
    "uncertain_accuracy_0.8": ("right elsewhere", True),
    "aurc": ("AURC x 1000", False),
    "ece": ("ECE", True),
}
STEPS = np.linspace(-0.2, 0.2, 42)  # of the change of IoU; 41 bins, the middle one around 0
STRETCH = 1.05  # of the risk axis above the highest risk


def charts(masks: pd.DataFrame, figures: pd.DataFrame, curves: pd.DataFrame, *, min_iou: float) -> dict[str, str]:
    """File name -> SVG element: risk-coverage and reliability by region, reliability of probabilities, change of IoU.

    masks, figures and curves: as sum.data.refined makes them; of the pairs (SAM's IoU at least `min_iou`), all tasks.
    """
    found = {}
    pairs = curves[(curves["masks"] == "pairs") & (curves["task"] == "all")]
    whole = figures[(figures["masks"] == "pairs") & (figures["task"] == "all")]
    for region, words in REGIONS.items():
        part, row = pairs[pairs["region"] == region], whole[whole["region"] == region]
        doubt = part[part["kind"] == "uncertainty"]
        found[f"risk-coverage-{region}.svg"] = _risk(doubt, row[row["kind"] == "uncertainty"], words=words)
        found[f"reliability-{region}.svg"] = _reliability(
            doubt, f"Is certainty the share of right pixels? {words}", across="certainty c", up="share right"
        )
        chance = part[part["kind"] == "probability"]
        found[f"probability-{region}.svg"] = _reliability(
            chance, f"Is the probability the share of true pixels? {words}", across="probability", up="share true"
        )
    good = masks[masks["iou_sam"] >= min_iou]
    if len(good):
        found["change.svg"] = _change(good)
    return {name: svg for name, svg in found.items() if svg}


def write_charts(folder: Path, found: dict[str, str]) -> None:
    """Each chart as a file of its own."""
    for name, svg in found.items():
        (folder / name).write_text(standalone(svg), encoding="utf-8")


def evidence_files(folder: Path) -> list[Path]:
    """What of data/refiner goes to MLflow: figures and charts."""
    return sorted(path for pattern in ("*.svg", "*.csv", "*.json") for path in folder.glob(pattern))


def tracked(folder: Path) -> dict[str, float]:
    """Metrics of the refinement module for MLflow, by `refiner/METHOD/FIGURE`; none before refine wrote them."""
    path = folder / FIGURES
    if not path.is_file():
        return {}
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    chosen = table[
        (table["masks"] == "pairs") & (table["region"] == "image") & (table["task"] == "all")
        & (table["kind"] == "uncertainty")
    ]  # fmt: skip
    return {
        f"refiner/{row['method']}/{name}": float(row[name])
        for row in chosen.to_dict("records")
        for name in NUMBERS
        if not pd.isna(row[name])
    }


def page(folder: Path) -> dict[str, Any] | None:
    """What the report shows of data/refiner; None where there is no evidence.

    headings and rows of the table, charts as SVG elements, pictures with their titles.
    """
    if not (folder / FIGURES).is_file() or not (folder / CURVES).is_file():
        return None
    table = pd.read_csv(folder / FIGURES, keep_default_na=False, na_values=[""])
    chosen = table[(table["kind"] == "uncertainty") & (table["task"] == "all")]
    about = json.loads((folder / f"{PICTURES}.json").read_text(encoding="utf-8"))
    return {
        "headings": [words for words, _ in NUMBERS.values()],
        "rows": [_cells(row) for row in chosen.to_dict("records")],
        "charts": [_inline(path) for path in sorted(folder.glob("*.svg"))],
        "pictures": [
            {**entry, "jpeg": base64.b64encode((folder / PICTURES / entry["file"]).read_bytes()).decode()}
            for entry in about
        ],
    }


def _cells(row: dict[Any, Any]) -> dict[str, Any]:
    values = []
    for name, (_, per_cent) in NUMBERS.items():
        value = row[name]
        values.append("–" if pd.isna(value) else f"{100 * value:.2f} %" if per_cent else f"{1000 * value:.3f}")
    return {"masks": row["masks"], "region": REGIONS[str(row["region"])], "method": row["method"], "cells": values}


def _inline(path: Path) -> str:
    """A file of `standalone` as an element again: a page needs no name space, and no address."""
    return path.read_text(encoding="utf-8").replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)


def _risk(points: pd.DataFrame, figures: pd.DataFrame, *, words: str) -> str:
    curve = points[points["curve"] == "risk-coverage"]
    if curve.empty:
        return ""
    area = dict(zip(figures["method"], figures["aurc"], strict=True))
    lines = [
        Line(f"{name}: AURC {1000 * area[name]:.3f} / 1000", part["x"].tolist(), (100 * part["y"]).tolist())
        for name, part in curve.groupby("method", sort=True)
        if name != "none"
    ]
    share = 100 * float(figures["error"].iloc[0])
    lines.append(Line(f"chance, and none: {10 * share:.3f} / 1000", [0, 1], [share, share], dashed=True))
    top = STRETCH * max(share, 100 * float(curve.loc[curve["method"] != "none", "y"].max()))
    return line_chart(
        "Risk by coverage",
        f"wrong pixels among the most certain ones; {words}",
        lines,
        across=Axis("share of pixels kept, the most certain first"),
        up=Axis("wrong, %", 0.0, top or 1.0),
    )


def _reliability(points: pd.DataFrame, subtitle: str, *, across: str, up: str) -> str:
    curve = points[points["curve"] == "reliability"]
    if curve.empty:
        return ""
    lines = [
        Line(str(name), part["x"].tolist(), part["y"].tolist(), dots=True)
        for name, part in curve.groupby("method", sort=True)
        if name != "none"
    ]
    lines.append(Line("calibrated", [0, 1], [0, 1], dashed=True))
    return line_chart("Reliability", subtitle, lines, across=Axis(across), up=Axis(up))


def _change(masks: pd.DataFrame) -> str:
    change = (masks["iou_refined"] - masks["iou_sam"]).clip(STEPS[0], STEPS[-1])
    counts = {task: np.histogram(change[masks["task"] == task], STEPS)[0] for task in task_names(masks["task"])}
    bins = len(STEPS) - 1
    ticks: Sequence[tuple[float, str]] = [(bins * k / 4, f"{-20 + 10 * k:+d}") for k in range(5)]
    worse = float((masks["iou_refined"] < masks["iou_sam"]).mean())
    subtitle = f"points of IoU, refined less SAM's; {worse:.0%} of {len(masks)} masks got worse"
    return histograms("What refinement changed", subtitle, counts, ticks)
