"""The gate of the registry: is a tuned model better than the base, and worse at nothing?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GAIN, CHECK, YIELD, EVERYTHING = "gain", "fidelity", "yield", "everything"
PROMPTS = ("point", "box", "boundary", "random")
ASKED = {  # what `require` may name -> families of the table that it takes, and the setting that brings them
    **{prompt: ((prompt,), "evaluate.prompts") for prompt in PROMPTS},
    EVERYTHING: ((EVERYTHING, YIELD), "evaluate.everything"),
    CHECK: ((CHECK,), "evaluate.fidelity"),
}
USUAL = ("point", "box", EVERYTHING, CHECK)  # named as not looked at where they were not evaluated
CHECKS = ("background", "swap", "negative")


@dataclass(frozen=True, slots=True)
class Change:
    """One figure of the base and of the tuned model on the same masks; shares 0..1, of a yield masks an image."""

    family: str  # gain: what must rise; a prompt: what must not fall; fidelity; yield
    kind: str  # in words: `3, 5 points`, `box`, `negative`
    scope: str  # overall, task or dataset
    name: str  # all, the task's or the data set's
    base: float
    tuned: float
    gain: float  # mean of tuned - base
    low: float  # its 95 % interval
    high: float
    p: float  # two-sided, of no change
    masks: int
    images: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked; shares 0..1."""

    min_gain: float  # the lower bound of the overall gain must exceed it
    tolerance: float  # no lower bound of a task and kind of prompt may lie further below 0
    fidelity_tolerance: float  # nor that of a check's pass share
    min_yield: float  # masks of automatic generation, tuned over base, overall and of every task
    require: tuple[str, ...]  # names of ASKED that must have been evaluated


@dataclass(frozen=True, slots=True)
class Judged:
    """A change, and what the gate asked of it: None when nothing, as it is there to be looked at only."""

    change: Change
    limit: float | None  # of `low`; of a yield: of `gain`
    ok: bool | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate decided and why."""

    promoted: bool
    reasons: tuple[str, ...]  # why not; one sentence of praise when promoted
    table: tuple[Judged, ...]
    not_looked_at: tuple[str, ...]  # what was not evaluated


def decide(changes: Iterable[Change], *, limits: Limits) -> Verdict:
    """Promote if the overall gain is sure and no task, prompt, check or yield may have fallen by more than tolerated.

    Raises ValueError without an overall gain: then there is nothing to decide by.
    """
    table = tuple(_judge(change, limits) for change in changes)
    if not any(row.change.family == GAIN and row.change.scope == "overall" for row in table):
        raise ValueError("the table has no overall gain to decide by")
    reasons = [_reason(row, limits) for row in table if row.ok is False]
    absent = _absent([row.change for row in table])
    reasons += [
        f"{name}: not evaluated, but register.require names it; see {ASKED[name][1]} in params.yaml"
        for name in absent
        if name in limits.require
    ]
    promoted = not reasons
    if promoted:
        reasons.append(_praise(table, limits))
    unseen = [name for name in absent if name in USUAL or name in limits.require]
    return Verdict(promoted, tuple(reasons), table, (*unseen, *_unasked([row.change for row in table])))


def _judge(change: Change, limits: Limits) -> Judged:
    """`not x < y` would let NaN pass: every comparison here is one that NaN fails."""
    if change.family == GAIN:
        limit = limits.min_gain if change.scope == "overall" else None
        return Judged(change, limit, None if limit is None else change.low > limit)
    if change.family == YIELD:
        limit = (limits.min_yield - 1) * change.base if change.scope != "dataset" else None
        return Judged(change, limit, None if limit is None else change.gain >= limit)
    if change.family == CHECK:
        limit = -limits.fidelity_tolerance if change.scope == "overall" else None
    else:
        limit = -limits.tolerance if change.scope == "task" else None
    return Judged(change, limit, None if limit is None else change.low >= limit)


def _absent(changes: Sequence[Change]) -> list[str]:
    there = {change.family for change in changes}
    return [name for name, (families, _) in ASKED.items() if not there.issuperset(families)]


def _unasked(changes: Sequence[Change]) -> list[str]:
    """Checks that found no mask to be asked of."""
    asked = {change.kind for change in changes if change.family == CHECK}
    return [f"{CHECK}: {check}" for check in CHECKS if asked and check not in asked]


def _reason(row: Judged, limits: Limits) -> str:
    change = row.change
    where = "overall" if change.scope == "overall" else change.name
    what = f"{CHECK}, {change.kind}" if change.family == CHECK else f"{where}, {change.kind}"
    if change.family == YIELD:
        figures = f"{change.base:.1f} -> {change.tuned:.1f}"
        return f"{what}: {figures}, at least {limits.min_yield:.0%} of the base's is wanted"
    limit = row.limit or 0.0
    fell = change.family != GAIN and change.gain < limit
    digits = _digits(change.gain if fell else change.low, limit)
    moved = f"{what}: {100 * change.base:.{digits}f} -> {100 * change.tuned:.{digits}f}: {_move(change, digits)}"
    if change.family == GAIN:
        return f"{moved}, wanted is surely more than {100 * limits.min_gain:.{digits}f}"
    if fell:
        return f"{moved}, at most {-100 * limit:.{digits}f} is tolerated"
    return f"{moved}, a fall of more than {-100 * limit:.{digits}f} is not ruled out"


def _digits(figure: float, limit: float) -> int:
    """Decimals of per cent, 1 to 4, with which the two do not look alike: `falls by 2.0, at most 2.0` tells nothing."""
    if figure == limit:
        return 1
    return next((n for n in (1, 2, 3) if f"{100 * figure:.{n}f}" != f"{100 * limit:.{n}f}"), 4)


def _move(change: Change, digits: int = 1) -> str:
    """`falls by 1.9 [1.1, 2.6]`: points of per cent, with the interval of the same sign."""
    ends = (change.gain, change.low, change.high)
    signed = (100 * end + 0.0 for end in ends) if change.gain >= 0 else (-100 * end + 0.0 for end in ends)
    by, *interval = (f"{end:.{digits}f}" for end in signed)
    low, high = sorted(interval, key=float)
    return f"{'rises' if change.gain >= 0 else 'falls'} by {by} [{low}, {high}]"


def _praise(table: Sequence[Judged], limits: Limits) -> str:
    change = next(row.change for row in table if row.change.family == GAIN and row.change.scope == "overall")
    digits = _digits(change.low, limits.min_gain)
    figures = f"{100 * change.base:.{digits}f} -> {100 * change.tuned:.{digits}f}"
    first = f"overall, {change.kind}: {figures}: {_move(change, digits)}"
    return f"{first}; no task falls by more than {100 * limits.tolerance:.1f} with any prompt"
