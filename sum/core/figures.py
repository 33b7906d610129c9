"""The figures of an evaluation as a tracking server takes them: plain names, one number each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tracked_figures(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Data set -> metric -> mean, 0..1: the benchmark's sets, `task-NAME` for each task, `all` for everything.

    summary: what evaluate writes, scope -> name -> metric@round -> mean, low, high.
    """
    scopes = {"all": summary["overall"], **{f"task-{name}": values for name, values in summary["task"].items()}}
    return {
        name: {key.replace("@", "_at_"): float(value["mean"]) for key, value in values.items()}  # MLflow refuses `@`
        for name, values in (scopes | summary["dataset"]).items()
    }
