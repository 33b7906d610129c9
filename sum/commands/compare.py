"""`python -m sum compare A B [C ...]`: any models on this project's test sets, side by side, the first as the base.

Each is put through the suite of params.yaml (`evaluate`), unless that has been done: evaluations of the pipeline and of
earlier comparisons are found again by weights and protocol. MLflow and data/evaluation are left alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    from sum.commands.compare_models import groups_of
    from sum.commands.compare_pages import FILES, write
    from sum.config import load_config
    from sum.errors import ConfigError

    out = options.out
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= FILES):
        raise ConfigError(f"--out {out}: something else lies there; name a new folder, or one of an earlier compare")
    settings = [word for word in options.words if "=" in word]
    config = load_config(settings)
    words = [word for word in options.words if "=" not in word]
    groups = groups_of(words, options.seeds, config=config, work=WORK)
    refuse_other_rules(groups, config=config, force=options.force)
    folders = {label: [_evaluated(config, model) for model in models] for label, models in groups.items()}
    return write(config, folders, groups=groups, force=options.force, out=options.out)


def refuse_other_rules(groups: Mapping[str, Sequence[Named]], *, config: Config, force: bool) -> None:
    """Raise DataError, unless forced, before an hour of evaluation shows that it cannot be compared."""
    from sum.commands.compare_pages import refuse
    from sum.data.protocols import read_protocol
    from sum.stages.evaluate import read_benchmark

    benchmark = read_benchmark()
    told = {}
    for label, models in groups.items():
        for number, model in enumerate(models, 1):
            name = label if len(models) == 1 else f"{label} {number}"
            if model.evaluation is not None:
                told[name] = read_protocol(model.evaluation, reader="compare")
            else:
                told[name] = wanted_protocol(config, model, benchmark)
    refuse(told, force=force)


def wanted_protocol(config: Config, model: Named, benchmark: Manifest) -> dict[str, object]:
    """What the evaluation of these weights would say, or says, of its rules."""
    from sum.stages import evaluate

    assert model.weights is not None
    return evaluate.protocol_of(config, evaluate.Subject(model.label, model.weights, model.backbone), benchmark)


def _evaluated(config: Config, model: Named) -> Path:
    """The folder of the model's evaluation, made if there is none."""
    from sum.data.protocols import differences, read_protocol
    from sum.stages import evaluate
    from sum.stages.common import fingerprint

    if model.evaluation is not None:
        return model.evaluation
    assert model.weights is not None
    benchmark = evaluate.read_benchmark()
    wanted = wanted_protocol(config, model, benchmark)
    own = {key: value for key, value in wanted.items() if key != "model"}
    place = WORK / "evaluations" / fingerprint(own)
    for folder in (place, *sorted(evaluate.OUT.glob("[!.]*"))):  # with a dot: what a kill has left
        if not (folder / "protocol.json").is_file():
            continue
        there = read_protocol(folder, reader="compare")
        same = all(there.get(key) == wanted[key] for key in ("weights_sha256", "code"))
        if same and not differences(there, wanted):
            return folder
    subject = evaluate.Subject(model.label, model.weights, model.backbone)
    done = evaluate.examine(config, subject, benchmark, out=place)
    assert done is not None  # only one of several processes gets None, and this starts none
    return place
