"""The gate of the registry: is a tuned model better than the base, and worse at nothing?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Figures = Mapping[
    str, Mapping[str, float]
]  # task -> data set -> metric of the oracle output, averaged over the gate's rounds, 0..1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate decided and why; gains are in the metric's unit, 0..1."""

    promoted: bool
    reasons: tuple[str, ...]  # why not; one sentence of praise when promoted
    base: float  # mean over all data sets
    tuned: float
    tasks: Mapping[str, tuple[float, float]]  # task -> (base, tuned), mean over its data sets


def decide(base: Figures, tuned: Figures, *, min_gain: float, tolerance: float) -> Verdict:
    """Promote if the mean over all data sets rises by more than `min_gain` and no task falls by more than `tolerance`.

    A data set weighs the same whatever its size, within its task and over all (paper B.3). Raises ValueError when the
    two were measured on different data sets or on none: such figures cannot be compared.
    """
    one, other = _names(base), _names(tuned)
    if not one or one != other:
        raise ValueError(f"measured on different data sets: base on {one or 'none'}, tuned on {other or 'none'}")
    tasks = {task: (_mean(base[task]), _mean(tuned[task])) for task in sorted(base)}
    before, after = _overall(base), _overall(tuned)
    change = f"overall {before:.4f} -> {after:.4f}: gain {after - before:+.4f}"
    reasons = []
    if not after - before > min_gain:  # `not >`: refuses NaN, too
        reasons.append(f"{change}, wanted more than {min_gain:g}")
    for task, (old, new) in tasks.items():
        if not old - new <= tolerance:
            fall = f"{task} {old:.4f} -> {new:.4f}: falls by {old - new:.4f}"
            reasons.append(f"{fall}, at most {tolerance:g} is tolerated")
    promoted = not reasons
    if promoted:
        reasons.append(f"{change}, no task falls by more than {tolerance:g}")
    return Verdict(promoted, tuple(reasons), before, after, tasks)


def _overall(figures: Figures) -> float:
    return _mean({f"{task}/{name}": value for task, row in figures.items() for name, value in row.items()})


def _mean(row: Mapping[str, float]) -> float:
    return math.fsum(row.values()) / len(row)


def _names(figures: Figures) -> str:
    return ", ".join(f"{task}/{name}" for task, row in sorted(figures.items()) for name in sorted(row))
