"""Registered models: versions, aliases, tags, figures. Works through the client that sum.tracking makes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sum.tracking import URI, connect, or_none, refusals

MODE = "workflowType=machine_learning"  # MLflow's pages open in GenAI mode without it; it belongs behind the #
START_PAGE = f"/#/experiments?{MODE}"
SHOWN_TAG = "mlflow.modelVersions"  # on a logged model: what the UI's Models table links to


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a registered model."""

    name: str
    number: str
    tags: Mapping[str, str]


class Registry:
    """The registered models behind one tracking URI. Every method raises TrackingError when MLflow refuses."""

    def __init__(self, uri: str) -> None:
        """Raises TrackingError within about ten seconds when the server is absent."""
        self.client = connect(uri)

    def register(self, model_id: str, *, run_id: str, name: str, tags: Mapping[str, str]) -> Version:
        """The version of registered model `name` that is logged model `model_id`: found or made; tags up to date."""
        with refusals(f"registered model {name}"), _as_default(self.client):
            if or_none(lambda: self.client.get_registered_model(name)) is None:
                self.client.create_registered_model(name)
            source = f"models:/{model_id}"
            found = [entry for entry in self.client.search_model_versions(f"name='{name}'") if entry.source == source]
            if found:
                number = str(found[0].version)
            else:
                number = str(self.client.create_model_version(name, source, run_id, model_id=model_id).version)
                self._show(model_id, name=name, number=number)
            for key, value in tags.items():
                self.client.set_model_version_tag(name, number, key, value)
        return Version(name, number, dict(tags))

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


@contextmanager
def _as_default(client: Any) -> Iterator[None]:
    """MLflow's registry looks up logged models at the default server, whatever the client's: make them the same."""
    before = os.environ.get(URI)
    os.environ[URI] = client.tracking_uri
    try:
        yield
    finally:
        os.environ.pop(URI)
        if before is not None:
            os.environ[URI] = before


def compare_link(name: str, runs: Mapping[str, str]) -> str:
    """The path of MLflow's page that compares versions of registered model `name`; runs: version number -> run id."""
    versions = quote(json.dumps(dict(runs), separators=(",", ":")))
    return f"/#/compare-model-versions?name={quote(json.dumps(name))}&runs={versions}&{MODE}"
