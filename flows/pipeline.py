"""The Prefect flow `sum`: each task runs one DVC stage, so a flow and `dvc repro` do the same and share what is done.

DVC decides what has to run; Prefect adds order, retries, live logs, history and artifacts. Its own cache is off: it
could hide a change from DVC. Deployments: prefect.yaml; to serve them: `make serve`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from flows.dvc import Outcome, StageRefused, out_of_date, run_stage
from flows.results import pointers, result_rows
from sum.cli import STAGES
from sum.commands.results import COMPARE, LOCAL, MODELS, mlflow_pages
from sum.config import Config, load_config
from sum.errors import choose
from sum.registry import START_PAGE

NO_FLOW = ("pretrain", "report")  # by hand; when all budgets are done


def stages_for(budget: str) -> list[str]:
    """DVC's names of the stages that make and judge one budget's model, in order."""
    names = []
    for name, stage in STAGES.items():
        if name in NO_FLOW:
            continue
        if stage.per == "model":
            names.append(f"{name}@base")
        names.append(f"{name}@{budget}" if stage.per else name)
    return names


def worth_retrying(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """No second try where the stage said that its input is at fault."""
    return not isinstance(state.data, StageRefused)


@task(
    name="dvc-repro",
    task_run_name="{stage}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=worth_retrying,
)
def dvc_stage(stage: str) -> Outcome:
    """Run one stage of dvc.yaml if it has to; its lines are the task's log."""
    log = get_run_logger()
    outcome = run_stage(stage, project=Path.cwd(), tell=log.info)
    log.info("%s: %s", stage, outcome)
    return outcome


def others(config: Config, *, budget: str) -> list[str]:
    """The stages of the other budgets only: the report sets all models side by side."""
    own = stages_for(budget)
    return [name for other in config.budgets for name in stages_for(other) if name not in own]


@task(name="dvc-status", cache_policy=NO_CACHE, retries=2, retry_delay_seconds=[5, 30])
def stale(stages: list[str]) -> list[str]:
    """Those of `stages` that are out of date. That their files lie there says nothing: numbers may have changed."""
    waits = out_of_date(stages, project=Path.cwd())
    if waits:
        get_run_logger().info("no report: out of date are %s; `dvc repro` makes all", ", ".join(waits))
    return waits


@flow(name="sum")
def sum_flow(budget: str = "large") -> dict[str, str]:
    """Make, evaluate and register the model of one budget; returns stage -> what DVC did."""
    config = load_config()
    choose(config.budgets, budget, key="budgets")
    done = {stage: dvc_stage(stage) for stage in stages_for(budget)}
    waits = stale(others(config, budget=budget))
    if not waits:
        done["report"] = dvc_stage("report")
    show(Path.cwd(), config, budget=budget, waits=waits)
    return {stage: str(outcome) for stage, outcome in done.items()}


def show(project: Path, config: Config, *, budget: str, waits: list[str]) -> None:
    """Put results and links where Prefect's pages show them; waits: what must run before there can be a report."""
    budgets = list(config.budgets)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or config.tracking.uri
    server = uri.rstrip("/") if uri.startswith("http") else LOCAL
    pages = mlflow_pages(project, model=config.tracking.model, budgets=budgets)
    name = re.sub(r"[^a-z0-9-]", "-", budget.lower())  # what Prefect takes as a key
    rows = result_rows(project, models=["base", *budgets])
    create_table_artifact(rows, key=f"results-{name}", description="Oracle output, mean over all data sets, %")
    links = pointers(project, budget=budget, server=server, pages=pages, waits=waits)
    create_markdown_artifact(links, key=f"links-{name}")
    create_link_artifact(f"{server}{pages.get(MODELS, START_PAGE)}", link_text="MLflow: all models", key="mlflow")
    if COMPARE in pages:
        create_link_artifact(f"{server}{pages[COMPARE]}", link_text="MLflow: versions", key="mlflow-compare")
