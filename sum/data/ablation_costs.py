"""What the rows of an ablation cost: parameters trained, size of what was learnt, time and memory, a line a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sum.ablation import Row
from sum.data.ablation_scores import Scored

COLUMNS = (
    "row",
    "budget",
    "method",
    "arch",
    "seed",
    "steps",
    "trained",  # numbers
    "delta_mb",  # size of delta.safetensors, 10^6 bytes
    "seconds_a_step",
    "peak_memory_mb",
    "training_seconds",
    "total_seconds",  # training, over all sessions, and the evaluation
    "device",
    "threads",
)


def cost_table(scored: Sequence[Scored], seconds: dict[tuple[Row, int], float]) -> pd.DataFrame:
    """COLUMNS, a row a run; NaN where nothing says it. seconds: of a run's evaluation."""
    found = [
        _costs(entry.row, seed, folder, evaluation=seconds.get((entry.row, seed)))
        for entry in scored
        for seed, folder in entry.seeds.items()
    ]
    return pd.DataFrame(found, columns=list(COLUMNS))


def _costs(row: Row, seed: int, folder: Path, *, evaluation: float | None) -> dict[str, Any]:
    """folder: data/evaluation/BUDGET of the run, which lies beside data/models and data/timing."""
    data = folder.parents[1]
    model = data / "models" / row.budget
    summary, run, machine = (
        _read(path) for path in (model / "summary.json", model / "run.json", data / f"timing/{row.budget}.json")
    )
    steps, training, delta = summary.get("steps"), run.get("seconds"), model / "delta.safetensors"
    return {
        "row": row.name,
        "budget": row.budget,
        "method": row.method,
        "arch": row.arch,
        "seed": seed,
        "steps": steps,
        "trained": summary.get("trained"),
        "delta_mb": delta.stat().st_size / 1e6 if delta.is_file() else None,
        "seconds_a_step": training / steps if training is not None and steps else None,
        "peak_memory_mb": run.get("peak_memory_mb"),
        "training_seconds": training,
        "total_seconds": training + evaluation if training is not None and evaluation is not None else None,
        "device": machine.get("device"),
        "threads": machine.get("threads"),
    }


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def by_row(costs: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds of a row, index row; NaN where no run says it."""
    numbers = ["trained", "delta_mb", "seconds_a_step", "peak_memory_mb", "training_seconds", "total_seconds"]
    return costs[numbers].astype("float64").groupby(costs["row"], sort=False).mean()
