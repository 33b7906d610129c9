"""The figures of an evaluation as a tracking server takes them: plain names, one number each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tracked_figures(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Data set -> metric -> mean or count: the benchmark's sets, `task-NAME` for each task, `all` for everything.

    summary: what evaluate writes, see sum.data.summaries. The main game's metrics have their own names, those of
    another game begin with its name, as `box_iou_at_1`; `fidelity_CHECK` is a share, `generated` a count an image.
    """
    found = {name: _plain(values) for name, values in (_scopes(summary) | summary["dataset"]).items()}
    for game, figures in summary.get("games", {}).items():
        for name, values in _scopes(figures).items():
            found[name] |= {f"{game}_{key}": value for key, value in _plain(values).items()}
    for check, figures in summary.get("fidelity", {}).items():
        for name, values in _scopes(figures).items():
            found[name][f"fidelity_{check}"] = float(values["mean"])
    if "generated" in summary:
        for name, value in _scopes(summary["generated"]).items():
            found[name]["generated"] = float(value)
    return found


def _scopes(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {"all": figures["overall"], **{f"task-{name}": values for name, values in figures["task"].items()}}


def _plain(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """metric@round -> values as metric_at_round -> one number; MLflow refuses `@`."""
    return {
        key.replace("@", "_at_"): float(value["count" if "count" in value else "mean"]) for key, value in values.items()
    }
