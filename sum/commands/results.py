"""`python -m sum results`: the results table, and where the report and MLflow are."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from sum.errors import MissingInput

TABLE = Path("data/report/table.md")
LOCAL = "http://127.0.0.1:5000"  # where `make ui` serves
REPORT = Path("data/report/index.html")


def add_arguments(_: argparse.ArgumentParser) -> None:
    """None."""


def run(_: argparse.Namespace) -> str:
    """See `results`."""
    return results()


def results() -> str:
    """The results table, where the report is, and the command that shows the runs in MLflow."""
    from sum.config import load_config
    from sum.registry import START_PAGE

    if not TABLE.is_file():
        raise MissingInput(TABLE, reader="results", maker="report")
    config = load_config()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or config.tracking.uri
    server = uri.rstrip("/") if uri.startswith("http") else LOCAL
    start = "" if uri.startswith("http") else f"`make ui` (or mlflow ui --backend-store-uri {uri}), then "
    lines = [TABLE.read_text().strip(), "", f"Report: {REPORT}", f"MLflow: {start}{server}{START_PAGE}"]
    link = compare_page(Path.cwd(), model=config.tracking.model, budgets=list(config.budgets))
    if link is not None:
        lines.append(f"Compare: {server}{link}")
    return "\n" + "\n".join(lines) + "\n"


def compare_page(project: Path, *, model: str, budgets: list[str]) -> str | None:
    """The path of MLflow's page that compares the newest versions of all budgets; None before two are registered."""
    from sum.registry import compare_link

    paths = [project / "data" / "registry" / f"{budget}.json" for budget in budgets]
    found = [json.loads(path.read_text()) for path in paths if path.is_file()]
    runs = {entry["versions"][model]: entry["run_id"] for entry in found if model in entry["versions"]}
    return compare_link(model, runs) if len(runs) > 1 else None
