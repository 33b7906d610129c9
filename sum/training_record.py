"""The MLflow run of a training: begun, taken up again after a kill, and the curves that are drawn in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sum import tracking
from sum.engine import Row
from sum.licences import summarise
from sum.run_page import BORN_OF, note_resumption, write_page
from sum.storage import write_json

log = logging.getLogger(__name__)


def begin(
    note: Path,
    *,
    params: Mapping[str, Any],
    facts: Mapping[str, str],
    files: Mapping[str, str],
    licences: Mapping[str, str],
    skipped: Mapping[str, int],
    machine: Mapping[str, str],
    reproduces: str | None = None,
) -> tracking.Run:
    """The run begun before a kill, or a new one with its page (sum.run_page). Raises TrackingError without a server.

    note: the file that remembers it; params: all settings, plain; licences: of the data sets that are learnt from;
    skipped: data set -> what of it could not be used; reproduces: the run that is trained again.
    """
    where = params["tracking"]
    found = _taken_up(note, uri=where["uri"])
    if found is not None:
        note_resumption(found, machine)
        return found
    lost = {name: skipped.get(name, 0) for name in licences}
    about = {
        **facts,
        "licences": "; ".join(sorted({*licences.values()})),
        "licence_terms": summarise(licences),
        "skipped": "; ".join(f"{name}: {count}" for name, count in lost.items() if count) or "none",
    }
    name = f"ft-{facts['budget']}"
    if reproduces is not None:
        name, about = f"{name}-again", about | {BORN_OF: reproduces}
    settings = dict(params) | dict(facts)
    record = tracking.start_run(
        uri=where["uri"], experiment=where["experiment"], name=name, params=settings, tags=about
    )
    write_page(record, params=params, facts=facts, files=files, machine=machine)
    record.log_metrics({"skipped_items": sum(lost.values())}, step=0)
    write_json(note, {"run_id": record.id})
    return record


def _taken_up(note: Path, *, uri: str) -> tracking.Run | None:
    if not note.is_file():
        return None
    found = tracking.resume_run(uri, json.loads(note.read_text(encoding="utf-8"))["run_id"])
    if found is None:
        log.warning("the MLflow run of %s is gone: its metrics go to a new run", note)
    return found


def skipped_items(manifest: Path) -> dict[str, int]:
    """Data set -> files and annotations that stage ingest could not use; {} for a manifest that does not say."""
    path = manifest / "summary.json"
    found = json.loads(path.read_text(encoding="utf-8"))["datasets"] if path.is_file() else {}
    return {name: int(entry.get("skipped", 0)) for name, entry in found.items()}


def curves(row: Row, *, images: int, rates: Mapping[str, float]) -> dict[str, float]:
    """What MLflow draws of a step: the history's row, and what follows from it.

    images: of a batch, over all processes; rates: curve of a layer -> its share of the learning rate.
    """
    found = {name: value for name, value in row.items() if name != "step"}
    counts = {"images": float(images)} | ({"masks": row["masks"]} if "masks" in row else {})
    found |= {f"{name}_per_second": count / row["seconds"] for name, count in counts.items() if row["seconds"] > 0}
    return found | {name: row["lr"] * share for name, share in rates.items()}


def log_rows(
    record: tracking.Run | None, *, images: int, rates: Mapping[str, float]
) -> Callable[[Sequence[Row]], None]:
    """Where rows of the history go: to MLflow at once, from the first process only. images, rates: as `curves`."""

    def send(rows: Sequence[Row]) -> None:
        if record is None:
            return
        for row in rows:
            record.log_metrics(curves(row, images=images, rates=rates), step=int(row["step"]))
        record.offer()

    return send


def tell_replaced(folder: Path, *, by: str) -> None:
    """Name the MLflow run whose model lies in a folder that a run is to replace: there it is to be looked for."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # whatever else lies there is nobody's model
        before = str(json.loads((folder / "run.json").read_text(encoding="utf-8"))["run_id"])
        if before != by:
            log.info("%s: replaces the model of MLflow run %s", folder, before)
