"""Weights in MLflow: the run they belong to, versions, aliases, tags, figures, download."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from sum.errors import TrackingError, Unknown
from sum.mlflow_client import as_default, connect, or_none, refusals
from sum.run_page import BORN_OF
from sum.storage import sha256_file
from sum.tracking import WEIGHTS_TAG, Run, download_model, experiment_id, find_model, start_run

MODE = "workflowType=machine_learning"  # MLflow's pages open in GenAI mode without it; it belongs behind the #
START_PAGE = f"/#/experiments?{MODE}"
SOURCE = "models:/"  # and the id of a logged model: where a version's files lie
SHOWN_TAG = "mlflow.modelVersions"  # on a logged model: what the UI's Models table links to


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a registered model."""

    name: str
    number: str
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Training:
    """A run that trained a model on a manifest, and what became of its weights."""

    run_id: str
    name: str
    status: str  # FINISHED | RUNNING | FAILED | KILLED ...
    budget: str
    data: str  # fingerprint of the part of the manifest with these data sets
    datasets: tuple[str, ...]
    versions: tuple[str, ...]  # of registered models, as `sum-ft-small v3 @champion`


class Registry:
    """The registered models behind one tracking URI. Every method raises TrackingError when MLflow refuses."""

    def __init__(self, uri: str) -> None:
        """Raises TrackingError within about ten seconds when the server is absent."""
        self.client = connect(uri)

    def register(self, model_id: str, *, run_id: str, name: str, tags: Mapping[str, str]) -> Version:
        """The version of registered model `name` that is logged model `model_id`: found or made.

        tags are set; the version returned has those that it had before, too.
        """
        with refusals(f"registered model {name}"), as_default(self.client):
            if or_none(lambda: self.client.get_registered_model(name)) is None:
                self.client.create_registered_model(name)
            source = f"{SOURCE}{model_id}"
            found = [entry for entry in self.client.search_model_versions(f"name='{name}'") if entry.source == source]
            kept: dict[str, str] = {}
            if found:
                number, kept = str(found[0].version), dict(found[0].tags)
            else:
                number = str(self.client.create_model_version(name, source, run_id, model_id=model_id).version)
                self._show(model_id, name=name, number=number)
            for key, value in tags.items():
                self.client.set_model_version_tag(name, number, key, value)
        return Version(name, number, {**kept, **tags})

    def point(self, name: str, *, alias: str, number: str) -> None:
        """Let `alias` of a registered model point at this version."""
        with refusals(f"alias {alias} of {name}"):
            self.client.set_registered_model_alias(name, alias, number)

    def drop(self, name: str, *, alias: str, number: str) -> None:
        """Take `alias` away from this version; nothing happens if it points at another one or nowhere."""
        held = self.at(name, alias=alias)
        if held is not None and held.number == number:
            with refusals(f"alias {alias} of {name}"):
                self.client.delete_registered_model_alias(name, alias)

    def at(self, name: str, *, alias: str) -> Version | None:
        """The version `alias` points at, or None."""
        with refusals(f"alias {alias} of {name}"):
            found = or_none(lambda: self.client.get_model_version_by_alias(name, alias))
        return None if found is None else Version(name, str(found.version), dict(found.tags))

    def tag(self, version: Version, *, key: str, value: str) -> None:
        """Set a tag of a version; MLflow keeps 5000 characters."""
        with refusals(f"tag {key} of {version.name}"):
            self.client.set_model_version_tag(version.name, version.number, key, value[:5000])

    def untag(self, version: Version, *, key: str) -> None:
        """Remove a tag of a version, if it is there."""
        with refusals(f"tag {key} of {version.name}"):
            or_none(lambda: self.client.delete_model_version_tag(version.name, version.number, key))

    def figures(self, model_id: str, *, digest: str) -> dict[str, dict[str, float]]:
        """Data set -> metric -> newest value on a logged model, of the benchmark with this digest."""
        with refusals(f"the figures of model {model_id}"):
            metrics = self.client.get_logged_model(model_id).metrics or []
        found: dict[str, dict[str, float]] = {}
        for metric in sorted(metrics, key=lambda metric: metric.timestamp):
            if metric.dataset_digest and digest.startswith(metric.dataset_digest):  # MLflow keeps its beginning
                found.setdefault(metric.dataset_name, {})[metric.key] = float(metric.value)
        return found

    def _show(self, model_id: str, *, name: str, number: str) -> None:
        model: Any = self.client.get_logged_model(model_id)
        shown = [*json.loads(model.tags.get(SHOWN_TAG, "[]")), {"name": name, "version": int(number)}]
        self.client.set_logged_model_tags(model_id, {SHOWN_TAG: json.dumps(shown)})


def run_of_weights(
    weights: Path, *, uri: str, experiment: str, name: str, fingerprint: str, run_id: str | None = None
) -> Run:
    """The run and logged model of a weights file, to add an evaluation to; its status is left alone.

    It is run `run_id` if the server knows it with these weights, else the newest run of these weights, else a new one:
    base weights have no finetune, and weights that came by `dvc pull` were logged to another server.
    """
    client = connect(uri)
    with refusals(f"model {name}"):
        where = experiment_id(client, experiment)
        model = find_model(client, where, fingerprint=fingerprint, run_id=run_id) if run_id else None
        model = model or find_model(client, where, fingerprint=fingerprint)
    if model is not None and model.source_run_id:
        return Run(client, model.source_run_id, model_id=model.model_id)
    run = start_run(uri=uri, experiment=experiment, name=name, params={}, tags={WEIGHTS_TAG: fingerprint})
    run.log_model(weights, name=name, fingerprint=fingerprint, params={})
    run.finish()
    return run


def trainings(uri: str, *, experiment: str) -> list[Training]:
    """The runs of stage finetune, the newest first, without those that reproduce one; none without such an experiment.

    Raises TrackingError without a server.
    """
    client = connect(uri)
    with refusals("the question for runs"):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return []
        versions = _versions_by_run(client)
        page = client.search_runs([found.experiment_id], "tags.budget LIKE '%'")
        runs = list(page)
        while page.token:
            page = client.search_runs([found.experiment_id], "tags.budget LIKE '%'", page_token=page.token)
            runs += page
    made = [run for run in runs if "data" in run.data.tags and BORN_OF not in run.data.tags]
    return [_training(run, versions.get(run.info.run_id, ())) for run in made]


def _training(run: Any, versions: Sequence[str]) -> Training:
    tags, budget = run.data.tags, run.data.tags["budget"]
    sets = [
        name for role in ("human", "unlabelled") for name in _names(run.data.params.get(f"budgets.{budget}.{role}"))
    ]
    info = run.info
    return Training(info.run_id, info.run_name, info.status, budget, tags["data"], tuple(sets), tuple(versions))


def _names(text: str | None) -> list[str]:
    """A list of settings as `sum.provenance.flatten` writes it; [] for what it cut off."""
    try:
        return [str(name) for name in ast.literal_eval(text or "[]")]
    except (ValueError, SyntaxError):
        return []


def _versions_by_run(client: Any) -> dict[str, list[str]]:
    """Run id -> the versions of registered models made from it, with their aliases."""
    found: dict[str, list[str]] = {}
    for model in client.search_registered_models():
        aliases: dict[str, list[str]] = {}
        for alias, number in sorted(dict(model.aliases).items()):
            aliases.setdefault(str(number), []).append(f" @{alias}")
        for version in client.search_model_versions(f"name='{model.name}'"):
            words = f"{model.name} v{version.version}{''.join(aliases.get(str(version.version), ()))}"
            found.setdefault(str(version.run_id), []).append(words)
    return found


def download(uri: str, name: str, *, folder: Path, alias: str = "", number: str = "") -> Path:
    """Fetch `models:/NAME@ALIAS` or `models:/NAME/NUMBER` (weights, model.json, MLmodel) into `folder`; returns the
    path of the weights.

    Nothing is put there unless the weights have the fingerprint they were registered with. Raises TrackingError when
    there is no such version, or when its files are not what was logged.
    """
    client, called = connect(uri), f"models:/{name}{f'@{alias}' if alias else f'/{number}'}"
    with refusals(called):
        if alias:
            version = or_none(lambda: client.get_model_version_by_alias(name, alias))
        else:
            version = or_none(lambda: client.get_model_version(name, number))
    if version is None:
        raise Unknown(f"{client.tracking_uri} has no {called}: see its Models page, `make ui`.")
    model_id = str(version.source).removeprefix(SOURCE)  # MLflow leaves version.model_id empty here
    return _download(client, model_id, called=f"{called} (version {version.version})", folder=folder)


def download_run(uri: str, run_id: str, *, folder: Path) -> Path:
    """`download` for the model that run `run_id` logged."""
    client = connect(uri)
    with refusals(f"run {run_id}"):
        run = or_none(lambda: client.get_run(run_id))
        if run is None:
            raise Unknown(f"{client.tracking_uri} has no run {run_id}: see its Runs page, `make ui`.")
        model = find_model(client, run.info.experiment_id, run_id=run_id)
    if model is None:
        raise Unknown(f"run {run_id} ({run.info.run_name}) logged no model: it did not come to its end.")
    return _download(client, model.model_id, called=f"the model of run {run_id}", folder=folder)


def _download(client: Any, model_id: str, *, called: str, folder: Path) -> Path:
    with refusals(f"model {model_id}"):
        wanted = client.get_logged_model(model_id).tags.get(WEIGHTS_TAG)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".download-") as place:
        files = download_model(client, model_id, folder=Path(place))
        weights = next((path for path in files if sha256_file(path) == wanted), None)
        if weights is None:
            raise TrackingError(
                f"{called}: none of {[path.name for path in files]} has the "
                f"sha256 it was registered with ({wanted}). The files at {client.tracking_uri} were changed or cut."
            )
        for path in files:
            path.replace(folder / path.name)
    return folder / weights.name


def models_link(experiment: str) -> str:
    """The path of MLflow's page with a row a model and a column a metric of a data set; experiment: its id."""
    return f"/#/experiments/{experiment}/models?{MODE}"


def compare_link(name: str, runs: Mapping[str, str]) -> str:
    """The path of MLflow's page that compares versions of registered model `name`; runs: version number -> run id."""
    versions = quote(json.dumps(dict(runs), separators=(",", ":")))
    return f"/#/compare-model-versions?name={quote(json.dumps(name))}&runs={versions}&{MODE}"
