"""The Prefect flow `sum`, deployment `ablation`: labels by DVC, then `python -m sum ablate` with a live log.

The grid is no stage of DVC: its runs are many, resume by themselves and change with every edit of the grid, and a stage
has fixed outputs that one change makes anew. See docs/ablation.md.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import pandas as pd
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.dvc import run_command
from flows.pipeline import NO_FLOW, dvc_stage, worth_retrying
from sum.cli import STAGES
from sum.commands.ablate import OUT

LAST = "check_labels"


def stages_before() -> list[str]:
    """DVC's names of the stages that an ablation's runs share, in order."""
    names = [name for name in STAGES if name not in NO_FLOW]
    return [*takewhile(lambda name: name != LAST, names), LAST]


@task(
    name="ablate",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=worth_retrying,
)
def ablate(words: list[str]) -> None:
    """`python -m sum ablate`; its lines are the task's log. It goes on where a try before it stopped."""
    run_command(["ablate", *words], project=Path.cwd(), tell=get_run_logger().info)


@flow(name="sum")
def ablation_flow(
    settings: list[str] | None = None, only: list[str] | None = None, out: str = str(OUT), jobs: int | None = None
) -> dict[str, str]:
    """Make and compare the rows of params.yaml's `ablation`; returns stage -> what DVC did.

    settings: key=value for all of them; only, out, jobs: as the options of `python -m sum ablate`.
    """
    done = {stage: str(dvc_stage(stage)) for stage in stages_before()}
    words = [*(settings or []), "--out", out, *(["--jobs", str(jobs)] if jobs else [])]
    folder = Path.cwd() / out
    before = changed(folder)
    try:
        ablate([*words, *(["--only", *only] if only else [])])
    finally:
        if changed(folder) != before:  # else they are of another call: this one was refused, or ended before them
            show(folder)
    return done


def changed(folder: Path) -> int | None:
    """When tables were last written in nanoseconds, None without them."""
    told = folder / "tables.md"
    return told.stat().st_mtime_ns if told.is_file() else None


def show(folder: Path) -> None:
    """Put the tables where Prefect's pages show them: those of the rows that are done, even when others failed."""
    told, costs = folder / "tables.md", folder / "cost.csv"
    if told.is_file():
        page = f"Page: {(folder / 'index.html').as_uri()}\n\n{told.read_text(encoding='utf-8')}"
        create_markdown_artifact(page, key="ablation-tables", description="Methods and architectures side by side")
    if costs.is_file():
        lines = pd.read_csv(costs, dtype=str, keep_default_na=False)
        table = [dict(zip(lines.columns, line, strict=True)) for line in lines.to_numpy().tolist()]
        create_table_artifact(table, key="ablation-cost", description="What each run of the ablation cost")
