"""What every test gets: one thread, no telemetry, no server or bucket of the user's."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

gc.disable()  # until all is collected: what is imported stays, and to look for garbage in it takes seconds
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: tests are small, threads only fight over two cores
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["DO_NOT_TRACK"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DVC_NO_ANALYTICS"] = "1"
for _name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL", "PREFECT_PROFILE", "AWS_PROFILE"):
    os.environ.pop(_name, None)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in it; making one takes seconds, so tests copy it."""
    from sum.tracking import connect

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def tracking_uri(empty_database: Path, tmp_path: Path) -> str:
    """The URI of an empty MLflow database of this test's own; artifacts lie next to it."""
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


@pytest.fixture(autouse=True)
def handlers_of_the_command_line_end_with_a_test() -> Iterator[None]:
    """They write to the standard error of that moment, which pytest closes afterwards."""
    yield
    for handler in [*logging.root.handlers]:
        if type(handler) is logging.StreamHandler:  # pytest's own are of classes of its own
            logging.root.removeHandler(handler)


@pytest.fixture(autouse=True)
def autograd_starts_no_threads() -> Iterator[None]:
    """Where they run, forked copies cannot run backward (tests/forks.py): the test that starts them is told."""
    before = _autograd_threads()
    yield
    assert _autograd_threads() == before, "mark this test with tests.forks.apart"


def _autograd_threads() -> int:
    """How many threads for devices autograd has, where there is none that wants them."""
    tasks, torch = Path("/proc/self/task"), sys.modules.get("torch")
    if torch is None or not tasks.is_dir() or torch.cuda.is_available():
        return 0
    count = 0
    for path in tasks.glob("*/comm"):
        with suppress(ProcessLookupError, FileNotFoundError):  # another thread may end while this one looks
            count += path.read_text().startswith("pt_autograd")
    return count


LONG = ("test_pipeline.py", "test_real_sam.py", "test_planner.py")  # begun last, one worker would wait for the other


def pytest_collection_finish() -> None:
    """What was imported is never looked at again by the garbage collector, which tests have as everybody has it."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, flows last; the order within a file stays.

    Prefect's threads outlive a flow, and a process forked beside them (a reader of batches) may end with code 1.
    """
    items.sort(key=lambda item: (item.path.name not in LONG, item.path.parent.name == "flows"))
