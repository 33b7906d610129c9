"""What the masks of a manifest look like as a whole, drawn as SVG: how many of which task, class and size."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

COLOURS = {"salient": "#0072b2", "entity": "#e69f00", "part": "#009e73", "unspecified": "#777777"}  # Okabe and Ito
OTHER = "#cc79a7"
WIDTH, LINE, TOP = 560, 20, 46  # px: of a figure, of a bar with its gap, of title and subtitle
CLASSES = 20  # shown by name
DECADES = (-5, 0)  # of a mask's share of its image: 10 ** -5 .. 1
BINS = 30
COUNTS = (1, 2, 3, 5, 9, 17, 33, 65, 129)  # lower ends of the bins of masks an image


def overview(images: pd.DataFrame, masks: pd.DataFrame) -> list[str]:
    """SVG elements; images: columns image_id, dataset, split; masks: dataset, task, split, category, area_share,
    image_id. None without a mask.
    """
    if not len(masks):
        return []
    return [_sets(images, masks), _classes(masks), _sizes(masks), _crowds(masks)]


def bars(title: str, subtitle: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars; rows: name, value, colour."""
    left, right = 190, 90
    top = max((value for _, value, _ in rows), default=0) or 1
    parts = []
    for number, (name, value, colour) in enumerate(rows):
        y, length = TOP + number * LINE, (WIDTH - left - right) * value / top
        short = name if len(name) <= 26 else f"{name[:25]}…"
        parts.append(
            text(left - 8, y + 13, short, "end")
            + f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="{LINE - 5}" fill="{colour}"/>'
            + text(left + length + 6, y + 13, f"{value:,.0f}", "start")
        )
    return figure(title, subtitle, parts, height=TOP + len(rows) * LINE + 8)


def histograms(title: str, subtitle: str, counts: Mapping[str, np.ndarray], ticks: Sequence[tuple[float, str]]) -> str:
    """A row of columns a name of `counts` (`[K]` each); ticks: place in 0..K and text, below the last row.

    Every row has a scale of its own; its highest column is labelled.
    """
    left, right, high, gap = 86, 24, 74, 22
    parts, y = [], TOP + 14
    for name, values in counts.items():
        step = (WIDTH - left - right) / len(values)
        top = max(int(values.max()), 1)
        colour = COLOURS.get(name, OTHER)
        columns = [
            f'<rect x="{left + k * step:.1f}" y="{y + high - high * value / top:.1f}" width="{step - 1:.1f}" '
            f'height="{high * value / top:.1f}" fill="{colour}"/>'
            for k, value in enumerate(values.tolist())
            if value
        ]
        peak = left + (int(values.argmax()) + 0.5) * step
        axis = f'<path d="M{left} {y + high + 0.5}H{WIDTH - right}" stroke="#888"/>'
        names = text(left - 8, y + high / 2, name, "end") + text(
            left - 8, y + high / 2 + 15, f"{values.sum():,}", "end"
        )
        parts += [*columns, axis, names, text(peak, y - 4, f"{top:,}", "middle")]
        y += high + gap
    step = (WIDTH - left - right) / len(next(iter(counts.values())))
    parts += [text(left + place * step, y - gap + 16, words, "middle") for place, words in ticks]
    return figure(title, subtitle, parts, height=y + 6)


def _sets(images: pd.DataFrame, masks: pd.DataFrame) -> str:
    counts = masks["dataset"].astype("str").value_counts()
    known = images.drop_duplicates("dataset").sort_values(["split", "dataset"])
    rows = [
        (f"{name} ({split})", float(counts.get(name, 0)), COLOURS.get(task, OTHER))
        for name, split, task in zip(known["dataset"], known["split"], known["task"], strict=True)
        if counts.get(name, 0)
    ]
    return bars("Masks by data set", "one colour a task, here and below: those of the sizes", rows)


def _classes(masks: pd.DataFrame) -> str:
    named = masks[masks["category"] != ""]
    if not len(named):
        return bars("Class balance", "no mask has a class", [])
    table = named.groupby(["task", "category"], observed=True).size().rename("count").reset_index()
    table = table.sort_values(["count", "category"], ascending=[False, True], kind="stable")
    counts = table["count"]
    first = table.head(CLASSES)
    rows = [
        (str(name), float(count), COLOURS.get(str(task), OTHER))
        for task, name, count in zip(first["task"], first["category"], first["count"], strict=True)
    ]
    rest = counts.iloc[CLASSES:]
    if len(rest):
        rows.append((f"{len(rest)} other classes", float(rest.sum()), "#bbbbbb"))
    ratio = counts.iloc[0] / counts.iloc[-1]
    without = f"{len(masks) - len(named):,} masks without one"
    subtitle = f"{len(counts)} classes, {without}; the most common has {ratio:,.0f} x the rarest"
    return bars("Class balance", subtitle, rows)


def _sizes(masks: pd.DataFrame) -> str:
    low, high = DECADES
    edges = np.linspace(low, high, BINS + 1)
    counts = {}
    for task in _tasks(masks):
        share = masks.loc[masks["task"] == task, "area_share"].to_numpy(dtype=float)
        share = share[np.isfinite(share) & (share > 0)]
        counts[task] = np.histogram(np.clip(np.log10(share), low, high), edges)[0]
    ticks = [(BINS * k / (high - low), f"{10 ** (low + k + 2):g} %") for k in range(high - low + 1)]
    return histograms(
        "Size of masks", "share of the image, on a logarithmic axis; masks a task below its name", counts, ticks
    )


def _crowds(masks: pd.DataFrame) -> str:
    counts = {}
    for task in _tasks(masks):
        crowd = masks.loc[masks["task"] == task, "image_id"].value_counts().to_numpy()
        counts[task] = np.histogram(crowd, [*COUNTS, np.inf])[0]
    lows = zip(COUNTS, [*COUNTS[1:], None], strict=True)
    names = [f"{a}+" if b is None else f"{a}" if b == a + 1 else f"{a}–{b - 1}" for a, b in lows]
    ticks = [(k + 0.5, name) for k, name in enumerate(names)]
    return histograms("Masks in an image", "number of images; images a task below its name", counts, ticks)


def _tasks(masks: pd.DataFrame) -> list[str]:
    """In the order of COLOURS, then others."""
    found = {str(task) for task in masks["task"].unique()}
    return [*(task for task in COLOURS if task in found), *sorted(found - set(COLOURS))]


def figure(title: str, subtitle: str, parts: Sequence[str], *, height: float) -> str:
    """An SVG element with a title; parts: what it holds; height: px."""
    head = f'<text x="0" y="17" font-size="16" font-weight="600">{html.escape(title)}</text>'
    below = f'<text x="0" y="35" fill="#555">{html.escape(subtitle)}</text>'
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    font = 'font-family="system-ui, Liberation Sans, Arial, sans-serif" font-size="12"'
    opening = f'<svg role="img" aria-label="{html.escape(title)}" {size} {font}>'
    return f"{opening}{head}{below}{''.join(parts)}</svg>"


def text(x: float, y: float, words: str, anchor: str) -> str:
    """Words at a place; anchor: start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'
