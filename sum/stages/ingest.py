"""Stage ingest: the data set table -> data/manifest, a row an image and a row a mask."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sum.data.records import ManifestWriter, manifest_writer
from sum.data.sources import Problem, Sample
from sum.data_settings import DatasetConfig
from sum.datasets import read_set
from sum.errors import DataError
from sum.progress import track
from sum.settings import Config
from sum.storage import exists, replace_folder, write_json

OUT = Path("data/manifest")
PROBLEMS = Path("work/ingest/problems.json")
RAW = Path("data/raw")
DEMO = RAW / "demo"
SHOWN = 10  # problems in a message


@dataclass(slots=True)
class Tally:
    """What one data set gave."""

    images: int = 0
    masks: int = 0
    problems: list[Problem] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def run(config: Config) -> Path:
    """Read every data set of the table; returns the manifest's folder.

    Raises DataError for missing roots (all at once) and, with `ingest.on_bad: fail`, for unusable files; StorageError.
    """
    _require_roots(config.datasets)
    with replace_folder(OUT) as folder:
        with manifest_writer(folder) as writer:
            tallies = {name: _read_set(name, entry, writer=writer) for name, entry in config.datasets.items()}
        _print(tallies)
        bad = [{"dataset": name, **asdict(problem)} for name, tally in tallies.items() for problem in tally.problems]
        write_json(PROBLEMS, bad)
        if bad and config.ingest.on_bad == "fail":
            raise DataError(_complaint(bad))
        for name, tally in tallies.items():
            if not tally.images:
                raise DataError(
                    f"data set '{name}' ({config.datasets[name].root}) gave no usable image; see {PROBLEMS}"
                )
        write_json(folder / "skipped.json", bad)
        write_json(folder / "summary.json", _summary(config.datasets, tallies, fingerprint=writer.fingerprint))
    return OUT


def _require_roots(datasets: dict[str, DatasetConfig]) -> None:
    """One error for all roots that do not exist."""
    rows = []
    for name, entry in datasets.items():
        if not exists(entry.root):
            ours = Path(entry.root).is_relative_to(DEMO)
            remedy = (
                "Run `dvc repro demo`." if ours else f"Put the data there, or mend datasets.{name}.root in params.yaml."
            )
            rows.append(f"data set '{name}': {entry.root} does not exist. {remedy}")
    if rows:
        raise DataError("\n".join(rows))


def _read_set(name: str, entry: DatasetConfig, *, writer: ManifestWriter) -> Tally:
    """Run the jobs of one data set in threads and write what they find in their order."""
    found, total = read_set(name, entry)
    tally = Tally()
    for items in track(found, title=f"ingest {name}", unit="images", total=total):
        for item in items:
            if isinstance(item, Sample):
                tally.images += 1
                tally.masks += len(item.masks)
                writer.add(item.image, item.masks)
            elif isinstance(item, Problem):
                tally.problems.append(item)
            else:
                tally.notes[item.reason] += 1
    return tally


def _complaint(bad: list[dict[str, str]]) -> str:
    rows = [f"  {row['dataset']}: {row['file']}: {row['reason']} ({row['remedy']})" for row in bad[:SHOWN]]
    more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    kept = sorted({kept for row in bad if (kept := _kept_by_dvc(row["file"]))})
    names = " ".join(kept)
    open_up = f"\nDVC protects files there: `dvc unprotect {names}` first, then `dvc add {names}`." if kept else ""
    head = f"{len(bad)} file(s) or annotation(s) cannot be used; all are listed in {PROBLEMS}:"
    return (
        "\n".join((head, *rows))
        + f"{more}\nMend them, or set ingest.on_bad: skip in params.yaml to go on without them.{open_up}"
    )


def _kept_by_dvc(file: str) -> str:
    """The folder below data/raw that holds a file and has a .dvc file beside it; '' without one."""
    above = [folder for folder in Path(file).parents if folder.is_relative_to(RAW)]
    return next((folder.as_posix() for folder in above if Path(f"{folder}.dvc").is_file()), "")


def _summary(datasets: dict[str, DatasetConfig], tallies: dict[str, Tally], *, fingerprint: str) -> dict[str, object]:
    """Counts a data set, and of the manifest."""
    sets = {
        name: {
            "split": datasets[name].split,
            "task": datasets[name].task,
            "images": tally.images,
            "masks": tally.masks,
            "skipped": len(tally.problems),
            "skipped_by_reason": dict(sorted(Counter(_kind(problem.reason) for problem in tally.problems).items())),
            "notes": dict(sorted(tally.notes.items())),
        }
        for name, tally in tallies.items()
    }
    total = {key: sum(int(getattr(tally, key)) for tally in tallies.values()) for key in ("images", "masks")}
    total["skipped"] = sum(len(tally.problems) for tally in tallies.values())
    return {"datasets": sets, "fingerprint": fingerprint, **total}


def _kind(reason: str) -> str:
    """A reason without what is particular to one file, so that equal ones are counted together: no detail in brackets,
    no text in quotes, no number.
    """
    plain = re.sub(r" ?\([^()]*(\([^()]*\)[^()]*)*\)|: .*", "", reason)
    return re.sub(r"\d[\d,.]*", "N", re.sub(r"'[^']*'", "'…'", plain)).strip()


def _print(tallies: dict[str, Tally]) -> None:
    """The counts for a reader."""
    table = Table("data set", title="ingest", title_justify="left")
    for head in ("images", "masks", "skipped"):
        table.add_column(head, justify="right")
    table.add_column("notes")
    for name, tally in tallies.items():
        notes = "; ".join(f"{count} x {reason}" for reason, count in sorted(tally.notes.items()))
        table.add_row(name, f"{tally.images:,}", f"{tally.masks:,}", f"{len(tally.problems):,}", notes)
    Console().print(table)
    skipped = sum(len(tally.problems) for tally in tallies.values())
    if skipped:
        Console(soft_wrap=True, highlight=False).print(
            f"{skipped} file(s) or annotation(s) were left out; {PROBLEMS} names each with the reason."
        )
