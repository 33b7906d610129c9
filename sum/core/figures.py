"""The figures of an evaluation as a tracking server takes them: plain names, one number each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tracked_figures(summary: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Data set -> metric -> mean or count: the benchmark's sets, `task-NAME` for each task, `all` for everything.

    summary: what evaluate writes, scope -> name -> metric@round -> mean (of failures: count), low, high.
    """
    scopes = {"all": summary["overall"], **{f"task-{name}": values for name, values in summary["task"].items()}}
    return {
        name: {
            key.replace("@", "_at_"): float(value["count" if "count" in value else "mean"])  # MLflow refuses `@`
            for key, value in values.items()
        }
        for name, values in (scopes | summary["dataset"]).items()
    }
