"""What `python -m sum compare` shows: a table for the terminal, the same as files, and the report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from sum.commands.compare_models import Named
from sum.config import Config
from sum.data.grids import make_grid, to_csv, to_markdown
from sum.data.protocols import read_protocol, unlike
from sum.data.score_tables import of_game, read_rows
from sum.data.scores import comparison_table
from sum.errors import DataError
from sum.storage import replace_folder

log = logging.getLogger(__name__)
READER = "compare"


def write(
    config: Config,
    folders: Mapping[str, Sequence[Path]],
    *,
    groups: Mapping[str, Sequence[Named]],
    force: bool,
    out: Path,
) -> str:
    """Write the folder `out`; returns the table and where the report is. folders: label -> evaluations, one a seed.

    Raises DataError when they were made by different rules, unless forced, or are of different masks; MissingInput.
    """
    protocols = {
        f"{label} ({folder})": read_protocol(folder, reader=READER)
        for label, found in folders.items()
        for folder in found
    }
    differing = unlike(protocols)
    for name, said in differing.items():
        words = f"{next(iter(protocols))} and {name} were made by different rules: {said}"
        if not force:
            raise DataError(f"{words}. --force compares them all the same, and the report says so.")
        log.warning("%s", words)
    prompt = next(iter(protocols.values()))["prompts"][0]
    rows = {
        label: [of_game(read_rows(folder, reader=READER), prompt=prompt) for folder in found]
        for label, found in folders.items()
    }
    base = next(iter(rows))
    rounds = sorted(set(config.evaluate.report_rounds) & set(rows[base][0]["round"]))
    table = comparison_table(rows, rounds=rounds, base=base, resamples=config.evaluate.resamples, seed=config.seed)
    grid = make_grid(table)
    text = to_markdown(grid, unit="prompts" if prompt == "box" else "points")
    with replace_folder(out) as folder:
        (folder / "table.md").write_text(text, encoding="utf-8")
        (folder / "table.csv").write_text(to_csv(grid), encoding="utf-8")
    return f"\n{text}\nReport: {out / 'index.html'}\n"
