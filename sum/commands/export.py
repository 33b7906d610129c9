"""`python -m sum export MODEL FILE`: a tuned model as a plain SAM checkpoint, which segment_anything loads."""

from __future__ import annotations

import argparse
from pathlib import Path

WORK = Path("work/export")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `export`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="base, a budget, NAME@ALIAS or NAME/VERSION of MLflow's registry, an id of an MLflow run, or a file or "
        "folder of weights",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="is made: .pth (Meta's format) or .safetensors")
    parser.add_argument("--task", default="unspecified", help="salient, entity or part: whose vector is folded in")
    parser.add_argument("--base", metavar="FILE", help="of a delta: its base weights")


def run(options: argparse.Namespace) -> str:
    """Write FILE, all at once; says its sha256 and what loads it.

    Raises ConfigError for a FILE that is there or a word that names nothing, CheckpointError for weights that cannot be
    loaded, or that no plain SAM can hold.
    """
    from sum.commands.compare_models import resolve
    from sum.config import load_config
    from sum.errors import ConfigError
    from sum.models.exports import export, loader
    from sum.models.segmenter import unlearnt
    from sum.named_weights import base_of, load
    from sum.stages.common import base_weights

    file: Path = options.file
    if file.exists():
        raise ConfigError(f"export: {file} is there; name a new file")
    config = load_config()
    weights = resolve(options.model, config=config, work=WORK, reader="export").weights
    if weights is None:
        raise ConfigError(f"export: {options.model} is an evaluation, not weights; name a model")
    likely = base_weights(config) if options.base is None and base_of(weights) else None
    loaded = load(weights, base=options.base, likely=likely)
    digest = export(loaded.model, file, task=options.task)
    backbone, told = loaded.model.backbone, unlearnt(loaded.model, options.task)
    text = (
        f"{file}: {backbone} for task {options.task}, from {loaded.weights} (sha256 {loaded.fingerprint})\n"
        f"sha256 {digest}\n{loader(backbone, file)}\n"
    )
    return f"{text}{told}\n" if told else text
