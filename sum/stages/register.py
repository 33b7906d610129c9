"""Register a tuned model; the gate of params.yaml decides whether it becomes champion.

In: data/models/BUDGET, data/evaluation/base and data/evaluation/BUDGET. Out: data/registry/BUDGET.json (the verdict
with its table), a version of `NAME-ft-BUDGET` and one of `NAME` with the budget as alias; the table and the verdict
with the run, below gate/. A second run of the same weights finds its versions again. A logged model that lacks the
evaluation gets it here: DVC may have taken the evaluation from its cache, or from another machine, so that evaluate
itself never met this MLflow server.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from sum.champion import Standing, settle
from sum.config import Config
from sum.core.figures import tracked_figures
from sum.core.gate import GAIN, Change, Limits, Verdict, decide
from sum.data.paired import OUTPUT, paired, read_tables
from sum.data.protocols import same_rules
from sum.data.verdicts import require_valid
from sum.errors import DataError, MissingInput
from sum.registry import Registry, run_of_weights
from sum.settings import RegisterConfig
from sum.storage import sha256_file, write_json
from sum.tracking import Run, experiment_id

log = logging.getLogger(__name__)

CHECKED = Path("data/checks/evaluation")
EVALUATION = Path("data/evaluation")
DIGITS = 6  # of the figures in JSON and CSV, as in summary.json
Report = dict[str, Any]


def run(config: Config, *, budget: str) -> Path:
    """Decide, register, write data/registry/BUDGET.json; returns its path.

    Raises MissingInput before the stages that it needs, ValidationFailed when check_evaluation refused the tables,
    DataError when the two evaluations do not compare or are of other weights.
    """
    weights = _needed(Path("data/models") / budget / "model.safetensors", maker=f"finetune@{budget}")
    require_valid(CHECKED / f"{budget}.json", reader=f"register@{budget}", maker=f"check_evaluation@{budget}")
    fingerprint = sha256_file(weights)
    rules = same_rules(["base", budget], reader=f"register@{budget}")[budget]
    if rules["weights_sha256"] != fingerprint:
        hint = f"Run `dvc repro evaluate@{budget}`."
        raise DataError(f"data/evaluation/{budget} is of other weights than {weights} has now. {hint}")
    folders = EVALUATION / "base", EVALUATION / budget
    verdict = judge(*folders, rules, settings=config.register, seed=config.seed)
    report = as_report(verdict, settings=config.register) | {"budget": budget, "weights": fingerprint}
    report |= _register(config, weights=weights, report=report, benchmark=_benchmark(rules, config.register))
    path = Path("data/registry") / f"{budget}.json"
    write_json(path, report)
    _tell(report, name=config.tracking.model)
    return path


def judge(before: Path, after: Path, rules: Mapping[str, Any], *, settings: RegisterConfig, seed: int) -> Verdict:
    """The gate's verdict on the evaluation in folder `after` against `before`; rules: their common protocol.json."""
    base, tuned = (read_tables(folder, rules, reader="register") for folder in (before, after))
    table = paired(
        base,
        tuned,
        prompts=rules["prompts"],
        rounds=settings.rounds,
        metric=settings.metric,
        resamples=int(rules["resamples"]),
        seed=seed,
    )
    limits = Limits(
        min_gain=settings.min_gain,
        tolerance=settings.tolerance,
        fidelity_tolerance=settings.fidelity_tolerance,
        min_yield=settings.min_yield,
        require=tuple(settings.require),
    )
    return decide((Change(*row) for row in table.itertuples(index=False, name=None)), limits=limits)


def as_report(verdict: Verdict, *, settings: RegisterConfig) -> Report:
    """What JSON tells of the verdict; `overall`, `tasks` and `datasets` are the table's rows of family gain."""
    table = [{**asdict(row.change), "limit": row.limit, "ok": row.ok} for row in verdict.table]
    table = [{key: _rounded(value) for key, value in row.items()} for row in table]
    figures: dict[str, dict[str, Any]] = {"overall": {}, "task": {}, "dataset": {}}
    for row in table:
        if row["family"] == GAIN:
            figures[row["scope"]][row["name"]] = {key: row[key] for key in ("base", "tuned", "gain")}
    return {
        "verdict": "promoted" if verdict.promoted else "refused",
        "reasons": list(verdict.reasons),
        "not_looked_at": list(verdict.not_looked_at),
        "overall": figures["overall"]["all"],
        "tasks": figures["task"],
        "datasets": figures["dataset"],
        "table": table,
        "metric": settings.metric,
        "rounds": settings.rounds,
        "output": OUTPUT,
    }


def _rounded(value: object) -> object:
    """JSON has no NaN: it is null there."""
    if not isinstance(value, float):
        return value
    return round(value, DIGITS) if value == value else None


def _benchmark(rules: Mapping[str, Any], settings: RegisterConfig) -> str:
    """Names metric, rounds, prompt and masks of the overall figure: the same, or two versions do not compare."""
    about = json.dumps([settings.metric, sorted(settings.rounds), rules["prompts"][0], rules["benchmark"]])
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def _register(config: Config, *, weights: Path, report: Report, benchmark: str) -> Report:
    """Versions, tags, aliases and the run's files; returns what the JSON tells about them."""
    tracking, budget = config.tracking, report["budget"]
    own = f"{tracking.model}-ft-{budget}"
    logged = run_of_weights(
        weights,
        uri=tracking.uri,
        experiment=tracking.experiment,
        name=own,
        fingerprint=report["weights"],
        run_id=_run_id(weights.parent),
    )
    registry = Registry(tracking.uri)
    _complete(registry, logged, budget=budget)
    tags = {
        "budget": budget,
        "verdict": report["verdict"],
        "overall": f"{report['overall']['tuned']:.6f}",
        "base": f"{report['overall']['base']:.6f}",
        "benchmark": benchmark,
    }
    versions = {
        name: registry.register(str(logged.model_id), run_id=logged.id, name=name, tags=tags)
        for name in (own, tracking.model)
    }
    registry.point(tracking.model, alias=budget, number=versions[tracking.model].number)
    standings = {
        name: settle(
            registry,
            version,
            promoted=report["verdict"] == "promoted",
            reasons=report["reasons"],
            override=config.register.override.strip(),
            against_holder=name == tracking.model,
        )
        for name, version in versions.items()
    }
    told = {
        "experiment_id": experiment_id(logged.client, tracking.experiment),
        "run_id": logged.id,
        "model_id": logged.model_id,
        "versions": {name: version.number for name, version in versions.items()},
        "override": standings[tracking.model].override,
        "champion": _champion(standings[tracking.model]),
    }
    logged.log_text(pd.DataFrame(report["table"]).to_csv(index=False), name="gate/table.csv")
    verdict = {key: value for key, value in (report | told).items() if key != "table"}
    logged.log_text(json.dumps(verdict, indent=2), name="gate/verdict.json")
    return told


def _champion(standing: Standing) -> Report:
    """Who is champion now, and why: not always the version that has just passed the gate."""
    champion, previous = standing.champion, standing.previous
    return {
        "version": champion and champion.number,
        "budget": champion and champion.tags.get("budget"),
        "previous": previous and previous.number,
        "why": standing.why,
    }


def _tell(report: Report, *, name: str) -> None:
    champion = report["champion"]
    who = f"version {champion['version']} ({champion['budget']})" if champion["version"] else "nobody"
    log.info("%s is %s: %s", report["budget"], report["verdict"], "; ".join(report["reasons"]))
    if report["not_looked_at"]:
        log.info("the gate did not look at: %s", "; ".join(report["not_looked_at"]))
    if report["override"] and report["verdict"] == "refused":
        log.warning("%s may be champion against the gate: %s", report["budget"], report["override"])
    log.info("champion of %s is %s: %s", name, who, champion["why"])


def _complete(registry: Registry, logged: Run, *, budget: str) -> None:
    """See that data/evaluation/BUDGET stands on the logged model, as it does when evaluate has just logged it."""
    folder, maker = Path("data/evaluation") / budget, f"evaluate@{budget}"
    summary, protocol = (_read(_needed(folder / f"{name}.json", maker=maker)) for name in ("summary", "protocol"))
    wanted, digest = tracked_figures(summary), str(protocol["benchmark"])
    there = registry.figures(str(logged.model_id), digest=digest)
    if any(there.get(name, {}).get(key) != value for name, row in wanted.items() for key, value in row.items()):
        logged.log_evaluation(wanted, digest=digest)


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
