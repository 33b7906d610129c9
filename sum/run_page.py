"""What the MLflow page of a fine-tuning holds so that the run can be made again; the files lie there below FOLDER.

Written when a run begins, read by `python -m sum reproduce`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from sum.errors import ConfigError, DataError, TrackingError
from sum.mlflow_client import connect, or_none, refusals
from sum.provenance import command_line, provenance, uncommitted
from sum.tracking import WEIGHTS_TAG, Run, find_model, read_files

log = logging.getLogger(__name__)

FOLDER = "reproduce"
PARAMS = "params.yaml"  # complete: load_config takes it
LOCK = "dvc.lock"  # as it was, where DVC had made the inputs
DIFF = "uncommitted.patch"  # tracked files against the commit, where the tree was dirty
RECORD = "record.json"
VERSION = 1  # of RECORD
AGAIN = Path("work/reproduce")  # below it, a folder for each run that is trained again
RESUMED = "resumed"  # tag of a run that went on after a stop on another device, or with other threads or processes
BORN_OF = "reproduces"  # tag of a run: the id of the run that it trains again


@dataclass(frozen=True, slots=True)
class Home:
    """Where a training keeps its checkpoints, and where its model goes; a folder a budget in either."""

    work: Path
    models: Path


def home_of(reproduces: str | None) -> Home:
    """Of a training of its own, or of one that reproduces an MLflow run: that one touches nothing of the others."""
    if reproduces is None:
        return Home(Path("work/finetune"), Path("data/models"))
    return Home(AGAIN / reproduces / "work", AGAIN / reproduces / "models")


@dataclass(frozen=True, slots=True)
class Page:
    """What a run was trained with, and what came out."""

    run_id: str
    facts: Mapping[str, str]  # budget, method, fingerprints of data, labels and base weights: what training reads
    files: Mapping[str, str]  # path -> sha256 of the labels and maps
    machine: Mapping[str, str]  # of `circumstances`
    texts: Mapping[str, str]  # file name -> its text: PARAMS, and LOCK and DIFF where there were any
    resumed: str  # what of `machine` was otherwise after a stop; ''
    model_id: str  # the logged model
    weights: str  # its fingerprint


def circumstances(*, code: str, device: torch.device, processes: int, precision: str) -> dict[str, str]:
    """What may change the last digits, and where the code is: commit, versions, device, threads, command.

    code: a hash of the package's code.
    """
    return provenance() | {
        "code": code,
        "device": _device_name(device),
        "threads": str(torch.get_num_threads()),
        "processes": str(processes),
        "precision": precision,
        "command": command_line(),
        "version.torch": torch.__version__,  # with its build, such as +cu130: the package's own does not tell
    }


def write_page(
    record: Run,
    *,
    params: Mapping[str, Any],
    facts: Mapping[str, str],
    files: Mapping[str, str],
    machine: Mapping[str, str],
) -> None:
    """Put the page's files to a run. params: all settings of the run, plain; the others: as in Page."""
    about = {"version": VERSION, "facts": dict(facts), "machine": dict(machine), "files": dict(files)}
    texts = {
        PARAMS: yaml.safe_dump(dict(params), sort_keys=False),
        LOCK: Path(LOCK).read_text(encoding="utf-8") if Path(LOCK).is_file() else None,
        DIFF: uncommitted(),
        RECORD: json.dumps(about, indent=1),
    }
    for name, text in texts.items():
        if text is not None:
            record.log_text(text, name=f"{FOLDER}/{name}")


def note_resumption(record: Run, machine: Mapping[str, str]) -> None:
    """Tag a run that goes on where it rounds otherwise than where it began. machine: of `circumstances`, now.

    Training needs no page: one that cannot be read is told and does not stop it; only `reproduce` refuses it.
    """
    try:
        then = _record(read_files(record.client, record.id, folder=FOLDER), record.id)["machine"]
    except (DataError, TrackingError) as error:
        log.warning("%s. Training goes on; `python -m sum reproduce` will not take this run", error)
        return
    changed = [f"{name} {machine[name]}" for name in ("device", "threads", "processes") if machine[name] != then[name]]
    if changed:
        with refusals(f"tag {RESUMED} of run {record.id}"):
            record.client.set_tag(record.id, RESUMED, ", ".join(changed))


def read_page(uri: str, run_id: str) -> Page:
    """The page of a run. Raises ConfigError when there is no such fine-tuning, DataError when it lacks what is needed,
    TrackingError without a server.
    """
    client = connect(uri)
    with refusals(f"run {run_id}", verb="give"):
        found = or_none(lambda: client.get_run(run_id))
        if found is None or found.info.lifecycle_stage == "deleted":
            why = "has no such run" if found is None else "has it among the deleted ones (`mlflow runs restore`)"
            raise ConfigError(
                f"run '{run_id}': {client.tracking_uri} {why}. See `make ui`, Experiments, column Run ID."
            )
        if not {"budget", "method", "base"} <= found.data.tags.keys():
            raise ConfigError(f"run {run_id} ('{found.info.run_name}') is no fine-tuning: only those can be reproduced")
        texts = read_files(client, run_id, folder=FOLDER)
        model = find_model(client, found.info.experiment_id, run_id=run_id)
    about = _record(texts, run_id)
    if model is None:
        again = found.data.tags.get(BORN_OF)
        why = f"it reproduces run {again}: reproduce that one" if again else f"its status is {found.info.status}"
        raise DataError(f"run {run_id} has no logged weights to compare with; {why}")
    weights = str(model.tags[WEIGHTS_TAG])
    resumed = str(found.data.tags.get(RESUMED, ""))
    return Page(run_id, about["facts"], about["files"], about["machine"], texts, resumed, str(model.model_id), weights)


def _record(texts: Mapping[str, str], run_id: str) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(texts[RECORD])
        if about["version"] == VERSION and PARAMS in texts:
            return about
        reason = f"is of version {about['version']}, wanted {VERSION}"
    except (KeyError, ValueError):
        reason = "does not hold what is needed"
    raise DataError(
        f"run {run_id}: its page {reason} ({FOLDER}/{RECORD} and {FOLDER}/{PARAMS}): another version of this project "
        "made it, or its files are gone"
    )


def _device_name(device: torch.device) -> str:
    """The device as far as its kind decides how it rounds."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type
