"""What the command line can do besides running a stage: switch params.yaml, show the results."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from sum.errors import ConfigError, DataError, MissingInput
from sum.storage import write_atomic

PARAMS = Path("params.yaml")
TABLE = Path("data/report/table.md")
LOCAL = "http://127.0.0.1:5000"  # where `make ui` serves
REPORT = Path("data/report/index.html")


def use(file: Path) -> str:
    """Take `file` as params.yaml if it is valid; returns what was done.

    The old content is kept next to it, under a name of its own, unless it is one of examples/. Raises ConfigError and
    changes nothing when `file` cannot be used.
    """
    if not file.is_file():
        shipped = ", ".join(str(path) for path in sorted(Path("examples").glob("*.yaml"))) or "none"
        raise ConfigError(f"{file} does not exist; shipped: {shipped}")
    new = file.read_bytes()
    check(new, source=str(file))
    old = PARAMS.read_bytes() if PARAMS.is_file() else None
    if old == new:
        return f"params.yaml is {file} already.\n"
    kept = _keep(old) if old is not None else None
    write_atomic(PARAMS, new)
    return f"params.yaml is now {file}{f'; the old one is {kept}' if kept else ''}. Run `make repro`.\n"


def check(content: bytes, *, source: str) -> None:
    """Load `content` exactly as params.yaml would be. Raises ConfigError naming `source` and the key."""
    from sum.config import check_config, compose

    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: no UTF-8 text: {error}") from error
    for number, line in enumerate(lines, 1):
        if "${" in line.partition("#")[0]:
            reason = "DVC would record it literally and miss a change"
            raise ConfigError(f"{source}: line {number}: ${{...}} is not allowed: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, PARAMS.name).write_bytes(content)
        try:
            tree = compose((), folder=Path(folder))
        except ConfigError as error:
            raise ConfigError(str(error).replace("params.yaml", source)) from error
    check_config(tree, source=source)


def _keep(old: bytes) -> Path | None:
    """Save `old` under a free name, once; None when it is a shipped example."""
    if any(path.read_bytes() == old for path in Path("examples").glob("*.yaml")):
        return None
    names = [Path("params.yaml.bak"), *(Path(f"params.yaml.bak{number}") for number in range(2, 1000))]
    for path in names:
        if not path.exists():
            write_atomic(path, old)
            return path
        if path.read_bytes() == old:
            return path
    raise DataError("params.yaml.bak ... params.yaml.bak999 are all taken; remove the ones you do not need")


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
