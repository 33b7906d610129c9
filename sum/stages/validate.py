"""Stage validate: the manifest against its expectations; a broken one stops the run, a warning is listed."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from sum.data.manifest_checks import CopyRules, check_manifest
from sum.data.reports import Report
from sum.data.rules import Limits
from sum.data.tables import BudgetFacts, SetFacts, skipped_counts
from sum.data.verdicts import manifest_fingerprint
from sum.errors import ValidationFailed
from sum.licences import summarise
from sum.settings import BudgetConfig, Config
from sum.storage import write_json

MANIFEST = Path("data/manifest")
OUT = Path("data/validation")
DOCS = Path("work/validation/docs")


def run(config: Config) -> Path:
    """Check data/manifest, write report.json, budgets.json and the HTML pages; returns the folder of the reports.

    Raises ValidationFailed, after all are written, naming the expectations and the first rows that break them.
    """
    batch = config.finetune.optim.images_per_batch
    settings = config.validate
    report = check_manifest(
        MANIFEST,
        sets=_sets(config),
        budgets={name: _facts(entry, batch=batch) for name, entry in config.budgets.items()},
        limits=Limits(
            min_side=settings.min_side,
            max_side=settings.max_side,
            min_area=settings.min_area,
            max_area_share=settings.max_area_share,
            on_copy=settings.on_copy,
        ),
        copies=CopyRules(
            bits=settings.copy_bits, alike=settings.copy_likeness, allowed=tuple(map(tuple, settings.allowed_copies))
        ),
        docs=DOCS,
    )
    write_json(OUT / "report.json", report.as_json() | {"manifest": manifest_fingerprint(MANIFEST)})
    budgets = {name: _about(config, entry) for name, entry in config.budgets.items()}
    write_json(OUT / "budgets.json", budgets)
    _tell(report, budgets)
    if report.failed:
        raise ValidationFailed(report.complaint(DOCS / "index.html"))
    return OUT


def _sets(config: Config) -> dict[str, SetFacts]:
    skipped = skipped_counts(MANIFEST)
    return {
        name: SetFacts(
            split=entry.split, images=entry.expect.images, masks=entry.expect.masks, skipped=skipped.get(name, 0)
        )
        for name, entry in config.datasets.items()
    }


def _facts(entry: BudgetConfig, *, batch: int) -> BudgetFacts:
    """What a batch takes at most from either side, so that no photo is in it twice (sum.data.batches.Mixture)."""
    whole, rest = divmod(batch, entry.human_per_unlabelled + 1)
    human = whole * entry.human_per_unlabelled + min(rest, entry.human_per_unlabelled)
    return BudgetFacts(
        human=entry.human, unlabelled=entry.unlabelled, human_wanted=human, unlabelled_wanted=whole + min(rest, 1)
    )


def _about(config: Config, entry: BudgetConfig) -> dict[str, object]:
    """The sets of a budget and what their licences ask for."""
    licences = {name: config.datasets[name].licence for name in (*entry.human, *entry.unlabelled)}
    sides = {"human": entry.human, "unlabelled": entry.unlabelled}
    return {**sides, "human_per_unlabelled": entry.human_per_unlabelled, "licences": summarise(licences)}


def _tell(report: Report, budgets: dict[str, dict[str, object]]) -> None:
    """Warnings, declared exceptions and budgets for a reader."""
    lines = [f"[yellow]warning[/] {escape(outcome.text)}" for outcome in report.warnings]
    if report.allowed:
        lines += [f"{len(report.allowed)} copies of test images, allowed by validate.allowed_copies"]
        lines += [f"  {escape(copy)}" for copy in report.allowed]
    for name, about in budgets.items():
        lines.append(f"budget {escape(name)}: {', '.join([*about['human'], *about['unlabelled']])}")  # type: ignore[misc]
        lines.append(f"  {escape(str(about['licences']))}")
    if lines:
        Console(soft_wrap=True, highlight=False).print("\n".join(lines))
