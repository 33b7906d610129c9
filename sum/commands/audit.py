"""`python -m sum audit [NAME ...]`: data sets read and compared with what they should hold; SAM's figure on them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sum.errors import ConfigError, DataError, StorageError, choose

if TYPE_CHECKING:
    from sum.audits import Audit, Score
    from sum.config import Config

WIDTH = 150  # columns of a file or pipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind the command's name."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets to look at closely, with their variants")
    parser.add_argument("--file", type=Path, default=Path("params.yaml"), help="another params file than params.yaml")
    parser.add_argument("--checkpoint", help="SAM weights, a path or s3://: adds the 1-point mIoU")
    parser.add_argument("--backbone", help="of the checkpoint; default: model.backbone of the params file")
    parser.add_argument("--limit", type=_count, help="score so many images a set, drawn by the hash of their ids")
    parser.add_argument("--json", type=Path, help="write all of it there")


def run(options: argparse.Namespace) -> str:
    """Audit all data sets of the params file in one table, or the named ones closely, with their variants.

    Raises DataError when one differs or a named one is absent, after all was printed and written; StorageError when a
    disk or bucket failed.
    """
    from sum.audits import audit_set
    from sum.commands.audit_tables import details, overview
    from sum.storage import write_json

    config = _config(options.file)
    for name in options.names:
        _known(config, name, file=options.file)
    score = _score(options, config)
    console = Console(width=None if sys.stdout.isatty() else WIDTH, markup=False, highlight=False)
    audits: list[Audit] = []
    backbone = options.backbone or config.model.backbone
    for name in dict.fromkeys(options.names or config.datasets):
        entry = config.datasets[name]
        entries = {"": entry} | ({key: entry.variant(key) for key in entry.variants} if options.names else {})
        found = [audit_set(name, each, variant=key, score=score, limit=options.limit) for key, each in entries.items()]
        audits += found
        if options.names:
            console.print(*details(found, backbone=backbone), sep="\n")
    if not options.names:
        console.print(overview(audits))
    if options.json:
        model = {"checkpoint": options.checkpoint, "backbone": backbone, "limit": options.limit}
        write_json(options.json, {"model": model, "sets": [audit.as_json() for audit in audits]})
    _judge([audit for audit in audits if not audit.variant], named=bool(options.names))
    return ""


def _config(file: Path) -> Config:
    from sum.commands.use import check

    if not file.is_file():
        raise ConfigError(f"{file} does not exist; --file wants a complete params file, such as examples/paper.yaml")
    return check(file.read_bytes(), source=str(file))


def _known(config: Config, name: str, *, file: Path) -> None:
    try:
        choose(config.datasets, name, key="datasets")
    except ConfigError as error:
        raise ConfigError(str(error).replace("params.yaml", str(file), 1)) from None


def _score(options: argparse.Namespace, config: Config) -> Score | None:
    """The first click of the benchmark, played by the model of the command line; None without one."""
    if options.checkpoint is None:
        if options.backbone or options.limit:
            raise ConfigError("--backbone and --limit belong to --checkpoint PATH, which is not given")
        return None
    from sum.bench import point_ious
    from sum.data.sources import Sample
    from sum.models.checkpoint import load_segmenter
    from sum.stages.common import local_weights, pick_device

    weights = local_weights(options.checkpoint)
    model = load_segmenter(weights, backbone=options.backbone or config.model.backbone)
    model = model.to(pick_device(config.device)).eval()

    def score(sample: Sample) -> Sequence[float]:
        return point_ious(model, sample.image, sample.masks, batch_masks=config.evaluate.batch_masks)

    return score


def _judge(audits: Sequence[Audit], *, named: bool) -> None:
    """Nothing, or the error that ends the command with the right code."""
    away = [audit for audit in audits if audit.again]
    if away:
        raise StorageError(f"{len(away)} data set(s) could not be read: {away[0].name}: {away[0].error}")
    absent = [f"{audit.name} (absent)" for audit in audits if not audit.found and named]
    wrong = [audit.name for audit in audits if audit.differs]
    if absent or wrong:
        told = ", ".join(absent + wrong)
        raise DataError(f"{len(absent + wrong)} of {len(audits)} data sets are not as expected: {told}; see above")


def _count(text: str) -> int:
    """A number of images, from the command line."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a number of at least 1, got '{text}'")
    return int(text)
