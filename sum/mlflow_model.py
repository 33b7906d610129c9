"""How a logged model is described to MLflow, so that it loads and serves it, and how a request is refused over HTTP."""

from __future__ import annotations

import functools
import json
import platform
from pathlib import Path

FILE = "MLmodel"
LOADER = "sum.serving"  # the module that MLflow imports; the file of weights stays as it is, nothing is pickled
INPUTS = ("image", "points", "labels", "box", "task", "multimask")  # columns of a request, each may be left out
OUTPUTS = ("masks", "scores", "task", "fingerprint")


def describe_model(path: Path, *, weights: str, run_id: str, model_id: str) -> None:
    """Write MLflow's description of a logged model: flavour python_function, and what comes out.

    weights: name of the file that LOADER gets. What goes in is not described: MLflow would drop columns that are not
    in its schema without a word, answer a missing one with status 500 and take no whole number for a coordinate.
    LOADER sees and checks them all.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Map, Schema

    anything = AnyType()  # type: ignore[no-untyped-call]
    kinds = {"masks": Array(Map(anything)), "scores": Array(DataType.double)}
    outputs = Schema([ColSpec(kinds.get(name, DataType.string), name) for name in OUTPUTS])
    model = Model(run_id=run_id, model_id=model_id, signature=ModelSignature(outputs=outputs))
    model.add_flavor("python_function", loader_module=LOADER, data=weights, python_version=platform.python_version())
    model.save(str(path))


def bad_request(reason: str) -> Exception:
    """To raise while a request is answered: status 400 with this reason and nothing else."""
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    return _told()(reason, INVALID_PARAMETER_VALUE)


def server_fault(reason: str) -> Exception:
    """To raise while a request is answered: status 500 with this reason; of other exceptions MLflow makes a 400."""
    from mlflow.protos.databricks_pb2 import INTERNAL_ERROR

    return _told()(reason, INTERNAL_ERROR)


@functools.cache
def _told() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    class Told(MlflowException):
        """Its own reason: MLflow's server puts the request before `message`, image and all."""

        def __init__(self, reason: str, code: int) -> None:
            super().__init__(reason, error_code=code)
            self.reason = reason

        def serialize_as_json(self) -> str:
            return json.dumps({"error_code": self.error_code, "message": self.reason})

    return Told
