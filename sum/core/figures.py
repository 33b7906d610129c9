"""The figures of an evaluation that models are compared by, one plain number each: what MLflow and `dvc metrics` get.

They are a choice. All of summary.json would be hundreds of columns in MLflow's table and hundreds of lines in DVC's,
most of them ends of intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

IOUS = ("iou", "boundary_iou")
LEVEL = 90  # per cent: the one level of NoC and NoF; the field's most reported


def tracked_figures(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Data set -> metric -> mean or count: the benchmark's sets, `task-NAME` for each task, `all` for everything.

    summary: what evaluate writes, see sum.data.summaries. Every one of them has the main game's IoUs of all rounds that
    there are, as `iou_at_1`; tasks and `all` have the IoU of each other game's first round, as `box_iou_at_1`;
    `all` has `noc_at_90` and `nof_at_90`, a share `fidelity_CHECK`, and `generated`, masks an image.
    """
    scopes = _scopes(summary)
    found = {name: _ious(values) for name, values in (scopes | summary["dataset"]).items()}
    for game, figures in summary.get("games", {}).items():
        for name, values in _scopes(figures).items():
            found[name] |= _first(game, values)
    whole = found["all"]
    whole |= {
        f"{metric}_at_{LEVEL}": _number(value)
        for metric in ("noc", "nof")
        if (value := summary["overall"].get(f"{metric}@{LEVEL}"))
    }
    whole |= {f"fidelity_{check}": _number(row["overall"]) for check, row in summary.get("fidelity", {}).items()}
    if "generated" in summary:
        whole["generated"] = float(summary["generated"]["overall"])
    return found


def _scopes(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {"all": figures["overall"], **{f"task-{name}": values for name, values in figures["task"].items()}}


def _ious(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """IoUs as metric_at_round -> one number; MLflow refuses `@`, and shows columns in this order."""
    return {
        f"{metric}_at_{number}": _number(values[f"{metric}@{number}"])
        for metric in IOUS
        for number in _rounds(values, metric)
    }


def _first(game: str, values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The IoU of the first of the rounds that there are."""
    return {f"{game}_iou_at_{number}": _number(values[f"iou@{number}"]) for number in _rounds(values, "iou")[:1]}


def _rounds(keys: Iterable[str], metric: str) -> list[int]:
    return sorted(int(key.removeprefix(f"{metric}@")) for key in keys if key.startswith(f"{metric}@"))


def _number(value: Mapping[str, float]) -> float:
    return float(value["count" if "count" in value else "mean"])
