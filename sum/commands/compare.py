"""`python -m sum compare A B [C ...]`: any models on this project's test sets, side by side, the first as the base.

Each is put through the suite of params.yaml (`evaluate`), unless that has been done: evaluations of the pipeline and of
earlier comparisons are found again by weights and protocol. MLflow and data/evaluation are left alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sum.commands.compare_models import Named
    from sum.config import Config
    from sum.data.records import Manifest

OUT = Path("data/comparison")
WORK = Path("work/compare")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `compare`."""
    parser.add_argument(
        "words",
        nargs="+",
        metavar="MODEL | key=value",
        help="base, a budget, NAME@ALIAS or NAME/VERSION of MLflow's registry, an id of an MLflow run, a file of "
        "weights (.safetensors, or Meta's .pth), or a folder that evaluate wrote; and numbers of params.yaml, as "
        "evaluate.everything=false",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        action="append",
        default=[],
        metavar="LABEL MODEL",
        help="models that differ in their seed only, as one: means and intervals are over them, too; can be repeated",
    )
    parser.add_argument("--force", action="store_true", help="compare evaluations by different rules, saying which")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of the report ({OUT})")


def run(options: argparse.Namespace) -> str:
    """Evaluate what has not been, write index.html, table.md and table.csv; returns the table and where they are.

    Raises ConfigError for a word that names no model, DataError for evaluations by different rules (without --force)
    or of different masks; otherwise as stage evaluate.
    """
    from sum.commands.compare_models import models_of
    from sum.commands.compare_pages import FILES, refuse, write
    from sum.config import load_config
    from sum.errors import ConfigError
    from sum.stages.evaluate import read_benchmark

    out = options.out
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= FILES):
        raise ConfigError(f"--out {out}: something else lies there; name a new folder, or one of an earlier compare")
    settings = [word for word in options.words if "=" in word]
    config = load_config(settings)
    words = [word for word in options.words if "=" not in word]
    models, seeds = models_of(words, options.seeds, config=config, work=WORK)
    benchmark = read_benchmark()
    rules = {name: _rules(config, model, benchmark) for name, model in models.items()}
    refuse(rules, force=options.force)  # before an hour of evaluation shows it
    folders = {name: _evaluated(config, model, rules[name], benchmark) for name, model in models.items()}
    return write(config, models, folders, seeds=seeds, force=options.force, out=out)


def _rules(config: Config, model: Named, benchmark: Manifest) -> dict[str, Any]:
    """The protocol of an evaluation that is there, or of the one that these weights would get."""
    from sum.data.protocols import read_protocol
    from sum.stages.evaluate import protocol_of

    if model.evaluation is not None:
        return read_protocol(model.evaluation, reader="compare")
    return protocol_of(config, model.subject(), benchmark)


def _evaluated(config: Config, model: Named, rules: Mapping[str, Any], benchmark: Manifest) -> Path:
    """The folder of the model's evaluation, made if there is none by these rules."""
    from sum.data.protocols import differences, read_protocol
    from sum.stages import evaluate
    from sum.stages.common import fingerprint

    if model.evaluation is not None:
        return model.evaluation
    place = WORK / "evaluations" / fingerprint({key: value for key, value in rules.items() if key != "model"})
    for folder in (place, *sorted(evaluate.OUT.glob("[!.]*"))):  # with a dot: what a kill has left
        if not (folder / "protocol.json").is_file():
            continue
        there = read_protocol(folder, reader="compare")
        same = all(there.get(key) == rules[key] for key in ("weights_sha256", "code"))
        if same and not differences(there, rules):
            return folder
    done = evaluate.examine(config, model.subject(), benchmark, out=place)
    assert done is not None  # only one of several processes gets None, and this starts none
    return place
