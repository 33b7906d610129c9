"""`python -m sum remove NAME`: undo `python -m sum add NAME`. The user's own files are never deleted."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import yaml

from sum.commands.add import HIDDEN, MARK, RAW, dvc
from sum.commands.use import PARAMS, check
from sum.errors import ConfigError
from sum.storage import write_atomic


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `remove`."""
    parser.add_argument("name", metavar="NAME", help="as it was given to `add`")


def run(options: argparse.Namespace) -> str:
    """Take out the lines of params.yaml and the .dvc file. Raises ConfigError, and then has changed nothing."""
    name = options.name
    before = PARAMS.read_bytes()
    lines = before.decode().splitlines(keepends=True)
    mine = [text for text in lines if text.rstrip().endswith(MARK.format(name=name))]
    file = RAW / f"{name}.dvc"
    if not mine and not file.is_file():
        raise ConfigError(f"remove: params.yaml has no line that `python -m sum add {name}` wrote")
    names = {text.split(":")[0].strip() for text in mine}
    for budget, entry in (yaml.safe_load(before).get("budgets") or {}).items():
        for used in names & {*entry.get("human", ()), *entry.get("unlabelled", ())}:
            raise ConfigError(f"remove: budgets.{budget} uses '{used}'; take it out of the budget first")
    hidden = re.compile(rf"^( +){HIDDEN}(?={re.escape(name)}(_\w+)?:)")  # a placeholder that `add` put out of use
    after = "".join(hidden.sub(r"\1", text) for text in lines if text not in mine).encode()
    check(after, source=str(PARAMS))
    if file.is_file():
        dvc("remove", str(file))
    write_atomic(PARAMS, after)
    folder = RAW / name
    left = f" The folder {folder} stays: delete it yourself if it is not needed." if Path(folder).exists() else ""
    return f"{', '.join(sorted(names)) or name}: taken out of params.yaml and of DVC.{left}\n"
