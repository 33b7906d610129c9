"""`python -m sum contact-sheet FILE.jpg`: some photos beside their pseudo-labels and uncertainty, in one picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from sum.commands.export_labels import MANIFEST, MAPS, add_datasets, count, model_side, of_datasets, open_store
from sum.errors import ConfigError

NAME = "contact-sheet"
MOST = 60  # rows: 11,756 px
JPEG, PNG = (".jpg", ".jpeg"), (".png",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `contact-sheet`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="a .jpg or .png; an old one is replaced")
    parser.add_argument("--images", metavar="N", type=count, default=12, help=f"how many, at most {MOST}; default: 12")
    add_datasets(parser)
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="another draws others; default: 0")


def run(options: argparse.Namespace) -> str:
    """Write FILE. Raises ConfigError for another suffix or too many, MissingInput before a stage that is needed."""
    from sum.data.contact_sheets import by_lot, contact_sheet
    from sum.data.label_exports import records_of
    from sum.data.pictures import to_jpeg, to_png
    from sum.storage import write_atomic

    suffix = options.file.suffix.lower()
    if suffix not in (*JPEG, *PNG):
        raise ConfigError(f"{NAME}: {options.file}: wanted a name that ends in {', '.join((*JPEG, *PNG))}")
    if options.images > MOST:
        raise ConfigError(f"{NAME}: --images {options.images}: at most {MOST} fit on a sheet")
    store = open_store(MAPS, reader=NAME)
    chosen = of_datasets(store, options.datasets, reader=NAME)
    images = records_of(MANIFEST, by_lot(chosen, options.images, seed=options.seed), reader=NAME)
    sheet = contact_sheet(store, images, side=model_side())
    write_atomic(options.file, (to_jpeg if suffix in JPEG else to_png)(sheet))
    names = "\n".join(f"  {image.image_id}" for image in images)
    return f"{options.file}: {len(images)} of {len(store)} labelled images, from the top:\n{names}\n"
