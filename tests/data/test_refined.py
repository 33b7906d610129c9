"""Figures of the evidence against loops over the rows and pixels; charts and the part of the report."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pandas as pd
import pytest

from sum.core.evidence import count_codes
from sum.data.lines import Axis, Line, line_chart, standalone
from sum.data.refined import (
    CURVES,
    FIGURES,
    MASK_SCHEMA,
    MASKS,
    PIXEL_SCHEMA,
    PIXELS,
    mask_figures,
    nested,
    pixel_figures,
    read_tables,
)
from sum.data.refined_pages import PICTURES, charts, evidence_files, page, tracked, write_charts
from sum.data.score_tables import TableWriter
from sum.storage import write_json

METHODS = {"refinement": 0.8, "confidence": 0.2, "none": 0.0}  # how much a method's codes say of errors


def tables(folder: Path, *, masks: int = 12) -> dict[str, np.ndarray]:
    """Write tables of made-up masks, two an image; returns the pixels behind them by mask and method."""
    rng = np.random.default_rng(0)
    pixels: dict[str, np.ndarray] = {}
    with TableWriter(folder / MASKS, MASK_SCHEMA) as rows, TableWriter(folder / PIXELS, PIXEL_SCHEMA) as counts:
        for number in range(masks):
            task = ("salient", "part")[number % 4 // 2]
            place = {
                "dataset": "a",
                "task": task,
                "image_id": f"a/{number // 2}",
                "mask_id": f"a/{number // 2}#{number}",
            }
            score = {"iou_sam": 0.5 + 0.04 * number, "iou_refined": 0.5 + 0.04 * number + rng.normal(0, 0.05)}
            rows.add([{**place, **score, "boundary_sam": score["iou_sam"] / 2, "boundary_refined": 0.4}])
            wrong = rng.random(400) < 0.1
            for kind, method, weight in [("uncertainty", m, w) for m, w in METHODS.items()] + [
                ("probability", "sam", 0.5)
            ]:
                noise = rng.random(400) * (weight > 0)
                codes = (255 * (weight * wrong + (1 - weight) * noise)).astype(np.uint8)
                found = count_codes(codes, ~wrong, np.ones(400, dtype=bool))
                about = {"region": "image", "kind": kind, "method": method}
                counts.add([{**place, **about, "wrong": found[:, 0].tolist(), "right": found[:, 1].tolist()}])
                pixels[f"{place['mask_id']} {method}"] = np.stack([codes, wrong])
    return pixels


def made(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    masks, pixels = read_tables(folder, reader="test")
    figures, curves = pixel_figures(masks, pixels, min_iou=0.7, resamples=50, seed=0)
    return masks, figures, curves


def test_figures_are_those_of_the_pixels_one_by_one(tmp_path: Path) -> None:
    behind = tables(tmp_path)
    masks, figures, _ = made(tmp_path)
    wanted = set(masks[(masks["iou_sam"] >= 0.7) & (masks["task"] == "part")]["mask_id"])
    assert 0 < len(wanted) < len(masks)
    for method in METHODS:
        codes, wrong = np.concatenate([behind[f"{name} {method}"] for name in sorted(wanted)], axis=1)
        row = figures[(figures["masks"] == "pairs") & (figures["task"] == "part") & (figures["method"] == method)].iloc[
            0
        ]
        assert row["pixels"] == codes.size
        assert row["error"] == pytest.approx(wrong.mean())
        sure = codes < 51  # 1 - 51 / 255 = 0.8
        assert row["certain_accuracy_0.8"] == pytest.approx(1 - wrong[sure].mean())
        if not sure.all():
            assert row["uncertain_accuracy_0.8"] == pytest.approx(1 - wrong[~sure].mean())
        else:
            assert np.isnan(row["uncertain_accuracy_0.8"])
        order = np.lexsort((np.random.default_rng(1).random(codes.size), codes))
        area = (wrong[order].cumsum() / np.arange(1, codes.size + 1)).mean()
        assert row["aurc"] == pytest.approx(area, abs=0.01)
        assert row["aurc_low"] <= row["aurc"] <= row["aurc_high"]


def test_methods_are_ranked_and_paired(tmp_path: Path) -> None:
    tables(tmp_path)
    _, figures, _ = made(tmp_path)
    rows = figures[(figures["masks"] == "all") & (figures["task"] == "all")].set_index("method")
    assert rows.loc["refinement", "aurc"] < rows.loc["confidence", "aurc"] < rows.loc["none", "aurc"]
    assert rows.loc["none", "aurc"] == pytest.approx(rows.loc["none", "error"])
    assert rows.loc["confidence", "aurc_more"] == pytest.approx(
        rows.loc["confidence", "aurc"] - rows.loc["refinement", "aurc"]
    )
    assert rows.loc["confidence", "aurc_more_low"] > 0
    assert np.isnan(rows.loc["sam", "aurc"])  # a probability is no doubt
    told = nested(figures)["all"]["image"]["all"]
    assert set(told) == {*METHODS, "probability of sam"}
    json.dumps(told, allow_nan=False)


def test_mask_figures_are_means_over_masks(tmp_path: Path) -> None:
    tables(tmp_path)
    masks, _ = read_tables(tmp_path, reader="test")
    found = mask_figures(masks, resamples=50, seed=0)
    assert list(found) == ["all", "salient", "part"]
    part = masks[masks["task"] == "part"]
    gains = [b - a for a, b in zip(part["iou_sam"], part["iou_refined"], strict=True)]
    assert found["part"]["masks"] == len(part)
    assert found["part"]["iou_gain"]["mean"] == pytest.approx(np.mean(gains), abs=1e-5)
    assert found["part"]["iou_worse_share"]["mean"] == pytest.approx(np.mean([gain < 0 for gain in gains]), abs=1e-5)
    assert found["part"]["iou_change"]["q50"] == pytest.approx(np.median(gains), abs=1e-5)
    assert found["part"]["iou_gain"]["low"] <= found["part"]["iou_gain"]["mean"] <= found["part"]["iou_gain"]["high"]


def test_charts_page_and_metrics(tmp_path: Path) -> None:
    tables(tmp_path)
    masks, figures, curves = made(tmp_path)
    assert page(tmp_path) is None
    assert tracked(tmp_path) == {}
    figures.to_csv(tmp_path / FIGURES, index=False)
    curves.to_csv(tmp_path / CURVES, index=False)
    found = charts(masks, figures, curves, min_iou=0.7)
    assert set(found) == {"risk-coverage-image.svg", "reliability-image.svg", "probability-image.svg", "change.svg"}
    write_charts(tmp_path, found)
    for name in found:
        assert ElementTree.parse(tmp_path / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    (tmp_path / PICTURES).mkdir()
    cv2.imwrite(str(tmp_path / PICTURES / "a.jpg"), np.zeros((8, 8, 3), np.uint8))
    entry = {"file": "a.jpg", "task": "part", "kind": "worse", "mask_id": "a/1#1", "iou": "SAM 80.0, refined 70.0"}
    write_json(tmp_path / f"{PICTURES}.json", [entry])
    shown = page(tmp_path)
    assert shown is not None
    assert len(shown["charts"]) == 4
    assert not any("http" in chart for chart in shown["charts"])
    assert [row["method"] for row in shown["rows"]] == ["confidence", "none", "refinement"] * 2
    assert {path.name for path in evidence_files(tmp_path)} >= {*found, FIGURES, CURVES}
    metrics = tracked(tmp_path)
    row = figures[(figures["masks"] == "pairs") & (figures["task"] == "all") & (figures["method"] == "refinement")]
    assert metrics["refiner/refinement/aurc"] == pytest.approx(row.iloc[0]["aurc"])


def test_lines_stand_where_their_numbers_are() -> None:
    """The box of the axes is 62..544 by 52..302 px: (0.5, 20) of 0..1 by 10..30 is its middle."""
    line = Line("a <b>", [0, 0.5, 2], [10, 20, 30], dots=True)
    svg = line_chart("t", "s", [line], across=Axis("x"), up=Axis("y", 10, 30))
    root = ElementTree.fromstring(standalone(svg))
    dots = [(float(d.get("cx", 0)), float(d.get("cy", 0))) for d in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert dots == [(62, 302), (303, 177), (544, 52)]  # what lies beyond is on the border
    assert "a <b>" in [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
