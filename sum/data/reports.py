"""What came out of the checks: as JSON that never changes without the data, and as pages to read without a network."""

from __future__ import annotations

import html
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REMOTE = re.compile(r"<script\b.*?</script>|<link\b[^>]*>|<img\b[^>]*>|url\('https?://[^)]*'\)", re.DOTALL)
"""What the pages of Great Expectations load from elsewhere, and scripts that need it."""

STYLE = """<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: .5rem 0; }
td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top; }
footer, .ge-navigation-sidebar-container, .btn-group, .card, .modal { display: none; }
.sticky { position: static; }
.fa-times::before, .failed { color: #b00020; }
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

    @property
    def success(self) -> bool:
        """No row breaks the rule, and the check ran."""
        return not self.unexpected and not self.error


@dataclass(frozen=True, slots=True)
class Report:
    """All outcomes, in the order of tables and rules."""

    rows: dict[str, int]  # table -> its rows
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> list[Outcome]:
        """The expectations that were not met."""
        return [outcome for outcome in self.outcomes if not outcome.success]

    def as_json(self) -> dict[str, object]:
        """The same for the same manifest: no times, no machine."""
        tables: dict[str, Any] = {name: {"rows": rows, "checks": {}} for name, rows in self.rows.items()}
        for outcome in self.outcomes:
            entry: dict[str, object] = {"success": outcome.success, "unexpected": outcome.unexpected}
            if not outcome.success:
                entry |= {"rows": list(outcome.rows), "error": outcome.error}
            tables[outcome.table]["checks"][outcome.rule] = entry
        return {
            "success": not self.failed,
            "failed": len(self.failed),
            "expectations": len(self.outcomes),
            "tables": tables,
        }


def write_index(site: Path, outcomes: list[Outcome]) -> None:
    """Make the pages of Great Expectations below `site` readable without a network, and write site/index.html."""
    pages = {path.relative_to(site).parts[1]: path for path in site.glob("validations/**/*.html")}  # by suite
    for path in site.rglob("*.html"):
        text = REMOTE.sub("", path.read_text(encoding="utf-8"))
        path.write_text(text.replace("</head>", f"{STYLE}</head>", 1), encoding="utf-8")
    shutil.rmtree(site / "static", ignore_errors=True)
    links = {table: path.relative_to(site).as_posix() for table, path in pages.items()}
    rows = "".join(_row(outcome, links) for outcome in outcomes)
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Validation</title>{STYLE}</head><body>'
        "<h1>Validation of the manifest</h1>"
        f"<table><tr><th>table</th><th>expectation</th><th></th><th>found</th></tr>{rows}</table></body></html>\n"
    )
    (site / "index.html").write_text(page, encoding="utf-8")


def _row(outcome: Outcome, links: dict[str, str]) -> str:
    """One line of the index."""
    state = "ok" if outcome.success else "failed"
    found = outcome.error or "; ".join((f"{outcome.unexpected} row(s)", *outcome.rows) if outcome.unexpected else ())
    link = f'<a href="{html.escape(links[outcome.table])}">{outcome.table}</a>'
    cells = (link, html.escape(outcome.rule), f'<span class="{state}">{state}</span>', html.escape(found))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
