"""Stage validate: the manifest against its expectations; a broken one stops the run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from sum.data.checks import Limits, Report, check_manifest
from sum.data.records import read_manifest
from sum.errors import ValidationFailed
from sum.settings import Config
from sum.storage import write_json

MANIFEST = Path("data/manifest")
OUT = Path("data/validation")
DOCS = Path("work/validation/docs")


def run(config: Config) -> Path:
    """Check data/manifest, write report.json and the HTML pages; returns the folder of the report.

    Raises ValidationFailed, after both are written, naming the expectations and the first rows that break them.
    """
    report = check_manifest(
        read_manifest(MANIFEST, reader="validate"),
        splits={name: entry.split for name, entry in config.datasets.items()},
        budgets={name: [*entry.human, *entry.unlabelled] for name, entry in config.budgets.items()},
        limits=Limits(**asdict(config.validate)),
        docs=DOCS,
    )
    write_json(OUT / "report.json", report.as_json())
    if report.failed:
        raise ValidationFailed(_complaint(report))
    return OUT


def _complaint(report: Report) -> str:
    """The failed expectations, each with its rows."""
    lines = [f"{len(report.failed)} of {len(report.outcomes)} expectations are not met; see {DOCS / 'index.html'}"]
    for outcome in report.failed:
        found = f"the check could not run: {outcome.error}" if outcome.error else f"{outcome.unexpected} row(s)"
        lines += [f"{outcome.table}: {outcome.rule}: {found}", *(f"  {row}" for row in outcome.rows)]
        if outcome.unexpected > len(outcome.rows):
            lines.append(f"  and {outcome.unexpected - len(outcome.rows)} more")
    return "\n".join(lines)
