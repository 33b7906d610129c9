"""MLflow's client: how it is reached within seconds, and what it says no to, as a TrackingError."""

from __future__ import annotations

import functools
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sum.errors import TrackingError

URI = "MLFLOW_TRACKING_URI"  # of the environment: wins over tracking.uri
KNOCK = 5.0  # seconds a server may take to say that it is there
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # default 7, with growing pauses: minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a bar for a page of four small files
}
T = TypeVar("T")


def connect(uri: str) -> Any:
    """A client for `uri`, or for MLFLOW_TRACKING_URI if that is set. Raises TrackingError when nobody answers there."""
    where = os.environ.get(URI) or uri
    if where.startswith(("http://", "https://")):
        _knock(where)
    return _client(where, str(Path.cwd()))


def absolute(uri: str) -> str:
    """The address of a store that means the same from every folder: relative databases and folders are made whole."""
    kind, slashes, place = uri.partition(":///")
    if slashes and kind.startswith("sqlite"):
        return f"{kind}:///{Path(place).absolute()}"
    if "://" in uri:
        return uri
    kind, colon, place = uri.rpartition(":")
    if uri == "databricks":
        return uri
    return Path(place).absolute().as_uri() if not colon or kind == "file" else uri  # databricks:PROFILE and the like


def require_store(uri: str) -> None:
    """Raise TrackingError when the database of `uri`, or of MLFLOW_TRACKING_URI, is a file that is not there.

    To be asked before something is looked up: MLflow would make an empty one.
    """
    where = absolute(os.environ.get(URI) or uri)
    kind, slashes, place = where.partition(":///")
    if slashes and kind.startswith("sqlite") and not Path(place).is_file():
        raise TrackingError(
            f"{place}: no such MLflow database. Start in the project's folder, or give its address "
            f"(uri=, tracking.uri, or {URI} in the environment)"
        )


@functools.cache
def _client(uri: str, folder: str) -> Any:
    """One client a URI; folder: a relative sqlite file is another one elsewhere."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    with refusals(uri):
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)  # creates or checks the database
    return client


def _knock(uri: str) -> None:
    """Ask a server whether it is there, once; MLflow's own client would try for minutes."""
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=KNOCK):  # noqa: S310  # http(s) only
            return
    except urllib.error.HTTPError:  # somebody answers: MLflow's client says more
        return
    except OSError as error:
        hint = f"Start it (`mlflow server`), or unset {URI} and set tracking.uri in params.yaml to sqlite:///mlflow.db."
        raise TrackingError(f"no MLflow server answers at {uri} ({getattr(error, 'reason', error)}). {hint}") from error


@contextmanager
def refusals(what: str, *, verb: str = "take") -> Iterator[None]:
    """Whatever MLflow raises while it is to take (or give) `what` -> TrackingError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackingError(f"MLflow did not {verb} {what}: {' '.join(str(error).split())[:500]}") from error


def or_none(ask: Callable[[], T]) -> T | None:
    """What `ask` returns; None when MLflow does not know the thing asked for."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


@contextmanager
def as_default(client: Any) -> Iterator[None]:
    """MLflow looks up logged models at the default server, whatever the client's: make them the same."""
    before = os.environ.get(URI)
    os.environ[URI] = client.tracking_uri
    try:
        yield
    finally:
        os.environ.pop(URI)
        if before is not None:
            os.environ[URI] = before
