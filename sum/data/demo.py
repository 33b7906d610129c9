"""A built-in world of small photo-like scenes with an exact truth, to train and to show SUM without a download.

One click has three right answers here: the salient group, one object of it, one part of that object. Objects have thin
legs, spokes and teeth and small holes, which is what SAM's pseudo-labels get wrong.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field

import cv2
import numpy as np

from sum.data.demo_shapes import DARK, SHAPES, Piece

FACTOR = 3  # supersampling; odd, so a pixel's truth is the sample at its centre
LEAST_PART, LEAST_REGION = 48, 120  # visible pixels of a 128 px scene; smaller ones join a neighbour
LEAST_OBJECT = 150  # likewise; with less the scene is redrawn
FLOOR = 16  # visible pixels at any side: less has no shape
LEAST_SIDE = 48  # in a smaller picture objects would have no room for parts
SALIENT_SHARE = (0.05, 0.60)  # of the image
GROUP_CHANCE = (0.30, 0.42, 0.28)  # that the salient group has 1, 2, 3 objects
PRETRAIN_SET = 1_000  # number of the pre-training range; write_demo's sets are numbered from 0


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and its three readings. Every mask is `[H, W]` bool, visible pixels only."""

    image: np.ndarray  # [H, W, 3] uint8 RGB
    salient: np.ndarray  # a connected group of touching objects
    entities: list[np.ndarray]  # every background region, then every object; they tile the image
    parts: list[np.ndarray]  # pieces of objects; an object's parts tile it


@dataclass(slots=True)
class _Layout:
    """What is where: labels at `FACTOR` times the side, one label a background region or an object's part."""

    canvas: np.ndarray  # [F*H, F*W] uint8
    owner: list[int] = field(default_factory=list)  # label -> entity
    slot: list[int] = field(default_factory=list)  # label -> palette slot
    regions: int = 0  # entities below this number are background
    silhouettes: list[np.ndarray] = field(default_factory=list)  # [H, W] bool an object, hidden pixels too
    salient: list[int] = field(default_factory=list)  # entities of the salient group

    def labels(self) -> np.ndarray:
        """The truth at the photo's own size, `[H, W]` uint8."""
        return self.canvas[FACTOR // 2 :: FACTOR, FACTOR // 2 :: FACTOR]

    def entity_map(self) -> np.ndarray:
        """Entity number of each pixel, `[H, W]`."""
        return np.take(np.asarray(self.owner, dtype=np.uint8), self.labels())


def make_scene(seed: int, *, side: int = 128) -> Scene:
    """Scene number `seed`, `side` pixels wide and high: the same one every time."""
    if side < LEAST_SIDE:
        raise ValueError(f"side must be at least {LEAST_SIDE} pixels, got {side}")
    rng = np.random.default_rng(seed)
    layout = _try_layout(rng, side)
    while layout is None:
        layout = _try_layout(rng, side)
    entity_map, labels = layout.entity_map(), layout.labels()
    entities = [entity_map == index for index in np.unique(entity_map)]
    parts = [labels == label for label in np.unique(labels) if layout.owner[label] >= layout.regions]
    return Scene(_paint(layout, rng), np.isin(entity_map, layout.salient), entities, parts)


def pretrain_scene(index: int, *, seed: int, side: int) -> Scene:
    """Scene `index` of the pre-training range, which shares no scene with the sets on disk."""
    return make_scene(scene_seed(seed, PRETRAIN_SET, index=index), side=side)


def scene_seed(base: int, set_number: int, *, index: int) -> int:
    """Seed of one scene of one set: 128 bits, so two sets never meet."""
    low, high = np.random.SeedSequence([base, set_number, index]).generate_state(2, np.uint64)
    return int(low) | int(high) << 64


def least(area: int, side: int) -> float:
    """Pixels at `side` of an area given at 128 px."""
    return max(FLOOR, area * (side / 128) ** 2)


def _try_layout(rng: np.random.Generator, side: int) -> _Layout | None:
    """Draw a background and two to four objects; None when they lie so that the scene breaks a law."""
    layout = _background(rng, side)
    wanted = 1 + int(rng.choice(3, p=GROUP_CHANCE))
    others = int(rng.integers(int(wanted == 1), min(5 - wanted, 3)))  # two to four objects in all
    unit = side / 128
    anchor, reach = rng.uniform(50, 78, 2) * unit, rng.uniform(27, 38) * unit
    places = [(anchor, reach)]
    for _ in range(wanted - 1):
        small = rng.uniform(17, 26) * unit
        angle = rng.choice([-np.pi / 2, 0, np.pi], p=[0.5, 0.25, 0.25]) + rng.normal() * 0.5  # on it, or beside it
        places.append((anchor + (reach * 0.75 + small * 0.6) * _toward(angle), small))
    order = list(rng.permutation(len(places)))
    for _ in range(others):
        spot = np.clip(64 + 66 * _toward(rng.uniform(0, 2 * np.pi)), 12, 116)  # near the rim
        places.append((spot * unit, rng.uniform(13, 19) * unit))
    order = [*range(wanted, len(places)), *order]  # bystanders lie behind
    names = rng.choice(sorted(SHAPES), len(places), replace=False)
    for index in order:
        _draw(layout, str(names[index]), place=places[index], rng=rng)
    anchor_entity = layout.regions + order.index(0)
    return layout if _lawful(layout, anchor_entity, wanted=wanted) else None


def _background(rng: np.random.Generator, side: int) -> _Layout:
    """Two to four regions, each cut from the one before by a straight or wavy line."""
    big = side * FACTOR
    layout = _Layout(np.zeros((big, big), np.uint8), [0], [0])
    t = np.linspace(-1.6, 1.6, 41)
    height = rng.uniform(-0.45, 0.1)
    for label in range(1, int(rng.integers(2, 5))):
        wave = rng.choice([0.0, 0.04, 0.1]) * np.sin(rng.uniform(2, 6) * t + rng.uniform(0, 6))
        line = np.stack((t, height + wave), axis=1)
        corners = np.concatenate((line, np.array([(1.6, 3.0), (-1.6, 3.0)])))
        upright = label > 1 and rng.random() < 0.3
        angle = rng.choice([-1, 1]) * np.pi / 2 + rng.normal() * 0.1 if upright else rng.normal() * 0.15
        _fill(layout.canvas, (_turn(corners, angle) * big / 2 + big / 2,), label)
        layout.owner.append(label)
        layout.slot.append(0)
        height += rng.uniform(0.3, 0.5)
    layout.regions = len(layout.owner)
    return layout


def _toward(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)])


def _turn(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([(cos, sin), (-sin, cos)]))


def _fill(canvas: np.ndarray, contours: tuple[np.ndarray, ...], label: int) -> None:
    """Fill pixel-frame contours by the even-odd rule, with 1/16 pixel precision."""
    cv2.fillPoly(canvas, [np.round((c - 0.5) * 16).astype(np.int32) for c in contours], label, shift=4)


def _draw(layout: _Layout, name: str, *, place: tuple[np.ndarray, float], rng: np.random.Generator) -> None:
    """Put one object on top of the scene; `place` is its centre xy and half its side, in pixels."""
    (centre, reach), (shape, lean) = place, SHAPES[name]
    side = layout.canvas.shape[0] / FACTOR
    pieces: list[Piece] = shape(rng, rng.uniform(2.2, 3.8) * max(side / 128, 0.75) / reach)
    angle, flip = rng.uniform(-lean, lean), np.array([rng.choice([-1, 1]), 1])
    layer = np.zeros_like(layout.canvas)
    entity = layout.owner[-1] + 1
    for piece in pieces:
        for region in piece.regions:
            contours = tuple((_turn(c * flip, angle) * reach + centre) * FACTOR for c in region)
            _fill(layer, contours, len(layout.owner))
        layout.owner.append(entity)
        layout.slot.append(piece.slot)
    np.copyto(layout.canvas, layer, where=layer > 0)
    layout.silhouettes.append(layer[FACTOR // 2 :: FACTOR, FACTOR // 2 :: FACTOR] > 0)


def _lawful(layout: _Layout, anchor: int, *, wanted: int) -> bool:
    """Whether the scene keeps the laws; joins crumbs to their neighbours and finds the salient group on the way."""
    entity_map = layout.entity_map()
    area = np.bincount(entity_map.ravel(), minlength=layout.owner[-1] + 1)
    for index, silhouette in enumerate(layout.silhouettes):
        if area[layout.regions + index] < max(least(LEAST_OBJECT, len(entity_map)), 0.45 * silhouette.sum()):
            return False
    _, blobs = cv2.connectedComponents((entity_map >= layout.regions).astype(np.uint8), connectivity=8)
    salient = blobs == np.bincount(blobs[entity_map == anchor]).argmax()
    group = [int(e) for e in np.unique(entity_map[salient])]
    whole = int(salient.sum()) == int(area[group].sum())
    share = salient.mean()
    if not (whole and len(group) == wanted and SALIENT_SHARE[0] <= share <= SALIENT_SHARE[1]):
        return False
    layout.salient = group
    _join_crumbs(layout)
    return True


def _join_crumbs(layout: _Layout) -> None:
    """Give labels with few visible pixels to the sibling they touch most, so that what is painted stays the truth."""
    owner = np.asarray(layout.owner)
    ground = owner < layout.regions
    side = len(layout.labels())
    wanted = np.where(ground, least(LEAST_REGION, side), least(LEAST_PART, side))
    while True:
        count = np.bincount(layout.labels().ravel(), minlength=len(owner))
        crumbs = np.flatnonzero((count > 0) & (count < wanted))
        if not len(crumbs):
            return
        crumb = crumbs[0]
        siblings = (ground if ground[crumb] else owner == owner[crumb]) & (count > 0)
        siblings[crumb] = False
        here = layout.canvas == crumb
        around = cv2.dilate(here.astype(np.uint8), np.ones((2 * FACTOR + 1,) * 2, np.uint8)) > 0
        touch = np.bincount(layout.canvas[around], minlength=len(owner))
        layout.canvas[here] = np.argmax(siblings * (touch * 1_000_000 + count))


def _paint(layout: _Layout, rng: np.random.Generator) -> np.ndarray:
    """The photo of a layout, `[H, W, 3]` uint8: colours, textures, shading, shadows, then the camera."""
    big = layout.canvas.shape[0]
    side = big // FACTOR
    grid = np.linspace(-1, 1, side, dtype=np.float32)
    light = rng.uniform(0, 2 * np.pi)
    toward = np.array([np.cos(light), -abs(np.sin(light))], dtype=np.float32)  # from above, as y points down
    tables = _looks(layout, rng)
    colour = cv2.LUT(cv2.merge([layout.canvas] * 3), tables[None, :, :3].copy())
    tone = np.ones((big, big), np.float32)
    for index, texture in enumerate(_textures(rng, side)):
        strength = cv2.LUT(layout.canvas, tables[None, :, 3 + index].copy())
        tone += strength * cv2.resize(texture, (big, big), interpolation=cv2.INTER_LINEAR)
    photo: np.ndarray = cv2.resize(colour * tone[..., None], (side, side), interpolation=cv2.INTER_AREA)
    glow = 1 + rng.uniform(0.05, 0.22) * (toward[0] * grid[None, :] + toward[1] * grid[:, None])
    photo *= (glow * _relief(layout, toward))[..., None]
    photo = cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.35, 0.75) * max(side / 128, 0.5))
    photo = np.add(photo, rng.standard_normal(photo.shape, dtype=np.float32) * np.float32(rng.uniform(0.005, 0.02)))
    return np.asarray(np.round(np.clip(photo, 0, 1) * 255), dtype=np.uint8)


def _relief(layout: _Layout, toward: np.ndarray) -> np.ndarray:
    """Light on round objects and soft shadows behind them, a factor `[H, W]` about 1."""
    entity_map = layout.entity_map()
    unit = entity_map.shape[0] / 128
    factor = np.ones(entity_map.shape, np.float32)
    shift = np.array([(1, 0, -4 * unit * toward[0]), (0, 1, -4 * unit * toward[1])], dtype=np.float32)
    for index, silhouette in enumerate(layout.silhouettes):
        entity = layout.regions + index
        solid = silhouette.astype(np.float32)
        soft = cv2.GaussianBlur(solid, (0, 0), 3 * unit)
        shade = cv2.warpAffine(soft, shift, soft.shape[::-1])
        factor -= 0.35 * shade * factor * (entity_map < entity)
        slope = toward[0] * cv2.Sobel(soft, -1, 1, 0) + toward[1] * cv2.Sobel(soft, -1, 0, 1)
        factor *= 1 - 0.25 * unit * slope * (entity_map == entity)
    return factor


def _looks(layout: _Layout, rng: np.random.Generator) -> np.ndarray:
    """For each label red, green, blue and the strength of each texture, `[256, 7]` float32, colours 0..1."""
    looks = np.zeros((256, 7), np.float32)
    hue = rng.random()
    palettes: dict[int, np.ndarray] = {}
    for label, (entity, slot) in enumerate(zip(layout.owner, layout.slot, strict=True)):
        if entity < layout.regions:
            shade = (hue + rng.normal() * 0.12) % 1, rng.uniform(0.08, 0.45), rng.uniform(0.3, 0.9)
            looks[label, :3] = colorsys.hsv_to_rgb(*shade)
        else:
            if entity not in palettes:
                palettes[entity] = _palette(rng, vivid=entity in layout.salient)
                if rng.random() < 0.2:  # camouflage: the main colour is close to the ground's
                    palettes[entity][0] = looks[rng.integers(layout.regions), :3] * rng.uniform(0.75, 1.25)
            looks[label, :3] = palettes[entity][slot] * rng.uniform(0.9, 1.1)
        strength = rng.uniform(0.06, 0.2) if entity < layout.regions else rng.uniform(0.02, 0.14)
        looks[label, 3 + rng.integers(4)] = strength  # one texture a label
    return looks


def _palette(rng: np.random.Generator, *, vivid: bool) -> np.ndarray:
    """Four colours that go together and can be told apart, `[4, 3]`; dull ones for bystanders."""
    hue, value = rng.random(), rng.uniform(0.4, 0.95)
    low, high = (0.5, 0.95) if vivid else (0.1, 0.5)
    other = value - 0.35 if value > 0.65 else value + 0.3
    shades = (
        (hue, rng.uniform(low, high), value),
        ((hue + rng.uniform(0.1, 0.5)) % 1, rng.uniform(low, high), other),
        ((hue + rng.uniform(0.4, 0.6)) % 1, rng.uniform(0.1, high), rng.uniform(0.75, 1.0)),
    )
    palette = np.zeros((4, 3))
    palette[:DARK] = [colorsys.hsv_to_rgb(*shade) for shade in shades]
    palette[DARK] = colorsys.hsv_to_rgb(hue, 0.3, rng.uniform(0.1, 0.25))
    return palette


def _textures(rng: np.random.Generator, side: int) -> list[np.ndarray]:
    """Cloud, stripes, checks, speckle: each `[side, side]` float32, about -1..1."""
    cloud = np.zeros((side, side), np.float32)
    for cells, weight in ((4, 0.5), (10, 0.35), (28, 0.25)):
        coarse = rng.standard_normal((cells, cells), dtype=np.float32) * np.float32(weight)
        cloud += cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:side, :side].astype(np.float32) * np.float32(128 / side)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 11)
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * np.float32(2 * np.pi / period))
    cell, turn = rng.uniform(5, 10), rng.uniform(0, np.pi / 2)
    u, v = (x * np.cos(turn) + y * np.sin(turn)) / cell, (y * np.cos(turn) - x * np.sin(turn)) / cell
    checks = ((np.floor(u) + np.floor(v)) % 2 * 2 - 1).astype(np.float32)
    speckle = rng.standard_normal((side, side), dtype=np.float32) * np.float32(0.7)
    return [cloud, stripes.astype(np.float32), checks, speckle]
