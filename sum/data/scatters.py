"""Base against tuned, a dot a mask, drawn as SVG: every mask is in it, and it stays small however many there are."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd

from sum.data.scores import task_names

SIDE = 240  # px of a panel's axes
CELLS = 100  # of each axis: IoU to the last per cent
LEFT, TOP, BELOW = 40, 40, 38  # px around the axes
DOT = 3  # px of a dot: a little more than a cell, so that a lonely mask is seen
FLOORS = ((1, 0.6), (3, 0.8), (10, 1.0))  # masks of a cell from which on it is that opaque
SAME, BETTER, WORSE = "#777777", "#009e73", "#d55e00"  # Okabe and Ito


def panels(iou: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(task, model, SVG element) for every task and tuned model.

    iou: a row a mask, columns `task`, then one a model, the base first; values 0..1.
    """
    base, *tuned = [name for name in iou.columns if name != "task"]
    return [
        (task, model, _panel(iou.loc[iou["task"] == task, [base, model]], task=task, model=model))
        for task in task_names(iou["task"])
        for model in tuned
    ]


def cells(values: pd.DataFrame) -> pd.DataFrame:
    """Masks a cell: columns x, y (whole per cent, 0..CELLS - 1; 1.0 counts to the last), masks. values: two columns."""
    place = np.minimum((values.to_numpy(dtype=np.float64) * CELLS + 1e-9).astype(int), CELLS - 1)
    found = pd.DataFrame(place, columns=["x", "y"]).value_counts(sort=False)
    return found.rename("masks").reset_index()


def _panel(values: pd.DataFrame, *, task: str, model: str) -> str:
    found = cells(values)
    base, tuned = values.iloc[:, 0], values.iloc[:, 1]
    size = SIDE / CELLS
    parts = [_axes(str(values.columns[0]), model)]
    for colour, part in (
        (SAME, found[found["x"] == found["y"]]),
        (BETTER, found[found["y"] > found["x"]]),
        (WORSE, found[found["y"] < found["x"]]),
    ):
        tops = [*(floor for floor, _ in FLOORS[1:]), np.inf]
        for (floor, opaque), top in zip(FLOORS, tops, strict=True):
            level = part[(part["masks"] >= floor) & (part["masks"] < top)]
            parts.append(_dots(level, size, colour=colour, opaque=opaque))
    better, worse = (np.mean(side) if len(values) else 0.0 for side in (tuned > base, tuned < base))
    words = f"{len(values):,} masks: {better:.0%} better, {worse:.0%} worse"
    head = f'<text x="0" y="14" font-size="14" font-weight="600">{html.escape(f"{task}: {model}")}</text>'
    head += f'<text x="0" y="30" fill="#555">{html.escape(words)}</text>'
    width, height = LEFT + SIDE + 10, TOP + SIDE + BELOW
    style = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-size="12"'
    label = html.escape(f"{task}, {model}: {words}", quote=True)
    font = 'font-family="system-ui, Liberation Sans, Arial, sans-serif"'
    return f'<svg role="img" aria-label="{label}" {style} {font}>{head}{"".join(parts)}</svg>'


def _dots(part: pd.DataFrame, size: float, *, colour: str, opaque: float) -> str:
    if part.empty:
        return ""
    corners = (LEFT - DOT / 2, TOP + SIDE - DOT / 2)
    places = [
        f"M{corners[0] + (x + 0.5) * size:.1f} {corners[1] - (y + 0.5) * size:.1f}h{DOT}v{DOT}h-{DOT}z"
        for x, y in zip(part["x"], part["y"], strict=True)
    ]
    return f'<path fill="{colour}" fill-opacity="{opaque}" d="{"".join(places)}"/>'


def _axes(base: str, model: str) -> str:
    right, bottom = LEFT + SIDE, TOP + SIDE
    parts = [
        f'<path d="M{LEFT} {TOP}h{SIDE}v{SIDE}h-{SIDE}z" fill="none" stroke="#bbb"/>',
        f'<path d="M{LEFT} {bottom}L{right} {TOP}" stroke="#888" stroke-dasharray="5 4"/>',
    ]
    ticks: Sequence[int] = (0, 50, 100)
    for tick in ticks:
        x, y = LEFT + SIDE * tick / 100, bottom - SIDE * tick / 100
        parts.append(f'<text x="{x:.0f}" y="{bottom + 15}" text-anchor="middle">{tick}</text>')
        parts.append(f'<text x="{LEFT - 5}" y="{y + 4:.0f}" text-anchor="end">{tick}</text>')
    middle = TOP + SIDE / 2
    across, up = (f"IoU of {html.escape(name)}, %" for name in (base, model))
    turned = f'transform="rotate(-90 12 {middle:.0f})" text-anchor="middle"'
    parts.append(f'<text x="{LEFT + SIDE / 2:.0f}" y="{bottom + 31}" text-anchor="middle">{across}</text>')
    parts.append(f'<text x="12" y="{middle:.0f}" {turned}>{up}</text>')
    return "".join(parts)
