"""`python -m sum remove NAME`: undo `python -m sum add NAME`. The user's own files are never deleted.

The folder data/raw/NAME goes only when `add` made it of a folder elsewhere and nothing in it was changed or added.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import yaml

from sum.commands.add import HIDDEN, MARK, RAW, dvc, lines_of, users
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
    lines = lines_of(before)
    mine = [text for text in lines if text.rstrip().endswith(MARK.format(name=name))]
    file = RAW / f"{name}.dvc"
    if not mine and not file.is_file():
        raise ConfigError(f"remove: params.yaml has no line that `python -m sum add {name}` wrote")
    names = {text.split(":")[0].strip() for text in mine}
    hidden = re.compile(rf"^( +){HIDDEN}(?=({re.escape(name)}(_\w+)?):)")  # a placeholder that `add` put out of use
    back = {found[2] for text in lines if (found := hidden.match(text))}  # budgets may go on using their names
    if using := users(before, names - back):
        gone = ", ".join(f"'{one}'" for one in sorted(names - back) if users(before, [one]))
        remedy = "put another set into its place there, or take it out, first"
        raise ConfigError(f"remove: {gone} is used by {', '.join(using)} of {PARAMS}; {remedy}")
    after = "".join(hidden.sub(r"\1", text) for text in lines if text not in mine).encode()
    check(after, source=str(PARAMS))
    folder = RAW / name
    ours = file.is_file() and is_copy(file, folder)
    if file.is_file():
        dvc("remove", str(file))
    write_atomic(PARAMS, after)
    if ours:
        shutil.rmtree(folder)
    left = f" Its copy {folder} is deleted; the folder it was made of stays as it is." if ours else ""
    if folder.exists():
        left = f" The folder {folder} stays: delete it yourself if it is not needed."
    return f"{', '.join(sorted(names)) or name}: taken out of params.yaml and of DVC.{left}\n"


def is_copy(file: Path, folder: Path) -> bool:
    """Whether `folder` holds exactly what `add` put there, and the user's files lie elsewhere. file: its .dvc file."""
    tree = yaml.safe_load(file.read_bytes())
    # `dvc add` after an edit leaves `meta` as it is, so another sum is the user's work
    if (tree.get("meta") or {}).get("copied") != tree["outs"][0].get("md5", "") or not folder.is_dir():
        return False
    count = sum(not path.is_dir() for path in folder.rglob("*"))  # what .dvcignore names is not seen by DVC
    return bool(count == tree["outs"][0].get("nfiles")) and not json.loads(dvc("status", "--json", str(file)))
