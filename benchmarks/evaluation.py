"""The CPU part of evaluation against public code: clicks against SAM 2's, boundary IoU against boundary-iou-api's.

    PYTHONPATH=. python benchmarks/evaluation.py --sam2 FOLDER --boundary FOLDER [--rows click] [--repeats 5]

FOLDER: checkouts of facebookresearch/sam2 and bowenc0221/boundary-iou-api; without one its rows are skipped. One
process, one thread, both sides in turn, warm-up discarded, CPU time a mask, the ratio of medians. The masks are smooth
blobs of 0.1 to 35 % of the image, errors slivers of a smooth displacement, unless a row says otherwise; "spanning" are
wavy disks of four fifths of the image's height or width. Specks: 10 % of the pixels of the whole image are wrong.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import evaluation_peers
from benchmarks.training_duels import World
from sum.core.clicks import farthest_point, next_click
from sum.core.metrics import boundary_iou

Pair = tuple[NDArray[np.bool_], NDArray[np.bool_]]  # prediction, target
Side = Callable[[NDArray[np.bool_], NDArray[np.bool_]], Any]

CLICK_SIDES = (1024, 2048)
BOUNDARY_SIZES = ((1024, 1024), (2000, 3000))


def blobs(hw: tuple[int, int], count: int) -> list[Pair]:
    """Objects and predictions that miss slivers of them, by growing area."""
    world = World.of(count, 1024)
    pairs = [(_enlarged(world.logits[n], hw), _enlarged(world.target[n].float() - 0.5, hw)) for n in range(count)]
    return sorted(pairs, key=lambda pair: int(pair[1].sum()))


def _enlarged(logits: Tensor, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Logits `[1, h, w]` cut at 0 after that."""
    return (F.interpolate(logits[None], hw, mode="bilinear", align_corners=False)[0, 0] > 0).numpy()


def spanning(hw: tuple[int, int], count: int = 6) -> list[Pair]:
    """Wavy disks over most of the image, and predictions whose outline waves a little otherwise."""
    y, x = (np.indices(hw) / np.array(hw)[:, None, None]) - 0.5
    angle, radius = np.arctan2(y, x), np.hypot(y, x)
    pairs = []
    for seed in range(count):
        chance = np.random.default_rng(seed)
        outline = 0.4 + _waves(angle, range(2, 9), 0.02, chance)
        pairs.append((radius < outline + _waves(angle, range(5, 40, 5), 0.01, chance), radius < outline))
    return pairs


def _waves(angle: NDArray[Any], numbers: Iterable[int], height: float, chance: np.random.Generator) -> NDArray[Any]:
    return sum((chance.normal() * height * np.cos(n * angle + 6.3 * chance.random()) for n in numbers), start=0 * angle)


def specked(pairs: list[Pair], share: float = 0.1) -> list[Pair]:
    """The targets, predicted with that share of the image's pixels wrong."""
    chance = np.random.default_rng(0)
    return [(target ^ (chance.random(target.shape, dtype=np.float32) < share), target) for _, target in pairs]


def first(pairs: list[Pair]) -> list[Pair]:
    """Nothing predicted yet: the error is the object."""
    return [(np.zeros_like(target), target) for _, target in pairs]


def click_rows(masks: int) -> Iterator[tuple[str, list[Pair]]]:
    for side in CLICK_SIDES:
        small, large = blobs((side, side), masks), spanning((side, side))
        yield f"click, first round, {side}", first(small)
        yield f"click, slivers, {side}", small
        yield f"click, specks, {side}", specked(small)
        yield f"click, first round, spanning, {side}", first(large)
        yield f"click, slivers, spanning, {side}", large
        yield f"click, specks, spanning, {side}", specked(large)


def boundary_rows(masks: int) -> Iterator[tuple[str, list[Pair]]]:
    for hw in BOUNDARY_SIZES:
        pairs, name = blobs(hw, masks), "{} x {}".format(*hw)
        yield f"boundary IoU, all blobs, {name}", pairs
        yield f"boundary IoU, smallest third, {name}", pairs[: masks // 3]
        yield f"boundary IoU, largest fifth, {name}", pairs[-masks // 5 :]
        yield f"boundary IoU, spanning, {name}", spanning(hw)
        yield f"boundary IoU, spanning with specks, {name}", specked(spanning(hw))


def first_or_next(prediction: NDArray[np.bool_], target: NDArray[np.bool_]) -> evaluation_peers.Click | None:
    """As evaluation does: nothing predicted, nothing compared."""
    if prediction.any():
        return next_click(prediction, target)
    point = farthest_point(target)
    return point and (*point, 1)


def measure(pairs: list[Pair], sides: tuple[Side, Side], repeats: int) -> tuple[list[float], list[list[Any]]]:
    """Median CPU seconds a mask of each side, and what each answered."""
    spent: tuple[list[float], list[float]] = [], []
    answers: list[list[Any]] = [[], []]
    for _ in range(repeats + 1):
        for number, side in enumerate(sides):
            began = time.process_time()
            answers[number] = [side(*pair) for pair in pairs]
            spent[number].append((time.process_time() - began) / len(pairs))
    return [statistics.median(times[1:]) for times in spent], answers


def told_click(pairs: list[Pair], answers: list[list[Any]]) -> str:
    """Clicks that are the same; the others: equally deep pixels elsewhere, or another label at equal depth."""
    same, elsewhere, other = 0, 0, 0
    for (prediction, target), theirs, ours in zip(pairs, *answers, strict=True):
        if theirs == ours:
            same += 1
        elif _depth(prediction, target, theirs) == _depth(prediction, target, ours):
            elsewhere += 1
        else:
            other += 1
    return f"{same} of {len(pairs)} same, {elsewhere} tied, {other} other"


def _depth(prediction: NDArray[np.bool_], target: NDArray[np.bool_], click: evaluation_peers.Click) -> int:
    """Squared distance of a click to the nearest pixel outside its error, over all of them."""
    x, y, label = click
    error = target & ~prediction if label else prediction & ~target
    return int(((np.argwhere(~np.pad(error, 1)) - (y + 1, x + 1)) ** 2).sum(axis=1).min())


def told_boundary(_: list[Pair], answers: list[list[Any]]) -> str:
    return f"{max(abs(a - b) for a, b in zip(*answers, strict=True)):.0e} apart"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam2", type=Path, help="checkout of facebookresearch/sam2")
    parser.add_argument("--boundary", type=Path, help="checkout of bowenc0221/boundary-iou-api")
    parser.add_argument("--rows", default="", help="beginning of their names; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--masks", type=int, default=30)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    parts: list[tuple[Iterator[tuple[str, list[Pair]]], tuple[Side, Side], Callable[..., str]]] = []
    if options.sam2:
        clicks: tuple[Side, Side] = evaluation_peers.sam2_click(options.sam2), first_or_next
        parts.append((click_rows(options.masks), clicks, told_click))
    else:
        print("The rows of clicks are skipped: they need --sam2.")
    if options.boundary:
        ious: tuple[Side, Side] = evaluation_peers.boundary_iou(options.boundary), boundary_iou
        parts.append((boundary_rows(options.masks), ious, told_boundary))
    else:
        print("The rows of boundary IoU are skipped: they need --boundary.")
    title = f"{options.repeats} repeats, 1 thread, CPU ms a mask; load {os.getloadavg()[0]:.1f}"
    table = Table("", "masks", "area", "reference", "ours", "ratio", "equality", title=title, title_justify="left")
    for rows, sides, told in parts:
        for name, pairs in rows:
            if name.startswith(options.rows):
                (theirs, ours), answers = measure(pairs, sides, options.repeats)
                area = f"{np.mean([target.mean() for _, target in pairs]):.1%}"
                times = f"{theirs * 1e3:.3g}", f"{ours * 1e3:.3g}", f"{theirs / ours:.1f}"
                table.add_row(name, str(len(pairs)), area, *times, told(pairs, answers))
    table.caption = f"load at the end {os.getloadavg()[0]:.1f}"
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
