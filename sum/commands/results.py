"""`python -m sum results`: the results table, and where the report and MLflow are."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from pathlib import Path

from sum.errors import MissingInput

TABLE = Path("data/report/table.md")
LOCAL = "http://127.0.0.1:5000"  # where `make ui` serves
REPORT = Path("data/report/index.html")
MODELS, COMPARE = "Models", "Compare"  # pages of MLflow


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
    pages = mlflow_pages(Path.cwd(), model=config.tracking.model, budgets=list(config.budgets))
    lines += [f"{name}: {server}{path}" for name, path in pages.items()]
    return "\n" + "\n".join(lines) + "\n"


def mlflow_pages(project: Path, *, model: str, budgets: Iterable[str]) -> dict[str, str]:
    """Name -> path of the pages of MLflow that lay models side by side, as far as stage register got.

    MODELS: the experiment's models, the base among them, by data set. COMPARE: the newest versions of all budgets.
    """
    from sum.registry import compare_link, models_link

    paths = [project / "data" / "registry" / f"{budget}.json" for budget in budgets]
    told = [json.loads(path.read_text()) for path in paths if path.is_file()]
    found = {}
    if told and "experiment_id" in told[-1]:  # an older version of register did not tell
        found[MODELS] = models_link(told[-1]["experiment_id"])
    runs = {entry["versions"][model]: entry["run_id"] for entry in told if model in entry["versions"]}
    if len(runs) > 1:
        found[COMPARE] = compare_link(model, runs)
    return found
