"""An ablation as one HTML file without scripts: what is sure, tables, curves, cost, and what was held equal."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pandas as pd

from sum.ablation import BASE, FULL, Row
from sum.data import published
from sum.data.ablation_findings import Findings
from sum.data.ablation_scores import REFERENCE, Scores
from sum.data.ablation_tables import Table
from sum.data.charts import curves
from sum.data.page_templates import page_templates

Chart = tuple[str, str, bytes]  # file name without its ending, words, PNG


def charts(oracle: Scores, single: Scores) -> list[Chart]:
    """A chart a budget of the full rows (as Figure 5), one of the light-weight ones beside SUM (as Figure 12), and one
    of those with one output beside SUM, all by their single output.

    oracle: of the rows with several outputs; single: of all.
    """
    long, found = oracle.long, list[Chart]()
    unit = "prompts" if single.long["prompt"].iloc[0] == "box" else "points"
    for budget in dict.fromkeys(row.budget for row in single.rows):
        own = [row for row in oracle.rows if row.budget == budget]
        one = [row for row in single.rows if row.budget == budget and row not in own]
        full = [row for row in own if row.arch == FULL]
        light = [row for row in own if row.arch != FULL]
        if full:
            words = f"{budget}: methods over the rounds, all parameters trained (as Figure 5)"
            found.append((f"curves-{budget}", words, curves(_lines(long, full), unit=unit)))
        beside = [row for row in full if row.method == REFERENCE]
        if light:
            words = f"{budget}: light-weight architectures over the rounds (as Figure 12)"
            found.append((f"curves-{budget}-light", words, curves(_lines(long, [*beside, *light]), unit=unit)))
        if one:
            words = f"{budget}: single output over the rounds: architectures that have no other, beside {REFERENCE}"
            found.append((f"curves-{budget}-single", words, curves(_lines(single.long, [*beside, *one]), unit=unit)))
    return found


def _lines(long: pd.DataFrame, rows: Sequence[Row]) -> pd.DataFrame:
    """The table as `curves` wants it: base and rows, called as in the tables."""
    labels = {BASE: BASE} | {row.name: row.label for row in rows}
    parts = [long[long["row"] == name].assign(model=label) for name, label in labels.items()]
    table = pd.concat(parts, ignore_index=True).rename(columns={"task": "name"})
    return table.assign(scope=table["name"].map(lambda name: "overall" if name == "all" else "task"))


def render(
    tables: Sequence[Table],
    drawn: Sequence[Chart],
    *,
    found: Findings,
    facts: Sequence[tuple[str, str]],
    warnings: Sequence[str],
) -> str:
    """The page. found: what differs surely; facts: what was held equal; warnings: what was not."""
    pictures = [(words, base64.b64encode(png).decode()) for _, words, png in drawn]
    return (
        page_templates()
        .get_template("ablation.html.j2")
        .render(tables=tables, pictures=pictures, found=found, facts=facts, warnings=warnings, source=_source(tables))
    )


def markdown(
    tables: Sequence[Table], *, found: Findings, facts: Sequence[tuple[str, str]], warnings: Sequence[str]
) -> str:
    """tables.md."""
    head = ["# Ablation", *([f"**Mind:** {'; '.join(warnings)}."] if warnings else [])]
    head += [f"**{found.caution}.**"] if found.caution else []
    said = f"{found.measure}.\n\n" + "\n".join(f"- {line}" for line in found.sure)
    equal = "\n".join(f"- {name}: {value}" for name, value in facts)
    parts = [*head, "## What is sure", said, *(table.to_markdown() for table in tables), "## What is compared", equal]
    source = _source(tables)
    parts += [f"Published figures: {source}."] if source else []
    return "\n\n".join(parts) + "\n"


def _source(tables: Sequence[Table]) -> str:
    """Of the figures of the paper; '' where none is shown."""
    return published.source() if any(table.published for table in tables) else ""
