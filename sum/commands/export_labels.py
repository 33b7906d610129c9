"""`python -m sum export-labels FOLDER`: pseudo-labels as COCO JSON, and their uncertainty maps as grey PNGs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sum.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sum.data.labels import LabelStore

NAME = "export-labels"
MANIFEST, LABELS, MAPS = Path("data/manifest"), Path("data/pseudo_labels"), Path("data/uncertainty")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `export-labels`."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="is made; what is there already is not touched")
    parser.add_argument("--images", metavar="N", type=count, help="the first N by image id only")
    add_datasets(parser)
    parser.add_argument("--no-uncertainty", action="store_true", help="no PNGs; data/uncertainty need not exist")


def run(options: argparse.Namespace) -> str:
    """Write FOLDER, all at once. Raises ConfigError when it is in use, MissingInput before a stage that is needed."""
    from sum.data.label_exports import JSON, export_labels, records_of
    from sum.storage import replace_folder

    refuse_used(options.folder)
    store = open_store(None if options.no_uncertainty else MAPS, reader=NAME)
    chosen = sorted(of_datasets(store, options.datasets, reader=NAME))
    images = records_of(MANIFEST, chosen[: options.images], reader=NAME)
    with replace_folder(options.folder) as partial:
        done = export_labels(store, images, partial, side=model_side(), with_maps=not options.no_uncertainty)
        refuse_used(options.folder)  # what another put there meanwhile would be replaced
    masks = f"{done.masks} masks of {done.images} of {len(store)} labelled images, {done.maps} uncertainty maps"
    return f"{options.folder / JSON}: {masks}\n"


def add_datasets(parser: argparse.ArgumentParser) -> None:
    """The option that `of_datasets` takes."""
    parser.add_argument("--datasets", metavar="NAME", nargs="+", help="images of these data sets only")


def of_datasets(store: LabelStore, names: Sequence[str] | None, *, reader: str) -> list[str]:
    """Ids of the labelled images of these data sets; None: of all. Raises ConfigError when a set has none."""
    if names is None:
        return list(store.image_ids)
    found = {name: [i for i in store.image_ids if i.startswith(f"{name}/")] for name in names}
    for name, ids in found.items():
        if not ids:
            known = sorted({image_id.partition("/")[0] for image_id in store.image_ids})
            raise ConfigError(
                f"{reader}: no labelled image in data set '{name}'. There are some of {', '.join(known)}."
            )
    return [image_id for ids in found.values() for image_id in ids]


def count(text: str) -> int:
    """A number of images, from the command line."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a number of at least 1, got '{text}'")
    return int(text)


def refuse_used(folder: Path) -> None:
    """Raises ConfigError unless the folder is empty or not there."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ConfigError(f"{NAME}: {folder} is there and is no empty folder; name a new one")


def open_store(maps: Path | None, *, reader: str) -> LabelStore:
    """The project's labels, with the maps in folder `maps`. Raises DataError when no image is labelled."""
    from sum.data.labels import LabelStore

    store = LabelStore(LABELS, maps, reader=reader)
    if not len(store):
        raise DataError(f"{LABELS}: no image is labelled. Run `dvc repro pseudo_label`.")
    return store


def model_side() -> int:
    """S, px: of the backbone of params.yaml, which made the labels."""
    from sum.config import load_config
    from sum.models.backbones import BACKBONES

    return BACKBONES[load_config().model.backbone].side
