"""What a flow shows when it is done: a row a model, and where to look. Reads what evaluate and register wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sum.commands.results import LOCAL
from sum.registry import START_PAGE

Row = dict[str, str]


def result_rows(project: Path, *, models: Iterable[str]) -> list[Row]:
    """One row a model that has been evaluated: its overall IoUs in per cent and the gate's verdict."""
    rows = []
    for model in models:
        summary = _read(project / "data" / "evaluation" / model / "summary.json")
        if summary is None:
            continue
        ious = {
            key: value["mean"] for key, value in summary["overall"].items() if "iou@" in key
        }  # not counts of clicks
        figures = {key: f"{100 * value:.2f}" for key, value in ious.items()}
        verdict = _read(project / "data" / "registry" / f"{model}.json") or {}
        rows.append({"model": model, **figures, "gate": verdict.get("verdict", "-")})
    return rows


def pointers(project: Path, *, budget: str, server: str, pages: Mapping[str, str], waits: Sequence[str]) -> str:
    """Markdown: report, MLflow, versions, the reasons of the gate, and who is champion.

    server: MLflow's address; pages: name -> path of those of its pages that lay models side by side; waits: the stages
    that are out of date, so that the report was not made.
    """
    report = project / "data" / "report" / "index.html"
    lines = [f"- Report: {report.as_uri()}"] if report.is_file() else []
    if waits:
        old = "an older one; " if lines else ""
        lines = [*lines, f"- Report of this run: {old}out of date are {', '.join(waits)} (`dvc repro` makes all)"]
    lines.append(f"- MLflow: {server}{START_PAGE}{' after `make ui`' if server == LOCAL else ''}")
    lines += [f"- MLflow, {name.lower()}: {server}{path}" for name, path in pages.items()]
    verdict = _read(project / "data" / "registry" / f"{budget}.json")
    if verdict is not None:
        versions = ", ".join(f"{name} version {number}" for name, number in verdict["versions"].items())
        lines.append(f"- Registered: {versions}; {verdict['verdict']}: {'; '.join(verdict['reasons'])}")
        champion = verdict["champion"]
        who = f"version {champion['version']} ({champion['budget']})" if champion["version"] else "nobody"
        lines.append(f"- Champion after it: {who}: {champion['why']}")
    return "\n".join(lines)


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None
