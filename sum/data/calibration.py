"""Does the IoU that a model predicts for its own mask come true? Bins, their chart, and ECE."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from sum.data.charts import COLOURS
from sum.data.lines import Axis, Line, line_chart

BINS = 10  # of width 0.1


def bins(rows: pd.DataFrame, *, output: str, number: int = 1) -> pd.DataFrame:
    """A row a bin of the predicted IoU: low, high, masks, predicted and reached (means; NaN in an empty bin).

    rows: of one game and model. Every mask weighs the same. A prediction is not bounded: those below 0 and above 1
    count as 0 and 1, as a reader would take them.
    """
    chosen = rows[(rows["output"] == output) & (rows["round"] == number)]
    stated = chosen["predicted_iou"].clip(0, 1).to_numpy(dtype=np.float64)
    reached = chosen["iou"].to_numpy(dtype=np.float64)
    edges = np.arange(BINS + 1) / BINS
    place = np.clip(np.searchsorted(edges, stated, side="right") - 1, 0, BINS - 1)
    masks = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights=values, minlength=BINS) / masks for values in (stated, reached)]
    table = {"low": edges[:-1], "high": edges[1:], "masks": masks, "predicted": means[0], "reached": means[1]}
    return pd.DataFrame(table)


def expected_error(table: pd.DataFrame) -> float:
    """ECE: distance of predicted and reached of each bin, averaged over masks, 0..1; NaN without a mask.

    table: as `bins` returns. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, with IoU for accuracy.
    """
    some = table[table["masks"] > 0]
    if some.empty:
        return float("nan")
    return float(np.average((some["predicted"] - some["reached"]).abs(), weights=some["masks"]))


def surplus(table: pd.DataFrame) -> float:
    """Mean of predicted less reached over all masks: above 0 the model thinks too well of itself."""
    some = table[table["masks"] > 0]
    return float(np.average(some["predicted"] - some["reached"], weights=some["masks"])) if len(some) else float("nan")


def chart(tables: Mapping[str, pd.DataFrame]) -> str:
    """SVG: reached over predicted, a line a model, its key with ECE. tables: of `bins`."""
    lines = []
    for number, (model, table) in enumerate(tables.items()):
        some = table[table["masks"] > 0]
        words = f"{model}: ECE {100 * expected_error(table):.1f} %"
        points, colour = (some["predicted"].tolist(), some["reached"].tolist()), COLOURS[number % len(COLOURS)]
        lines.append(Line(words, *points, dots=True, colour=colour))
    lines.append(Line("as predicted", [0, 1], [0, 1], dashed=True, colour="#aaaaaa"))
    return line_chart(
        "Predicted and reached IoU",
        "means of the masks of a bin; above the dashed line a model is too modest",
        lines,
        across=Axis("predicted IoU"),
        up=Axis("reached IoU"),
    )
