"""`python -m sum use FILE`: take another complete file as params.yaml."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from sum.errors import ConfigError, DataError
from sum.storage import S3, write_atomic

if TYPE_CHECKING:
    from sum.config import Config

PARAMS = Path("params.yaml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind the command's name."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a complete params file, such as examples/own.yaml")


def run(options: argparse.Namespace) -> str:
    """See `use`."""
    return use(options.file)


def use(file: Path) -> str:
    """Take `file` as params.yaml if it is valid; returns what was done.

    The old content is kept next to it, under a name of its own, unless it is one of examples/. Raises ConfigError and
    changes nothing when `file` cannot be used.
    """
    if not file.is_file():
        shipped = ", ".join(str(path) for path in sorted(Path("examples").glob("*.yaml"))) or "none"
        raise ConfigError(f"{file} does not exist; shipped: {shipped}")
    new = file.read_bytes()
    todo = next_step(check(new, source=str(file)))
    old = PARAMS.read_bytes() if PARAMS.is_file() else None
    if old == new:
        return f"params.yaml is {file} already. {todo}\n"
    kept = _keep(old) if old is not None else None
    write_atomic(PARAMS, new)
    return f"params.yaml is now {file}{f'; the old one is {kept}' if kept else ''}. {todo}\n"


def next_step(config: Config) -> str:
    """What the pipeline lacks on this disk, or that it can run. What lies in a bucket is not asked for here."""
    steps = []
    gone = {name: entry.root for name, entry in config.datasets.items() if _is_missing(entry.root)}
    if config.demo.scenes:  # stage demo draws these
        gone = {name: root for name, root in gone.items() if not Path(root).is_relative_to("data/raw/demo")}
    if gone:
        places = ", ".join(f"{name} ({root})" for name, root in gone.items())
        steps.append(f"there is no data yet for {places}: put it there, or `python -m sum add NAME PATH`")
    if _is_missing(config.model.checkpoint):
        steps.append(f'put the weights at {config.model.checkpoint}, see README, "The real SAM"')
    return "\n".join(["Before `make repro`:", *(f"- {step}" for step in steps)]) if steps else "Run `make repro`."


def _is_missing(uri: str) -> bool:
    return not uri.startswith(S3) and not Path(uri).exists()


def check(content: bytes, *, source: str) -> Config:
    """`content` loaded exactly as params.yaml would be. Raises ConfigError naming `source` and the key."""
    from sum.config import check_config, compose

    try:
        scalars = [token for token in yaml.scan(content.decode()) if isinstance(token, yaml.ScalarToken)]
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: no UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from error
    for token in scalars:  # their values, as Hydra sees them: a `#` may be quoted, and `$` escaped
        if "${" in token.value:
            reason = "DVC would record it literally and miss a change"
            raise ConfigError(f"{source}: line {token.start_mark.line + 1}: ${{...}} is not allowed: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, PARAMS.name).write_bytes(content)
        try:
            tree = compose((), folder=Path(folder))
        except ConfigError as error:
            raise ConfigError(str(error).replace("params.yaml", source)) from error
    return check_config(tree, source=source)


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
