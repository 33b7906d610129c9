"""What an ablation comes to in words: of each row what differs surely, by which measure, and what it does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sum.ablation import BASE, Row
from sum.data.ablation_scores import Scores, difference, over, reference, seed_counts, task_differences
from sum.data.scores import METRICS

ONE_TRAINING = "surely, for this one training,"


@dataclass(frozen=True, slots=True)
class Findings:
    """Sentences for tables.md and the page."""

    caution: str  # what intervals of one seed do not say; empty when every row has several
    over: str  # what intervals are over
    measure: str  # what `sure` is measured by
    sure: list[str]  # a line a row, then one an output that has pairs


def findings(oracle: Scores, single: Scores, *, told: Sequence[int]) -> Findings:
    """Of the oracle; of rows with one output by the single one. told: the rounds whose mean is meant."""
    return Findings(_caution(single), over(single), _measure(single, told), _sure(oracle, single))


def _caution(scores: Scores) -> str:
    """Said of all rows when none has a second seed, else of those that have none."""
    counts = seed_counts(scores)
    alone = [row.name for row in scores.rows if counts[row.name] == 1]
    if not alone:
        return ""
    of = "" if len(alone) == len(scores.rows) else f" of {', '.join(alone)}"
    return (
        f"One seed{of}: intervals are over test images only and say nothing of another training: no finding about a "
        "method"
    )


def _measure(scores: Scores, told: Sequence[int]) -> str:
    unit = "prompts" if scores.long["prompt"].iloc[0] == "box" else "clicks"
    *before, last = map(str, told)
    rounds = f"mean over {', '.join(before)} and {last} {unit}" if before else f"after {last} {unit}"
    return (
        f"In points of {METRICS['iou']}, {rounds}, over all sets, with bounds of 95 % intervals over {over(scores)}; "
        "in round brackets the tasks in which the difference to the base is sure, too, by the same measure"
    )


def _sure(oracle: Scores, single: Scores) -> list[str]:
    found = []
    for row in single.rows:
        of = oracle if row in oracle.rows else single
        label = row.label if of is oracle else f"{row.label} (single output)"
        words = [_against(of, row, BASE, name="the base")]
        if reference(row) != row.name:
            words.append(_against(of, row, reference(row), name="sum"))
        found.append(f"{row.budget}: {label}: {'; '.join(filter(None, words))}")
    return [*found, *(_counted(of) for of in (oracle, single) if len(of.rows) > 1)]


def _against(scores: Scores, row: Row, other: str, *, name: str) -> str:
    """What a row is to another one, to the base with the tasks in which it surely differs; '' when nothing is known."""
    found = difference(scores.pairs, row, other)
    if found is None:
        return ""
    tasks = ""
    if other == BASE:
        sure = [line for line in task_differences(scores.pairs, row) if line["sure"]]
        tasks = ", ".join(f"{line['task']} {100 * line['difference']:+.1f}" for line in sure)
    return f"{_verdict(found, name)}{f' ({tasks})' if tasks else ''}"


def _verdict(found: Mapping[str, float], name: str) -> str:
    interval = f"{100 * found['difference']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
    surely = ONE_TRAINING if found["seeds"] == 1 else "surely"
    if found["low"] > 0:
        return f"{surely} better than {name}, {interval}"
    if found["high"] < 0:
        return f"{surely} worse than {name}, {interval}"
    return f"not surely better or worse than {name}, {interval}"


def _counted(scores: Scores) -> str:
    """How many pairs of rows differ surely, and how many of them would by chance."""
    pairs = scores.pairs
    rivals = pairs[(pairs["task"] == "all") & (pairs["metric"] == "iou") & (pairs["second"] != BASE)]
    surely = ONE_TRAINING if len(rivals) and (rivals["seeds"] == 1).all() else "surely"
    chance = len(rivals) / 20
    return (
        f"{int(rivals['sure'].sum())} of {len(rivals)} pairs of rows differ {surely} by output {scores.output} "
        f"(pairs.csv); {f'{chance:.0f}' if chance >= 1 else 'fewer than 1'} would by chance if none did"
    )
