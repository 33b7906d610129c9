"""MLflow: runs and logged models. Only this module, sum.mlflow_client and sum.mlflow_model import it.

A run is one finetune (or one base model). Its weights are a *logged model* of plain files, nothing pickled. The figures
of the benchmark are metrics of that logged model on the benchmark as data set, and of the run under `dataset/metric`:
so both tables of the UI line up. Client calls only, no global active run. sum.registry has versions and aliases.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from sum.errors import TrackingError
from sum.mlflow_client import as_default, connect, or_none, refusals
from sum.mlflow_model import FILE, describe_model
from sum.provenance import UNKNOWN, environment, flatten, provenance, tags_asked

log = logging.getLogger(__name__)

WEIGHTS_TAG = "sum.weights"  # fingerprint of the weights: how a model is found again
CARD = "model.json"  # beside a logged model's weights: what a reader needs to build the model
BATCH = 900  # metrics a request; MLflow takes 1000
PATIENCE = 30.0  # seconds before a server that failed is asked again during training
Status = Literal["FINISHED", "FAILED", "KILLED"]


class Run:
    """One MLflow run; `model_id`: its logged model, once there is one. As a context it finishes as the block ends."""

    def __init__(
        self, client: Any, run_id: str, *, model_id: str | None = None, logged: Mapping[str, int] | None = None
    ) -> None:
        """logged: metric -> the last step the server has of it; that one and those before are not sent again."""
        self.client, self.id, self.model_id = client, run_id, model_id
        self._logged = dict(logged or {})
        self._waiting: list[Any] = []
        self._silent_until = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.finish()
            return
        try:
            self.finish("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")
        except TrackingError as second:  # the first error is the one to tell
            log.warning("%s", second)

    def log_metrics(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Keep the metrics of a step for the next batch, but for those that the server has."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        fresh = {key: value for key, value in metrics.items() if step > self._logged.get(key, -1)}
        self._waiting += [Metric(key, float(value), now, step) for key, value in fresh.items()]
        if len(self._waiting) >= BATCH:
            self.offer()

    def offer(self) -> None:
        """Send what waits if the server takes it; one that is away is asked again later, and nothing stops."""
        if time.monotonic() < self._silent_until:
            return
        try:
            self.flush()
        except TrackingError as error:
            self._silent_until = time.monotonic() + PATIENCE
            log.warning("%s; %d metrics wait, training goes on", error, len(self._waiting))

    def flush(self) -> None:
        """Send what waits. Raises TrackingError and keeps it when the server is away."""
        while self._waiting:
            batch = self._waiting[:BATCH]
            with refusals("the metrics"):
                self.client.log_batch(self.id, metrics=batch)
            self._waiting = self._waiting[len(batch) :]

    def log_file(self, path: Path, *, folder: str | None = None) -> None:
        """Keep a copy of a file with the run, below `folder`."""
        with refusals(str(path)):
            self.client.log_artifact(self.id, str(path), folder)

    def log_text(self, text: str, *, name: str) -> None:
        """Keep a text with the run as the file `name`."""
        with refusals(name):
            self.client.log_text(self.id, text, name)

    def log_image(self, image: NDArray[np.uint8], *, name: str) -> None:
        """Keep an `[H, W, 3]` picture with the run as the file `name` (such as pictures/0001.png)."""
        with refusals(name):
            self.client.log_image(self.id, image, artifact_file=name)

    def log_model(
        self,
        weights: Path,
        *,
        name: str,
        fingerprint: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Log a weights file as model `name`; returns (and keeps) its id. Of the same fingerprint it is logged once.

        The file goes as it is, never as a pickle, with it the CARD beside it, where there is one, and what MLflow needs
        to load and serve it (sum.mlflow_model).
        """
        from mlflow.entities import LoggedModelOutput

        with refusals(f"model {name}"):
            experiment = self.client.get_run(self.id).info.experiment_id
            model = find_model(self.client, experiment, fingerprint=fingerprint, run_id=self.id)
            if model is None:
                about = {**(tags or {}), WEIGHTS_TAG: fingerprint}
                model = self.client.create_logged_model(experiment, name, self.id, about, flatten(params), "SAM")
                for path in filter(Path.is_file, (weights, weights.with_name(CARD))):
                    self.client.log_model_artifact(model.model_id, str(path))
                with TemporaryDirectory(prefix="sum-model-") as place:
                    about_it = Path(place) / FILE
                    describe_model(about_it, weights=weights.name, run_id=self.id, model_id=str(model.model_id))
                    self.client.log_model_artifact(model.model_id, str(about_it))
                self.client.log_outputs(self.id, [LoggedModelOutput(model.model_id, 0)])
                self.client.finalize_logged_model(model.model_id, "READY")
        self.model_id = str(model.model_id)
        return self.model_id

    def log_evaluation(self, metrics: Mapping[str, Mapping[str, float]], *, digest: str) -> None:
        """Log the benchmark: data set name -> metric -> value, on the logged model and on the run.

        digest: the benchmark's, the same for all models, so that all lie in one column. What MLflow shows of a metric
        without a data set is that of `all`, which goes last. Raises TrackingError without a logged model.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

        if self.model_id is None:
            raise TrackingError(f"run {self.id} has no logged model to evaluate")
        start, short = int(time.time() * 1000), digest[:36]
        rows, inputs = [], []
        ordered = sorted(metrics.items(), key=lambda entry: entry[0] == "all")
        for now, (dataset, values) in enumerate(ordered, start):  # MLflow wants (metric, time) once a model
            about = Dataset(dataset, short, source_type="local", source=json.dumps({"uri": "data/manifest"}))
            inputs.append(DatasetInput(about, [InputTag("mlflow.data.context", "eval")]))
            for key, value in values.items():
                rows.append(Metric(key, float(value), now, 0, self.model_id, dataset, short, self.id))
                rows.append(Metric(f"{dataset}/{key}", float(value), now, 0))
        with refusals("the evaluation"):
            self.client.log_inputs(self.id, datasets=inputs)
            for start in range(0, len(rows), BATCH):
                self.client.log_batch(self.id, metrics=rows[start : start + BATCH])

    def finish(self, status: Status = "FINISHED") -> None:
        """Send what waits and close the run."""
        self.flush()
        with refusals(f"the end of run {self.id}"):
            self.client.set_terminated(self.id, status)


def start_run(*, uri: str, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Run:
    """Open a new run with its parameters, tags and where it comes from (commit, lock, versions).

    params: may be nested, keys are joined by dots. Tags of the environment (SUM_TAGS) come to those of the caller.
    Raises TrackingError within about ten seconds without a server.
    """
    tags = {**tags_asked(os.environ), **tags}
    client = connect(uri)
    facts = provenance()
    if facts["git.commit"] != UNKNOWN:
        facts["mlflow.source.git.commit"] = facts["git.commit"]
    about = {"mlflow.source.type": "LOCAL", "mlflow.source.name": name, **facts, **tags}
    with refusals(f"run {name}"):
        from mlflow.entities import Param

        created = client.create_run(experiment_id(client, experiment), tags=about, run_name=name)
        run = Run(client, created.info.run_id)
        rows = [Param(key, value) for key, value in flatten(params).items()]
        for start in range(0, len(rows), 100):  # the most MLflow takes at once
            client.log_batch(run.id, params=rows[start : start + 100])
    run.log_text(environment(), name="environment.txt")
    return run


def resume_run(uri: str, run_id: str) -> Run | None:
    """The unfinished run of this id, set going again; None when the server does not know it (a new database, say)."""
    client = connect(uri)
    with refusals(f"run {run_id}"):
        found = or_none(lambda: client.get_run(run_id))
        if found is None or found.info.lifecycle_stage == "deleted":
            return None
        client.update_run(run_id, status="RUNNING")
        logged = {metric.key: int(metric.step) for metric in found.data._metric_objs}  # a batch may have cut a step
        model = find_model(client, found.info.experiment_id, run_id=run_id)
    return Run(client, run_id, model_id=model and model.model_id, logged=logged)


def experiment_id(client: Any, name: str) -> str:
    """The id of experiment `name`, made if need be; below an SQLite file its files lie in mlruns/ next to it."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            mend = f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
            raise TrackingError(f"experiment '{name}' is deleted; another tracking.experiment, or {mend}")
        return str(found.experiment_id)
    uri, place = str(client.tracking_uri), None
    if uri.startswith("sqlite:///"):
        place = (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlruns" / name).as_uri()
    return str(client.create_experiment(name, artifact_location=place))


def find_model(client: Any, experiment: str, *, fingerprint: str | None = None, run_id: str | None = None) -> Any:
    """The newest finished logged model of these weights and of this run, or None."""
    wanted = {f"tags.`{WEIGHTS_TAG}`": fingerprint, "source_run_id": run_id}
    condition = " AND ".join(f"{key} = '{value}'" for key, value in wanted.items() if value is not None)
    order = [{"field_name": "creation_timestamp", "ascending": False}]
    found = client.search_logged_models([experiment], filter_string=condition, order_by=order)
    return next((model for model in found if str(model.status) in ("READY", "LoggedModelStatus.READY")), None)


def download_model(client: Any, model_id: str, *, folder: Path) -> list[Path]:
    """Copy the files of a logged model into `folder`; returns them in order."""
    from mlflow.artifacts import download_artifacts

    with refusals(f"model {model_id}", verb="give"), as_default(client):
        download_artifacts(artifact_uri=f"models:/{model_id}", dst_path=str(folder), tracking_uri=client.tracking_uri)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_files(client: Any, run_id: str, *, folder: str) -> dict[str, str]:
    """File name -> text of the files that were kept with a run below `folder`; {} when there are none."""
    with refusals(f"the files of run {run_id}", verb="give"), TemporaryDirectory(prefix="sum-run-") as place:
        if not client.list_artifacts(run_id, folder):
            return {}
        found = Path(client.download_artifacts(run_id, folder, place))
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(found.iterdir())}


def tag_run(uri: str, run_id: str, *, key: str, value: str) -> None:
    """Set a tag of a run, whatever its status."""
    with refusals(f"tag {key} of run {run_id}"):
        connect(uri).set_tag(run_id, key, value)
