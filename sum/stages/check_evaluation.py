"""Stage check_evaluation: the tables of base and of one budget against their expectations, before the gate reads them.

A broken expectation stops the run; the report is written either way.
"""

from __future__ import annotations

from pathlib import Path

from sum.data.evaluation_checks import check_evaluation, games_of
from sum.errors import ValidationFailed
from sum.settings import Config
from sum.storage import write_json

MANIFEST = Path("data/manifest")
EVALUATION = Path("data/evaluation")
OUT = Path("data/checks/evaluation")
DOCS = Path("work/checks/evaluation")
BASE = "base"


def run(config: Config, *, budget: str) -> Path:
    """Check data/evaluation/{base,BUDGET}; write data/checks/evaluation/BUDGET.json and HTML pages; returns the former.

    Raises MissingInput before the stages that make them, and ValidationFailed, after all is written, naming the
    expectations and the first rows that break them.
    """
    docs, path = DOCS / budget, OUT / f"{budget}.json"
    asked = config.evaluate
    games = games_of(prompts=asked.prompts, unspecified=asked.unspecified, everything=asked.everything)
    report = check_evaluation(MANIFEST, EVALUATION, models=[BASE, budget], rounds=asked.rounds, games=games, docs=docs)
    write_json(path, report.as_json())
    if report.failed:
        raise ValidationFailed(report.complaint(docs / "index.html"))
    return path
