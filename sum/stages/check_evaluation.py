"""Stage check_evaluation: the tables of base and of one budget against their expectations, before the gate reads them.

A broken expectation stops the run; the report is written either way.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from sum.data.evaluation_checks import check_evaluation
from sum.data.protocols import read_protocol
from sum.data.score_tables import games_of
from sum.errors import DataError, ValidationFailed
from sum.settings import Config, EvaluateConfig
from sum.storage import write_json

MANIFEST = Path("data/manifest")
EVALUATION = Path("data/evaluation")
OUT = Path("data/checks/evaluation")
DOCS = Path("work/checks/evaluation")
BASE = "base"


def run(config: Config, *, budget: str) -> Path:
    """Check data/evaluation/{base,BUDGET}; write data/checks/evaluation/BUDGET.json and HTML pages; returns the former.

    Raises MissingInput before the stages that make them, DataError when they were made by other settings than these,
    and ValidationFailed, after all is written, naming the expectations and the first rows that break them.
    """
    docs, path = DOCS / budget, OUT / f"{budget}.json"
    asked = config.evaluate
    for model in (BASE, budget):
        _same_settings(EVALUATION / model, asked)
    games = games_of(asdict(asked))
    report = check_evaluation(MANIFEST, EVALUATION, models=[BASE, budget], rounds=asked.rounds, games=games, docs=docs)
    write_json(path, report.as_json())
    if report.failed:
        raise ValidationFailed(report.complaint(docs / "index.html"))
    return path


def _same_settings(folder: Path, asked: EvaluateConfig) -> None:
    """Raise DataError when an evaluation had other rounds or games than are asked for: its table could not pass."""
    there = read_protocol(folder, reader="check_evaluation")
    there |= {"everything": bool(there.get("everything"))}  # the generator's settings
    for key in ("rounds", "prompts", "unspecified", "everything", "fidelity"):
        had, wanted = there.get(key), getattr(asked, key)
        if had != wanted:
            raise DataError(
                f"{folder} was made with evaluate.{key}={had}, and {wanted} is asked for: give the same key=value "
                f"here, or run `dvc repro evaluate@{folder.name}`."
            )
