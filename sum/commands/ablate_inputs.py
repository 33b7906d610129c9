"""What the runs of `python -m sum ablate` are made of: inputs, folders, and the stamp that tells them apart."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sum.ablation import Row, Run, differing, overrides, own_settings, run_code
from sum.config import Config, check_config
from sum.data.records import read_manifest
from sum.data.verdicts import require_valid
from sum.errors import ConfigError, MissingInput, choose
from sum.methods import METHODS
from sum.provenance import flatten
from sum.stages.common import MANIFEST, REFINER, REPORT, WEIGHTS_CACHE, base_weights, pick_device
from sum.storage import S3, sha256_file, write_atomic, write_json

READER = "ablate"
DATA = Path("data")
LABELS, MAPS, CHECKED = (DATA / name for name in ("pseudo_labels", "uncertainty", "checks/labels.json"))
NEEDED = {  # file -> the stage that writes it, in the order in which they run
    MANIFEST / "images.parquet": "ingest",
    REPORT: "validate",
    REFINER: "refine",
    LABELS / "summary.json": "pseudo_label",
    MAPS / "summary.json": "uncertainty",
    CHECKED: "check_labels",
}
SHARED = ("raw", "manifest", "validation", "refiner", "pseudo_labels", "uncertainty", "checks")  # of data/
STAMP, DONE = "made_of.json", "done.json"
STEPS = "finetune.optim.steps"
OF_EVALUATION = ("workers", "pictures", "resamples")  # settings that change no row of an evaluation


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, ready to be made."""

    run: Run
    folder: Path
    words: list[str]  # key=value of its training
    evaluation_words: list[str]  # of its evaluation: without what the row sets, so that all follow one protocol
    stamp: dict[str, str]

    @property
    def commands(self) -> list[str]:
        """Stages it runs, in order."""
        return ["finetune", "evaluate"] if self.run.row else ["evaluate"]

    def call(self, command: str) -> list[str]:
        """The words behind `python -m sum` of one of its commands."""
        return [command, self.run.model, *(self.evaluation_words if command == "evaluate" else self.words)]

    @property
    def evaluation(self) -> Path:
        """Where its rows are."""
        return self.folder / "data/evaluation" / self.run.model

    @property
    def times(self) -> dict[str, float]:
        """Command -> seconds of those that have ended well."""
        return {name: float(found) for name, found in _read(self.folder / DONE).items()}

    @property
    def state(self) -> str:
        """new, begun, done, or `other`: begun with something else."""
        if not (self.folder / STAMP).is_file():
            return "new"
        if self.differences:
            return "other"
        return "done" if set(self.commands) <= self.times.keys() else "begun"

    @property
    def differences(self) -> list[str]:
        """What its folder was made of, where that is not what it would be made of now."""
        return differing(_read(self.folder / STAMP), self.stamp) if (self.folder / STAMP).is_file() else []

    def ended(self, command: str, *, seconds: float) -> None:
        """Write down that a command ended well; after the last one its checkpoints go."""
        write_json(self.folder / DONE, {**self.times, command: round(seconds, 1)})
        if self.state == "done":
            for name in ("finetune", "evaluate"):
                shutil.rmtree(self.folder / "work" / name, ignore_errors=True)


def in_short(differences: Sequence[str], *, most: int = 4) -> str:
    """The first of what `differing` found, the number of steps before all, and how many more there are."""
    first = sorted(differences, key=lambda line: not line.startswith(f"{STEPS}: "))
    more = f" (+{len(first) - most} more)" if len(first) > most else ""
    return f"{'; '.join(first[:most])}{more}"


def keys_of(words: Sequence[str]) -> list[str]:
    """The keys that the command line gave, for messages that say where a value came from."""
    return [word.lstrip("+~").partition("=")[0] for word in words]


def require_inputs() -> None:
    """Raise MissingInput with the first stage that has not run; ValidationFailed where a check refused its data."""
    for path, maker in NEEDED.items():
        if not path.is_file():
            raise MissingInput(path, reader=READER, maker=maker)
    require_valid(REPORT, reader=READER, maker="validate", manifest=MANIFEST)
    require_valid(CHECKED, reader=READER, maker="check_labels")


def require_made_so(config: Config) -> None:
    """Raise ConfigError when labels or maps were made with other numbers than params.yaml has now.

    Runs would be stamped with numbers that made nothing of theirs.
    """
    asked = {
        LABELS / "summary.json": ("pseudo_label", asdict(config.pseudo_label)),
        MAPS / "summary.json": ("uncertainty", asdict(config.uncertainty)),
    }
    for path, (section, now) in asked.items():
        made = _read(path).get("settings", {})
        here = {key: value for key, value in now.items() if key in made} if made else now
        found = differing(flatten({section: made}), flatten({section: here}))
        if found:
            raise ConfigError(f"{path}: made with {in_short(found)} in params.yaml. Run `dvc repro check_labels`")


def make_plans(runs: Sequence[Run], words: Sequence[str], tree: Mapping[str, Any], *, out: Path) -> list[Plan]:
    """All runs, each with the settings it would get, which are checked. Raises ConfigError for one that cannot be.

    words: key=value of the command line; tree: what it made of params.yaml.
    """
    config = check_config(dict(tree), source="params.yaml", overridden=keys_of(words))
    files = {str(path): sha256_file(path) for path in sorted(MANIFEST.glob("*.parquet"))}
    files["base"] = sha256_file(base_weights(config))
    shared, rows = overrides(Run(None), words, {}), config.ablation.settings
    return [
        Plan(
            run,
            out / "runs" / run.name,
            overrides(run, words, rows),
            shared,
            _stamp(run.row, settings_of(run, tree, rows, words=words), files),
        )
        for run in runs
    ]


def settings_of(
    run: Run, tree: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]], *, words: Sequence[str] = ()
) -> Config:
    """The settings that a run's training gets, checked; tree: params.yaml, rows: `ablation.settings`,
    words: key=value of the command line, to blame it for what is its own.

    Raises ConfigError for a row that cannot be trained so.
    """
    own, of_row = deepcopy(dict(tree)), own_settings(run, rows)
    for key, value in of_row.items():
        *above, name = key.split(".")
        branch = own
        for part in above:
            branch = branch.setdefault(part, {})
        branch[name] = value
    try:
        said = [key for key in keys_of(words) if key not in of_row]
        return check_config(own, source="params.yaml", overridden=said)
    except ConfigError as error:
        raise ConfigError(f"row {run.row.name if run.row else run.name}: {error}") from error


def _stamp(row: Row | None, config: Config, files: Mapping[str, str]) -> dict[str, str]:
    """Whatever a run's figures hang on, by name; a run is gone on with while all of it stays the same."""
    evaluate = {key: value for key, value in asdict(config.evaluate).items() if key not in OF_EVALUATION}
    tree: dict[str, Any] = {
        "seed": config.seed,
        "model": asdict(config.model),
        "evaluate": evaluate,
        "pseudo_label": asdict(config.pseudo_label),  # as it is asked of every model, in the evaluation
    }
    read = [REFINER]
    if row is not None:
        method = choose(METHODS, row.method, key="ablation.grid")
        tree |= {"finetune": config.finetune.of_weights(), f"budgets.{row.budget}": asdict(config.budgets[row.budget])}
        read = [LABELS / "summary.json"] if method.pseudo_labels else []  # it names the bytes of all shards
        read += [MAPS / "summary.json"] if method.reads_maps else []
    found = {str(path): sha256_file(path) for path in read}
    device = pick_device(config.device).type
    return {**flatten(tree), **files, **found, "code": run_code(), "torch": torch.__version__, "device": device}


def prepare(plan: Plan, *, params: bytes, shared: Sequence[str], project: Path, out: Path) -> None:
    """Make the folder of a run: its params.yaml, its stamp, and links to what it shares with the project.

    params: params.yaml as it was read, so that an edit does not reach runs that begin later; shared: of `shared_paths`.
    Raises ConfigError for photos whose link would lie outside of `out`.
    """
    folder = plan.folder
    (folder / "data").mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "params.yaml", params)
    for name, place in places_of(plan, shared, out=out).items():
        _link(place, project / name)
    if not (folder / STAMP).is_file():  # last: with it the run has begun
        write_json(folder / STAMP, plan.stamp)


def places_of(plan: Plan, shared: Sequence[str], *, out: Path) -> dict[str, Path]:
    """Path of the project -> where a run looks for it. Raises ConfigError for photos that would be outside of `out`."""
    found = {name: Path(os.path.normpath(plan.folder / name)) for name in shared}
    for name, place in found.items():
        if not place.is_relative_to(out):
            raise ConfigError(
                f"datasets: photos in {name}, seen from a run's folder, are outside of {out}: give these data sets "
                "roots that are absolute, or an --out that lies deeper"
            )
    return found


def _link(place: Path, target: Path) -> None:
    if place.is_symlink() and not place.exists():  # the project was moved
        place.unlink()
    if not place.exists() and target.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.resolve())


def shared_paths(config: Config, *, project: Path) -> list[str]:
    """Paths, relative to the project, that a run reads there: stages' folders, base weights, photos, outer first."""
    images = read_manifest(project / MANIFEST, reader=READER).images
    photos = {str(Path(image.path.partition("!/")[0]).parent) for image in images if "://" not in image.path}
    checkpoint = config.model.checkpoint
    weights = str(WEIGHTS_CACHE) if checkpoint.startswith(S3) else checkpoint
    found = [*(f"data/{name}" for name in SHARED), weights, *sorted(photos)]
    return [name for name in found if not Path(name).is_absolute()]


def refuse_others(plans: Sequence[Plan], *, out: Path) -> None:
    """Raise ConfigError when runs were begun with other settings, data or code: they would pass for these."""
    others = [plan for plan in plans if plan.state == "other"]
    if others:
        told = [f"  {plan.run.name}: {in_short(plan.differences)}" for plan in others[:5]]
        more = [f"  and {len(others) - 5} more"] if len(others) > 5 else []
        lines = "\n".join([*told, *more])
        raise ConfigError(
            f"{len(others)} runs in {out} were begun with something else:\n{lines}\n"
            "Give another --out, set it back, or remove these folders below runs/ to make them anew."
        )


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
