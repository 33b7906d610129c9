"""Lines over two axes, drawn as SVG: no window, no tool, the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sum.data.overview import WIDTH, figure, text

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555", "#e69f00", "#56b4e9")  # Okabe and Ito
LEFT, RIGHT, TOP, HIGH, KEY = 62, 16, 52, 250, 18  # px: margins, of the axes' box, of a line of the key
TICKS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One line: name in the key and points; dashed: a mark to compare with."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False
    dots: bool = False
    colour: str = ""  # empty: the next of PALETTE, grey where dashed


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis from `low` to `high`."""

    label: str
    low: float = 0.0
    high: float = 1.0


def line_chart(title: str, subtitle: str, lines: Sequence[Line], *, across: Axis, up: Axis) -> str:
    """An SVG element. Points beyond the axes are drawn on their border."""
    right, bottom = WIDTH - RIGHT, TOP + HIGH
    parts = [f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#888"/>']
    for k in range(TICKS + 1):
        x, y = LEFT + (right - LEFT) * k / TICKS, bottom - HIGH * k / TICKS
        parts += [
            f'<path d="M{LEFT} {y:.1f}H{right}M{x:.1f} {TOP}V{bottom}" stroke="#ddd" fill="none"/>',
            text(LEFT - 6, y + 4, f"{up.low + (up.high - up.low) * k / TICKS:.3g}", "end"),
            text(x, bottom + 15, f"{across.low + (across.high - across.low) * k / TICKS:.3g}", "middle"),
        ]
    parts.append(text((LEFT + right) / 2, bottom + 32, across.label, "middle"))
    turned = f'transform="rotate(-90 14 {TOP + HIGH / 2:.0f})" text-anchor="middle"'
    parts.append(f'<text x="14" y="{TOP + HIGH / 2:.0f}" {turned}>{up.label}</text>')
    solid = [line for line in lines if not line.dashed]
    for line in lines:
        parts += _drawn(line, across, up, colour=_colour(line, solid))
    for number, line in enumerate(lines):
        y = bottom + 50 + KEY * number
        parts.append(f'<path d="M{LEFT} {y - 4}h24" stroke="{_colour(line, solid)}" stroke-width="2"{_dash(line)}/>')
        parts.append(text(LEFT + 32, y, line.name, "start"))
    return figure(title, subtitle, parts, height=bottom + 50 + KEY * len(lines))


def standalone(svg: str) -> str:
    """An SVG element of a page as a file of its own."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff" ', 1) + "\n"


def _drawn(line: Line, across: Axis, up: Axis, *, colour: str) -> list[str]:
    width = WIDTH - RIGHT - LEFT
    places = [
        (LEFT + width * _share(x, across), TOP + HIGH * (1 - _share(y, up)))
        for x, y in zip(line.x, line.y, strict=True)
    ]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    found = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{_dash(line)}/>'] if places else []
    return found + [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places if line.dots]


def _colour(line: Line, solid: Sequence[Line]) -> str:
    usual = "#555555" if line.dashed else PALETTE[solid.index(line) % len(PALETTE)]
    return line.colour or usual


def _share(value: float, axis: Axis) -> float:
    return min(max((value - axis.low) / (axis.high - axis.low), 0.0), 1.0)


def _dash(line: Line) -> str:
    return ' stroke-dasharray="5 4"' if line.dashed else ""
