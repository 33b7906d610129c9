"""What came out of the checks: as JSON that never changes without the data, and as pages to read without a network."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sum.data.rules import REMEDIES

REMOTE = re.compile(r"<script\b.*?</script>|<link\b[^>]*>|<img\b[^>]*>|url\('https?://[^)]*'\)", re.DOTALL)
"""What the pages of Great Expectations load from elsewhere, and scripts that need it."""

STYLE = """<style>
body { font: 15px/1.45 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; color: #1c1c1c; }
body { margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: .4rem 0; } h2 { font-size: 1.2rem; margin: 1.8rem 0 .5rem; }
table { border-collapse: collapse; margin: .5rem 0; }
td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; }
.figures { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 1rem; }
.figures svg { height: auto; max-width: 100%; }
footer, .ge-navigation-sidebar-container, .btn-group, .card, .modal { display: none; }
.sticky { position: static; }
.fa-times::before, .failed { color: #b00020; font-weight: 600; } .warning { color: #8a4b00; font-weight: 600; }
.fa-check-circle::before, .ok { color: #1b6e2c; }
.fa-times::before { content: "failed"; }
.fa-check-circle::before { content: "ok"; }
</style>"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one expectation."""

    table: str
    rule: str
    unexpected: int  # rows that break it
    rows: tuple[str, ...]  # the first of them: ids, files, values
    error: str  # the check itself failed: nothing is known about the rows
    severity: str = "error"  # error: stops the run; warning: is listed

    @property
    def success(self) -> bool:
        """No row breaks the rule, and the check ran."""
        return not self.unexpected and not self.error

    @property
    def state(self) -> str:
        """ok, warning or failed; a check that could not run has failed, whatever its severity."""
        if self.success:
            return "ok"
        return "warning" if self.severity == "warning" and not self.error else "failed"

    @property
    def text(self) -> str:
        """One line, and one for each of the first rows."""
        found = f"the check could not run: {self.error}" if self.error else f"{self.unexpected} row(s)"
        lines = [f"{self.table}: {self.rule}: {found}", *(f"  {row}" for row in self.rows)]
        if self.unexpected > len(self.rows):
            lines.append(f"  and {self.unexpected - len(self.rows)} more")
        if self.unexpected and self.rule in REMEDIES:
            lines.append(f"  Remedy: {REMEDIES[self.rule]}.")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Report:
    """All outcomes, in the order of tables and rules."""

    rows: dict[str, int]  # table -> its rows
    outcomes: tuple[Outcome, ...]
    allowed: tuple[str, ...] | None = None  # copies of test images that params.yaml declares to be right, where asked

    @property
    def failed(self) -> list[Outcome]:
        """What stops the run."""
        return [outcome for outcome in self.outcomes if outcome.state == "failed"]

    @property
    def warnings(self) -> list[Outcome]:
        """What is only listed."""
        return [outcome for outcome in self.outcomes if outcome.state == "warning"]

    def complaint(self, page: Path) -> str:
        """The failed expectations, each with its rows; page: where they can be read."""
        head = f"{len(self.failed)} of {len(self.outcomes)} expectations are not met; see {page}"
        return "\n".join([head, *(outcome.text for outcome in self.failed)])

    def as_json(self) -> dict[str, object]:
        """The same for the same data: no times, no machine."""
        tables: dict[str, Any] = {name: {"rows": rows, "checks": {}} for name, rows in self.rows.items()}
        for outcome in self.outcomes:
            entry: dict[str, object] = {"success": outcome.success, "unexpected": outcome.unexpected}
            if not outcome.success:
                entry |= {"severity": outcome.severity, "rows": list(outcome.rows), "error": outcome.error}
            tables[outcome.table]["checks"][outcome.rule] = entry
        copies = {} if self.allowed is None else {"count": len(self.allowed), "rows": list(self.allowed)}
        return {
            "success": not self.failed,
            "failed": len(self.failed),
            "warnings": len(self.warnings),
            "expectations": len(self.outcomes),
            **({"allowed_copies": copies} if copies else {}),
            "tables": tables,
        }


def write_index(site: Path, report: Report, *, figures: Sequence[str] = ()) -> None:
    """Make the pages of Great Expectations below `site` readable without a network, and write site/index.html.

    figures: SVG elements shown on it.
    """
    pages = {path.relative_to(site).parts[1]: path for path in site.glob("validations/**/*.html")}  # by suite
    for path in site.rglob("*.html"):
        text = REMOTE.sub("", path.read_text(encoding="utf-8"))
        path.write_text(text.replace("</head>", f"{STYLE}</head>", 1), encoding="utf-8")
    shutil.rmtree(site / "static", ignore_errors=True)
    links = {table: path.relative_to(site).as_posix() for table, path in pages.items()}
    todo = [*report.failed, *report.warnings]
    sizes = ", ".join(f"{count:,} {table}" for table, count in report.rows.items())
    count = len(report.outcomes)
    parts = [
        f"<p>{sizes}: {count} expectations, {len(report.failed)} failed, {len(report.warnings)} with a warning.</p>",
        _table(todo, links) if todo else '<p class="ok">Every expectation is met.</p>',
        f'<h2>What the data look like</h2><div class="figures">{"".join(figures)}</div>' if figures else "",
        _allowed(report.allowed),
        f"<details><summary>All {count} expectations</summary>{_table(report.outcomes, links)}</details>",
    ]
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Validation</title>{STYLE}</head><body>'
        f"<h1>Validation</h1>{''.join(parts)}</body></html>\n"
    )
    (site / "index.html").write_text(page, encoding="utf-8")


def _allowed(copies: Sequence[str] | None) -> str:
    if not copies:
        return ""
    rows = "".join(f"<li>{html.escape(copy)}</li>" for copy in copies)
    return f"<h2>{len(copies)} copies of test images, allowed by validate.allowed_copies</h2><ul>{rows}</ul>"


def _table(outcomes: Sequence[Outcome], links: dict[str, str]) -> str:
    rows = "".join(_row(outcome, links) for outcome in outcomes)
    return f"<table><tr><th>table</th><th>expectation</th><th></th><th>found</th></tr>{rows}</table>"


def _row(outcome: Outcome, links: dict[str, str]) -> str:
    """One line of the index."""
    found = outcome.error or "; ".join((f"{outcome.unexpected} row(s)", *outcome.rows) if outcome.unexpected else ())
    link = f'<a href="{html.escape(links[outcome.table])}">{outcome.table}</a>'
    cells = (
        link,
        html.escape(outcome.rule),
        f'<span class="{outcome.state}">{outcome.state}</span>',
        html.escape(found),
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
