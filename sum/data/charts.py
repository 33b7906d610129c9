"""Curves over the rounds, drawn with matplotlib into a PNG. No window, no global state."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pandas as pd

from sum.data.scores import METRICS, task_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (
    "#555555",
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#d55e00",
    "#56b4e9",
)  # Okabe and Ito: safe for colour-blind readers
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":")  # when colours and markers are used up
LEGEND = 7  # names beside each other above the charts


def curves(table: pd.DataFrame, *, unit: str = "points", of: str = "") -> bytes:
    """PNG of every metric (rows) over the rounds for every task and all (columns), a line a model with its 95 % band.

    table: a `comparison_table` of all rounds; unit: what a round adds, for the axis; of: what stands before the
    metric's name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [*task_names(table.loc[table["scope"] == "task", "name"]), "all"]
    models = list(dict.fromkeys(table["model"]))
    width = 3.1 * len(names)
    figure = Figure(figsize=(width, 5.6))
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(METRICS), len(names), sharex=True, sharey="row", squeeze=False)
    chosen = table[table["scope"].isin(["task", "overall"])]
    for row, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for place, name in zip(row, names, strict=True):
            part = chosen[(chosen["name"] == name) & (chosen["metric"] == metric)]
            for number, model in enumerate(models):
                _line(place, part[part["model"] == model], model=model, number=number)
            place.grid(alpha=0.3)
            place.set_xticks(sorted(set(part["round"])))
            place.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"{of}{label} (%)")
    for place, name in zip(axes[0], names, strict=True):
        place.set_title(name)
    for place in axes[-1]:
        place.set_xlabel(unit)
    top = 0.87 - 0.04 * ((len(models) - 1) // LEGEND)  # each further line of names takes its place
    figure.subplots_adjust(left=0.6 / width, right=1 - 0.1 / width, top=top, bottom=0.09, wspace=0.06, hspace=0.08)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=min(len(models), LEGEND), frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _line(place: Axes, part: pd.DataFrame, *, model: str, number: int) -> None:
    part = part.sort_values("round")
    style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)]}
    shape: dict[str, Any] = {"marker": MARKERS[number % len(MARKERS)], "markersize": 4}
    dashes = DASHES[number // len(COLOURS) % len(DASHES)]
    place.plot(part["round"], 100 * part["mean"], label=model, linestyle=dashes, **shape, **style)
    place.fill_between(part["round"], 100 * part["low"], 100 * part["high"], alpha=0.15, linewidth=0, **style)
