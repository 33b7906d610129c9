"""The objects of the built-in world, as polygons: what a house, a mug or a wheel is made of.

Local frame of every shape: x right, y down, the object fills about -1..1 both ways. `thin` is the width of its thin
structures in the same frame, so that a leg stays some pixels wide however small the object is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Contour = np.ndarray  # [N, 2] float xy, closed
Region = tuple[Contour, ...]  # filled by the even-odd rule: a second contour inside the first is a hole

MAIN, SECOND, ACCENT, DARK = range(4)  # slots of an object's palette


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of an object: its regions, painted in one colour of the object's palette."""

    name: str
    regions: tuple[Region, ...]
    slot: int


def box(x0: float, y0: float, x1: float, y1: float) -> Region:
    """A rectangle from its corners."""
    return (np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]),)


def poly(*points: tuple[float, float]) -> Region:
    """A polygon from its corners."""
    return (np.array(points),)


def arc(x: float, y: float, radii: tuple[float, float], *, start: float = 0.0, stop: float = 2 * np.pi) -> Contour:
    """Points of an ellipse arc, `[33, 2]`; angles in radians, clockwise from +x as y points down."""
    angle = np.linspace(start, stop, 33)
    return np.stack((x + radii[0] * np.cos(angle), y + radii[1] * np.sin(angle)), axis=1)


def disc(x: float, y: float, rx: float, *, ry: float | None = None) -> Region:
    """A filled ellipse."""
    return (arc(x, y, (rx, rx if ry is None else ry)),)


def ring(x: float, y: float, rx: float, *, ry: float | None = None, width: float) -> Region:
    """An ellipse with a hole, `width` wide."""
    ry = rx if ry is None else ry
    return (arc(x, y, (rx, ry)), arc(x, y, (max(rx - width, 0.02), max(ry - width, 0.02))))


def band(points: np.ndarray, width: float) -> Region:
    """A line of some width through `points` `[N, 2]`."""
    along = np.gradient(points, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    side = np.stack((-along[:, 1], along[:, 0]), axis=1) * width / 2
    return (np.concatenate((points + side, (points - side)[::-1])),)


def stick(x0: float, y0: float, x1: float, *, y1: float, width: float) -> Region:
    """A straight line of some width."""
    return band(np.array([(x0, y0), (x1, y1)], dtype=float), width)


def table(rng: np.random.Generator, thin: float) -> list[Piece]:
    """A table, or a chair when it has a back: a board on two or three thin legs."""
    top, splay = rng.uniform(-0.45, -0.05), rng.uniform(0, 0.15)
    feet = (-0.8, 0.8) if rng.random() < 0.6 else (-0.8, 0.0, 0.8)
    pieces = [Piece("leg", (stick(x, top, x * (1 + splay), y1=1, width=thin),), SECOND) for x in feet]
    if rng.random() < 0.5:
        bars = [stick(x, -1, x, y1=top, width=thin) for x in np.linspace(-0.9, 0.1, 3)]
        pieces.append(Piece("back", (*bars, box(-1, -1.1, 0.2, -1.1 + max(0.25, thin))), ACCENT))
    return [*pieces, Piece("top", (box(-1, top, 1, top + rng.uniform(0.3, 0.45)),), MAIN)]


def mug(rng: np.random.Generator, thin: float) -> list[Piece]:
    """A mug: a body with a band and a ring for a handle."""
    foot, height = rng.uniform(0.4, 0.6), rng.uniform(0.75, 1.0)
    body = poly((-0.85, -height), (0.4, -height), (foot - 0.2, height), (-0.65 - foot * 0.1, height))
    tall = rng.uniform(0.45, 0.6)
    pieces = [
        Piece("handle", (ring(0.45, -0.05, 0.55, ry=tall, width=thin * 1.2),), SECOND),
        Piece("body", (body,), MAIN),
        Piece("rim", (disc(-0.225, -height, 0.625, ry=0.2),), DARK),
    ]
    if rng.random() < 0.6:
        y = rng.uniform(0, 0.3)
        pieces.append(Piece("label", (box(-0.6, y - 0.25, 0.15, y + 0.3),), ACCENT))
    return pieces


def wheel(rng: np.random.Generator, thin: float) -> list[Piece]:
    """A wheel: tyre, thin spokes with the background between them, hub."""
    turn, count = rng.uniform(0, np.pi), int(rng.integers(2, 4))
    ends = [(0.85 * np.cos(turn + k * np.pi / count), 0.85 * np.sin(turn + k * np.pi / count)) for k in range(count)]
    spokes = tuple(stick(-x, -y, x, y1=y, width=thin * 0.9) for x, y in ends)
    return [
        Piece("spokes", spokes, SECOND),
        Piece("tyre", (ring(0, 0, 1, width=rng.uniform(0.22, 0.34)),), MAIN),
        Piece("hub", (disc(0, 0, rng.uniform(0.2, 0.32)),), ACCENT),
    ]


def tree(rng: np.random.Generator, thin: float) -> list[Piece]:
    """A tree: a trunk with thin bare branches, and two or three clumps of leaves with gaps between them."""
    trunk = [stick(0, 1, 0, y1=-0.3, width=max(0.2, thin))]
    tips = [(-0.6, -0.35), (0.6, -0.45), (rng.uniform(-0.15, 0.15), -0.75)]
    trunk += [stick(0, 0.25, x, y1=y, width=thin) for x, y in tips]
    trunk.append(stick(0, 0.5, rng.choice([-0.8, 0.8]), y1=rng.uniform(0.1, 0.3), width=thin * 0.9))
    pieces = [Piece("trunk", tuple(trunk), SECOND)]
    for slot, (x, y) in zip((MAIN, ACCENT, MAIN), tips, strict=True):
        angle = np.linspace(0, 2 * np.pi, 41)[:-1]
        radius = rng.uniform(0.36, 0.46) * (1 + 0.16 * np.sin(rng.integers(5, 8) * angle + rng.uniform(0, 6)))
        outline = np.stack((x + radius * np.cos(angle), y + radius * np.sin(angle)), 1)
        pieces.append(Piece("leaves", ((outline,),), slot))
    return pieces


def flag(rng: np.random.Generator, thin: float) -> list[Piece]:
    """A flag: a wavy cloth of one or two colours on a thin pole."""
    x = np.linspace(-0.6, 1, 17)
    wave = rng.uniform(0.05, 0.14) * np.sin(rng.uniform(2.5, 4.5) * x + rng.uniform(0, 6))
    low = rng.uniform(0.0, 0.2)

    def cloth(top: float, bottom: float) -> Region:
        upper, lower = np.stack((x, top + wave), 1), np.stack((x, bottom + wave), 1)
        return (np.concatenate((upper, lower[::-1])),)

    pieces = [Piece("cloth", (cloth(-0.95, low),), MAIN)]
    if rng.random() < 0.7:
        middle = (low - 0.95) / 2 + rng.uniform(-0.15, 0.15)
        pieces.append(Piece("stripe", (cloth(middle, low),), ACCENT))
    return [*pieces, Piece("pole", (stick(-0.6, -1.05, -0.6, y1=1, width=thin),), DARK)]


def umbrella(rng: np.random.Generator, thin: float) -> list[Piece]:
    """An umbrella: a canopy in three gores, a thin pole with a hook."""
    tall = rng.uniform(0.75, 0.95)
    bend = np.linspace(0, np.pi, 13)
    hook = np.stack((0.25 - 0.25 * np.cos(bend), 0.75 + 0.25 * np.sin(bend)), 1)
    pole = np.concatenate((np.array([(0.0, -0.9), (0.0, 0.4)]), hook))
    pieces = [Piece("pole", (band(pole, thin),), DARK)]
    for reach, slot in ((1.0, MAIN), (0.4, ACCENT)):
        pieces.append(Piece("canopy", ((arc(0, 0, (reach, tall), start=np.pi),),), slot))
    return pieces


def house(rng: np.random.Generator, thin: float) -> list[Piece]:
    """A house: chimney, walls, roof, door, one or two windows."""
    eaves, chimney = rng.uniform(-0.25, 0.0), rng.uniform(0.3, 0.6)
    pieces = [
        Piece("chimney", (box(chimney - 0.12, -0.95, chimney + max(0.14, thin - 0.12), eaves),), DARK),
        Piece("walls", (box(-0.85, eaves, 0.85, 1),), MAIN),
        Piece("roof", (poly((-1.05, eaves + 0.08), (rng.uniform(-0.25, 0.1), -1), (1.05, eaves + 0.08)),), SECOND),
        Piece("door", (box(-0.15, eaves + 0.45, 0.2, 1),), DARK),
    ]
    windows = (-0.52, 0.55)[: int(rng.integers(1, 3))]
    return pieces + [Piece("window", (box(x - 0.19, eaves + 0.25, x + 0.19, eaves + 0.68),), ACCENT) for x in windows]


def car(rng: np.random.Generator, thin: float) -> list[Piece]:
    """A car: body, cabin, two windows, two wheels, a thin aerial."""
    roof, nose = rng.uniform(-0.65, -0.5), rng.uniform(-0.05, 0.1)
    cabin = poly((-0.7, 0.0), (-0.45, roof), (0.3, roof), (0.6, 0.0))
    body = poly((-1.05, -0.08), (0.65, -0.08), (1.1, nose + 0.1), (1.1, 0.5), (-1.05, 0.5))
    rear = poly((-0.55, -0.05), (-0.38, roof + 0.12), (-0.12, roof + 0.12), (-0.12, -0.05))
    front = poly((0.05, -0.05), (0.05, roof + 0.12), (0.25, roof + 0.12), (0.43, -0.05))
    radius = rng.uniform(0.26, 0.32)
    return [
        Piece("aerial", (stick(-0.6, 0, -0.95, y1=-0.85, width=thin * 0.8),), DARK),
        Piece("cabin", (cabin,), SECOND),
        *(Piece("window", (glass,), ACCENT) for glass in (rear, front)),
        Piece("body", (body,), MAIN),
        *(Piece("wheel", (disc(x, 0.5, radius),), DARK) for x in (-0.58, 0.6)),
    ]


def comb(rng: np.random.Generator, thin: float) -> list[Piece]:
    """A comb, fork or fence: thin teeth, as far apart as they are wide or more, on a solid spine."""
    count = int(np.clip(2 / (thin * rng.uniform(2.0, 2.6)), 3, 7))
    teeth = tuple(stick(x, -0.2, x, y1=0.9, width=thin) for x in np.linspace(-0.9, 0.9, count))
    pieces = [Piece("teeth", teeth, SECOND), Piece("spine", (box(-1, -0.65, 1, rng.uniform(-0.2, 0.05)),), MAIN)]
    if rng.random() < 0.4:
        pieces.append(Piece("grip", (box(-0.3, -1.2, 0.3, -0.55),), ACCENT))
    return pieces


def key(rng: np.random.Generator, thin: float) -> list[Piece]:
    """A key: a bow with a hole, a shaft, two or three bits."""
    bow = rng.uniform(0.48, 0.58)
    places = np.linspace(0.55, 0.95, int(rng.integers(2, 4)))
    bits = tuple(stick(x, 0, x, y1=rng.uniform(0.35, 0.5), width=thin * 0.9) for x in places)
    return [
        Piece("bits", bits, ACCENT),
        Piece("shaft", (stick(-0.3, 0, 1.05, y1=0, width=max(thin, 0.18)),), SECOND),
        Piece("bow", (ring(-0.55, 0, bow, width=bow * rng.uniform(0.5, 0.65)),), MAIN),
    ]


def kite(rng: np.random.Generator, thin: float) -> list[Piece]:
    """A kite: two halves and a long thin wavy tail with a bow at its end."""
    low, wide = rng.uniform(0.1, 0.3), rng.uniform(0.6, 0.75)
    y = np.linspace(low - 0.05, 1.15, 25)
    tail = np.stack((rng.uniform(0.1, 0.25) * np.sin(rng.uniform(4, 7) * (y - low)), y), 1)
    x, end = tail[-1]
    knot = poly((x - 0.22, end - 0.13), (x + 0.22, end + 0.13), (x + 0.22, end - 0.13), (x - 0.22, end + 0.13))
    return [
        Piece("tail", (band(tail, thin * 0.9),), DARK),
        Piece("knot", (knot,), ACCENT),
        Piece("left", (poly((0, -1), (-wide, -0.5), (0, low)),), MAIN),
        Piece("right", (poly((0, -1), (wide, -0.5), (0, low)),), SECOND),
    ]


def bottle(rng: np.random.Generator, thin: float) -> list[Piece]:
    """A bottle: body, narrow neck, cap, label."""
    wide, neck = rng.uniform(0.36, 0.48), max(0.13, thin * 0.6)
    body = poly((-wide, 1), (-wide, -0.1), (-neck, -0.45), (neck, -0.45), (wide, -0.1), (wide, 1))
    y = rng.uniform(0.05, 0.2)
    return [
        Piece("neck", (box(-neck, -0.85, neck, -0.35),), SECOND),
        Piece("body", (body,), MAIN),
        Piece("cap", (box(-neck - 0.05, -1.1, neck + 0.05, -0.8),), DARK),
        Piece("label", (box(-wide, y, wide, y + rng.uniform(0.35, 0.5)),), ACCENT),
    ]


Shape = Callable[[np.random.Generator, float], list[Piece]]
SHAPES: dict[str, tuple[Shape, float]] = {  # the shape, and how far it may lean, radians
    "table": (table, 0.2),
    "mug": (mug, 0.4),
    "wheel": (wheel, np.pi),
    "tree": (tree, 0.2),
    "flag": (flag, 0.3),
    "umbrella": (umbrella, 0.6),
    "house": (house, 0.12),
    "car": (car, 0.25),
    "comb": (comb, np.pi),
    "key": (key, np.pi),
    "kite": (kite, 0.8),
    "bottle": (bottle, 0.7),
}
