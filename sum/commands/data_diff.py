"""`python -m sum data-diff REV1 REV2`: what changed between two versions of the data, and the models of either."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from sum.data.differences import Change, Group
    from sum.registry import Training

WIDTH = 150  # columns of a file or pipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind the command's name."""
    parser.add_argument("old", metavar="REV1", help="a git revision: commit, tag, branch")
    parser.add_argument("new", metavar="REV2", help="another, or `workspace` for what lies in data/manifest now")
    parser.add_argument("--json", type=Path, help="write all of it there")


def run(options: argparse.Namespace) -> str:
    """Compare the manifests of two revisions, set by set, and list the models that were trained on either.

    Raises DataError when a revision or its manifest cannot be had; TrackingError, after the comparison was printed and
    written, when MLflow does not answer.
    """
    from sum.config import load_config
    from sum.data.differences import differences
    from sum.storage import write_json
    from sum.versions import manifest_of

    config = load_config()
    console = Console(width=None if sys.stdout.isatty() else WIDTH, markup=False, highlight=False)
    with tempfile.TemporaryDirectory(prefix="sum-data-diff-") as place:
        folders = {name: manifest_of(name, into=Path(place)) for name in (options.old, options.new)}
        changes = differences(folders[options.old], folders[options.new])
        console.print(_changes(changes, title=f"data: {options.old} to {options.new}"))
        tree = {"old": options.old, "new": options.new}
        sets = [{"dataset": group[0], "task": group[1], **change.as_json()} for group, change in changes.items()]
        if options.json:
            write_json(options.json, {**tree, "sets": sets})
        models = _models(config.tracking.uri, experiment=config.tracking.experiment, folders=folders)
    if models:
        console.print(_trained(models))
    else:
        console.print("models: MLflow knows none that was trained on the data of either.")
    if options.json:
        rows = [{"run_id": training.run_id, "budget": training.budget, "on": on} for training, on in models]
        write_json(options.json, {**tree, "sets": sets, "models": rows})
    return ""


def _models(uri: str, *, experiment: str, folders: Mapping[str, Path]) -> list[tuple[Training, list[str]]]:
    """Trainings on the data of these revisions (name -> folder), and of which."""
    from sum.data.differences import fingerprints
    from sum.mlflow_client import URI
    from sum.registry import trainings

    where = os.environ.get(URI) or uri
    if where.startswith("sqlite:///") and not Path(where.removeprefix("sqlite:///")).exists():
        return []  # asking would make an empty database
    found = trainings(uri, experiment=experiment)
    choices = {training.datasets for training in found if training.datasets}
    on: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for name, folder in folders.items() if choices else ():
        for datasets, fingerprint in fingerprints(folder, choices, reader="data-diff").items():
            on.setdefault((datasets, fingerprint), []).append(name)
    rows = [(training, on.get((training.datasets, training.data), [])) for training in found]
    return [(training, names) for training, names in rows if names]


def _changes(changes: Mapping[Group, Change], *, title: str) -> Table:
    """A row a data set and task that changed."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("data set")
    table.add_column("task")
    for head in ("images +", "-", "altered", "masks +", "-", "altered"):
        table.add_column(head, justify="right")
    table.add_column("such as", overflow="fold")
    changed = {group: change for group, change in changes.items() if change.any}
    for (dataset, task), change in changed.items():
        counts = [
            counter[kind] for counter in (change.images, change.masks) for kind in ("added", "removed", "altered")
        ]
        examples = (f"{kind} {', '.join(ids)}" for kind, ids in change.first.items())
        table.add_row(dataset, task, *(f"{count:,}" for count in counts), "\n".join(examples))
    table.caption = f" {len(changed)} of {len(changes)} sets changed"
    table.caption_justify = "left"
    return table


def _trained(models: Sequence[tuple[Training, list[str]]]) -> Table:
    table = Table(title="models", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("run", "budget", "state", "registered as", "trained on the data of"):
        table.add_column(head, overflow="fold")
    for training, names in models:
        versions = "\n".join(training.versions) or "-"
        table.add_row(training.run_id, training.budget, training.status.lower(), versions, " and ".join(names))
    return table
