"""Register a tuned model; the gate of params.yaml decides whether it becomes champion.

In: data/models/BUDGET, data/evaluation/base and data/evaluation/BUDGET. Out: data/registry/BUDGET.json (the verdict
with its figures), a version of `NAME-ft-BUDGET` and one of `NAME` with the budget as alias. A second run of the same
weights finds its versions again. A logged model that lacks the evaluation gets it here: DVC may have taken the
evaluation from its cache, or from another machine, so that evaluate itself never met this MLflow server.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sum.config import Config
from sum.core.figures import tracked_figures
from sum.core.gate import Verdict, decide
from sum.data.protocols import same_rules
from sum.data.verdicts import require_valid
from sum.errors import DataError, MissingInput
from sum.registry import Registry, Version, run_of_weights
from sum.settings import RegisterConfig
from sum.storage import sha256_file, write_json
from sum.tracking import Run

log = logging.getLogger(__name__)

CHECKED = Path("data/checks/evaluation")
CHAMPION = "champion"
OUTPUT = "oracle"


@dataclass(frozen=True, slots=True)
class Measured:
    """One model's figures on the benchmark."""

    figures: dict[str, dict[str, float]]  # task -> data set -> mean over masks and the gate's rounds
    benchmark: str  # names metric, rounds and masks: the same, or figures do not compare


def run(config: Config, *, budget: str) -> Path:
    """Decide, register, write data/registry/BUDGET.json; returns its path.

    Raises MissingInput before the stages that it needs, ValidationFailed when check_evaluation refused the tables,
    DataError when the two evaluations do not compare or are of other weights.
    """
    settings = config.register
    weights = _needed(Path("data/models") / budget / "model.safetensors", maker=f"finetune@{budget}")
    require_valid(CHECKED / f"{budget}.json", reader=f"register@{budget}", maker=f"check_evaluation@{budget}")
    fingerprint = sha256_file(weights)
    if same_rules(["base", budget], reader=f"register@{budget}")[budget]["weights_sha256"] != fingerprint:
        hint = f"Run `dvc repro evaluate@{budget}`."
        raise DataError(f"data/evaluation/{budget} is of other weights than {weights} has now. {hint}")
    base, tuned = measure("base", settings=settings), measure(budget, settings=settings)
    if base.benchmark != tuned.benchmark:
        hint = f"Run `dvc repro evaluate@base evaluate@{budget}`."
        raise DataError(f"data/evaluation/base and data/evaluation/{budget} hold different masks. {hint}")
    verdict = decide(base.figures, tuned.figures, min_gain=settings.min_gain, tolerance=settings.tolerance)
    report = _register(
        config, budget=budget, weights=weights, fingerprint=fingerprint, verdict=verdict, benchmark=tuned.benchmark
    )
    path = Path("data/registry") / f"{budget}.json"
    gate = {"metric": settings.metric, "rounds": settings.rounds, "output": OUTPUT}
    write_json(path, _figures(verdict, base=base, tuned=tuned) | report | gate)
    log.info("%s is %s: %s", budget, report["verdict"], "; ".join(verdict.reasons))
    return path


def measure(model: str, *, settings: RegisterConfig) -> Measured:
    """Read data/evaluation/MODEL/rows.parquet: a data set's mean of the gate's metric over its masks and rounds.

    Raises DataError when a round is not there.
    """
    import pandas as pd

    path = _needed(Path("data/evaluation") / model / "rows.parquet", maker=f"evaluate@{model}")
    rows = pd.read_parquet(path, columns=["task", "dataset", "mask_id", "round", "output", settings.metric])
    rows = rows[(rows["output"] == OUTPUT) & rows["round"].isin(settings.rounds)]
    absent = sorted(set(settings.rounds) - set(rows["round"]))
    if absent:
        raise DataError(f"{path}: no rounds {absent}; params.yaml: register.rounds exceed evaluate.rounds")
    means = rows.groupby(["task", "dataset"], sort=True)[settings.metric].mean()
    figures: dict[str, dict[str, float]] = {}
    for task, dataset, value in means.reset_index().itertuples(index=False):
        figures.setdefault(str(task), {})[str(dataset)] = float(value)
    masks = "\n".join(sorted(set(rows["mask_id"])))
    about = json.dumps([settings.metric, settings.rounds, hashlib.sha256(masks.encode()).hexdigest()])
    return Measured(figures, hashlib.sha256(about.encode()).hexdigest()[:16])


def _register(
    config: Config, *, budget: str, weights: Path, fingerprint: str, verdict: Verdict, benchmark: str
) -> dict[str, Any]:
    """Versions, tags and aliases; returns what the JSON tells about them."""
    tracking = config.tracking
    own = f"{tracking.model}-ft-{budget}"
    logged = run_of_weights(
        weights,
        uri=tracking.uri,
        experiment=tracking.experiment,
        name=own,
        fingerprint=fingerprint,
        run_id=_run_id(weights.parent),
    )
    registry = Registry(tracking.uri)
    _complete(registry, logged, budget=budget)
    tags = {
        "budget": budget,
        "verdict": _word(verdict),
        "overall": f"{verdict.tuned:.6f}",
        "base": f"{verdict.base:.6f}",
        "benchmark": benchmark,
    }
    versions = {
        name: registry.register(str(logged.model_id), run_id=logged.id, name=name, tags=tags)
        for name in (own, tracking.model)
    }
    registry.point(tracking.model, alias=budget, number=versions[tracking.model].number)
    for name, version in versions.items():
        _crown(registry, version, verdict=verdict, only_if_better=name == tracking.model)
    return {
        "budget": budget,
        "verdict": _word(verdict),
        "reasons": list(verdict.reasons),
        "run_id": logged.id,
        "model_id": logged.model_id,
        "weights": fingerprint,
        "versions": {name: version.number for name, version in versions.items()},
    }


def _complete(registry: Registry, logged: Run, *, budget: str) -> None:
    """See that data/evaluation/BUDGET stands on the logged model, as it does when evaluate has just logged it."""
    folder, maker = Path("data/evaluation") / budget, f"evaluate@{budget}"
    summary, protocol = (_read(_needed(folder / f"{name}.json", maker=maker)) for name in ("summary", "protocol"))
    wanted, digest = tracked_figures(summary), str(protocol["benchmark"])
    there = registry.figures(str(logged.model_id), digest=digest)
    if any(there.get(name, {}).get(key) != value for name, row in wanted.items() for key, value in row.items()):
        logged.log_evaluation(wanted, digest=digest)


def _crown(registry: Registry, version: Version, *, verdict: Verdict, only_if_better: bool) -> None:
    """Move the alias champion to a promoted version; a refused one loses it and says why in the tag `refused`."""
    if not verdict.promoted:
        registry.drop(version.name, alias=CHAMPION, number=version.number)
        registry.tag(version, key="refused", value="; ".join(verdict.reasons))
        return
    registry.untag(version, key="refused")
    holder = registry.at(version.name, alias=CHAMPION)
    if only_if_better and holder is not None and _as_good(holder, version):
        return
    registry.point(version.name, alias=CHAMPION, number=version.number)


def _as_good(holder: Version, rival: Version) -> bool:
    """Whether the holder was measured on the same benchmark and is not worse there."""
    if holder.tags.get("benchmark") != rival.tags["benchmark"]:
        return False
    return float(holder.tags["overall"]) >= float(rival.tags["overall"])


def _figures(verdict: Verdict, *, base: Measured, tuned: Measured) -> dict[str, Any]:
    def pair(before: float, after: float) -> dict[str, float]:
        return {"base": before, "tuned": after, "gain": after - before}

    return {
        "overall": pair(verdict.base, verdict.tuned),
        "tasks": {task: pair(*values) for task, values in verdict.tasks.items()},
        "datasets": {
            name: pair(base.figures[task][name], value)
            for task, row in tuned.figures.items()
            for name, value in row.items()
        },
    }


def _word(verdict: Verdict) -> str:
    return "promoted" if verdict.promoted else "refused"


def _run_id(folder: Path) -> str | None:
    """The MLflow run that finetune wrote down, if it did."""
    path = folder / "run.json"
    if not path.is_file():
        return None
    found = _read(path).get("run_id")
    return str(found) if found else None


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _needed(path: Path, *, maker: str) -> Path:
    if not path.is_file():
        raise MissingInput(path, reader="register", maker=maker)
    return path
