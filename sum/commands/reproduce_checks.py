"""What differs between an MLflow run and this folder now, and what brings it back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from rich import box
from rich.table import Table

from sum.config import Config
from sum.data.records import read_manifest
from sum.errors import CheckpointError, DataError, NotFound, choose
from sum.methods import METHODS
from sum.models.checkpoint import fingerprint
from sum.provenance import UNKNOWN, flatten, provenance
from sum.run_page import DIFF, LOCK, Page, circumstances
from sum.stages.common import base_weights, code_hash, files_fingerprint, pick_device
from sum.stages.finetune import LABELS, MANIFEST, MAPS, label_files

MISSING = "missing"
NAMED = 3  # files that a message names
TRAINS = ("finetune", "model", "seed", "budgets", "device")  # what stage finetune reads of params.yaml
BLIND = ("git.dirty", "dvc.lock", "prefect.flow_run", "command", "precision")  # told elsewhere, or of no effect


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it was."""

    what: str
    then: str
    now: str
    note: str = ""  # what follows from it
    refuses: bool = False


def differences(page: Page, config: Config, *, today: Config) -> list[Difference]:
    """All that differs, first what forbids to train. config: the run's own settings; today: those of the folder."""
    return [
        *_inputs(page, config),
        *_code(page),
        *_machine(page, config),
        *_settings(config, today, budget=page.facts["budget"]),
    ]


def _inputs(page: Page, config: Config) -> list[Difference]:
    """Data, labels and base weights."""
    files = label_files(METHODS[config.finetune.method])
    now = {
        "data": _data_now(config, budget=page.facts["budget"]),
        "labels": files_fingerprint(files) if files else MISSING,
        "base": _base_now(config),
    }
    if page.facts["labels"] == "none":  # the method reads none
        del now["labels"]
    notes = {
        "data": f"the rows of its data sets in {MANIFEST}",
        "labels": _changed(page.files, files),
        "base": config.model.checkpoint,
    }
    pairs = {what: (page.facts[what], value) for what, value in now.items()}
    return [
        Difference(what, _short(then), _short(value), notes[what], refuses=True)
        for what, (then, value) in pairs.items()
        if then != value
    ]


def _data_now(config: Config, *, budget: str) -> str:
    entry = choose(config.budgets, budget, key="budgets")
    try:
        manifest = read_manifest(MANIFEST, reader="finetune")
    except DataError:  # not there, or not readable
        return MISSING
    return manifest.select(datasets={*entry.human, *entry.unlabelled}).fingerprint


def _base_now(config: Config) -> str:
    try:
        return fingerprint(base_weights(config))
    except (CheckpointError, NotFound):
        return MISSING


def _changed(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which files are not as they were."""
    kinds = {
        "other content": [path for path in then if path in now and now[path] != then[path]],
        "missing": [path for path in then if path not in now],
        "new": [path for path in now if path not in then],
    }
    return "; ".join(f"{kind}: {_listed(paths)}" for kind, paths in kinds.items() if paths)


def _code(page: Page) -> list[Difference]:
    then, now = page.machine["code"], code_hash()
    if then == now:
        return []
    commit, patch = page.machine["git.commit"], f" and then `git apply` of its {DIFF}" * (DIFF in page.texts)
    note = f"`git checkout {commit}`{patch}"
    if commit in (provenance()["git.commit"], UNKNOWN):
        note = f"of the same commit, with other changes{patch}"
    return [Difference("code", _short(then), _short(now), f"may give other weights: {note}")]


def _machine(page: Page, config: Config) -> list[Difference]:
    """Versions, device, threads, processes: they may change the last digits."""
    count = page.machine["processes"]
    processes = int(os.environ.get("WORLD_SIZE", count))  # not under torchrun: it starts as many as the run had
    now = circumstances(
        code="", device=pick_device(config.device), processes=processes, precision=config.finetune.optim.precision
    )
    notes = {
        "threads": "set to those of the run",
        "processes": f"surely other weights: torchrun is to start {count}, or leave it out on one machine",
    }
    watched = [name for name in page.machine if name not in (*BLIND, "code", "git.commit")]
    found = [
        Difference(name, page.machine[name], now.get(name, MISSING), notes.get(name, "may round otherwise"))
        for name in watched
        if page.machine[name] != now.get(name, MISSING)
    ]
    if page.resumed:
        found.append(Difference("resumed", page.resumed, "-", "it went on so after a stop: other weights are likely"))
    return found


def _settings(config: Config, today: Config, *, budget: str) -> list[Difference]:
    own, other = (flatten({name: asdict(part)[name] for name in TRAINS}) for part in (config, today))
    keys = [key for key in dict.fromkeys([*own, *other]) if own.get(key) != other.get(key)]
    return [
        Difference(f"params: {key}", own.get(key, MISSING), other.get(key, MISSING), "the run's is used")
        for key in keys
        if not key.startswith("budgets.") or key.startswith(f"budgets.{budget}.")
    ]


def mend(page: Page, refused: Sequence[Difference], place: Path) -> str:
    """What is another and how it comes back, in one line. place: where the files of the page were written."""
    told = "; ".join(f"{difference.what}: {difference.note}" for difference in refused)
    gone, advice = {difference.what for difference in refused}, []
    if "base" in gone:
        base = page.facts["base"]
        advice.append(
            f"the weights of sha256 {base}: `git checkout {page.machine['git.commit']} -- FILE` if git has them"
        )
    wanted = [*([MANIFEST] if "data" in gone else []), *([LABELS, MAPS] if "labels" in gone else [])]
    then, now = _locked(page.texts.get(LOCK, "")), _locked(Path(LOCK).read_text() if Path(LOCK).is_file() else "")
    named = [path.as_posix() for path in wanted if path.as_posix() in then]
    if named:
        same = all(then[path] == now.get(path) for path in named)
        words = f"`{'' if same else f'cp {place / LOCK} {LOCK} && '}dvc checkout {' '.join(named)}`"
        advice.append(
            f"{words} (it asks before it drops files it has not stored; `dvc pull` where its cache lacks them)"
        )
    elif wanted:
        advice.append(
            "the run's dvc.lock does not name them: put the files back, or run the stages before at its commit"
        )
    return f"{told}. To bring back: {'; '.join(advice)}"


def _locked(text: str) -> dict[str, str]:
    """The outputs that a dvc.lock names, and their digests."""
    tree = yaml.safe_load(text) or {}
    outs = [out for stage in tree.get("stages", {}).values() for out in stage.get("outs", ())]
    return {str(out["path"]): str(out.get("md5")) for out in outs}


def headline(page: Page, found: Sequence[Difference]) -> str:
    """Which run it is, and how much differs."""
    commit, dirty = page.machine["git.commit"][:12], page.machine["git.dirty"] == "true"
    about = f"{page.facts['budget']}, {page.facts['method']}, commit {commit}{' with changes' * dirty}"
    return f"run {page.run_id} ({about}): {len(found) or 'no'} difference(s) between then and now"


def table(found: Sequence[Difference]) -> Table:
    """A row a difference."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("what", "then", "now", "note"):
        shown.add_column(head, overflow="fold")
    for difference in found:
        note = f"REFUSED: {difference.note}" if difference.refuses else difference.note
        shown.add_row(difference.what, difference.then, difference.now, note)
    return shown


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{', '.join(paths[:NAMED])}{more}"


def _short(digest: str) -> str:
    return digest[:12]
