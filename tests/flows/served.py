"""`python -m flows.serve` in a project, and runs of its deployments as from a user's other terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.dvc import environment
from tests.flows.project import processes_with

LONG = 300  # seconds a server or a flow may take on a busy machine


class Served:
    """A project with `python -m flows.serve` running in it."""

    def __init__(self, project: Path, port: int) -> None:
        self.project = project
        self.url = f"http://127.0.0.1:{port}/api"
        self.env = {
            **environment(),
            "SUM_PREFECT_PORT": str(port),
            "PREFECT_API_URL": self.url,
            "PREFECT_HOME": str(project / ".prefect"),
        }
        self.log = project / "serve.log"
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "flows.serve"]
            self.process = subprocess.Popen(command, cwd=project, env=self.env, stdout=log, stderr=subprocess.STDOUT)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + LONG
        while "Serving." not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.3)

    def run(self, name: str) -> subprocess.Popen[str]:
        """`prefect deployment run NAME --watch`, as a user would from another terminal."""
        command = [sys.executable, "-m", "prefect", "deployment", "run", name, "--watch"]
        return subprocess.Popen(
            command, cwd=self.project, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def artifacts(self) -> dict[str, Any]:
        """Key -> data of every artifact that the server keeps."""
        request = urllib.request.Request(
            f"{self.url}/artifacts/latest/filter", data=b"{}", headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return {entry["key"]: entry["data"] for entry in json.load(answer)}


@contextmanager
def serving(project: Path, *, port: int) -> Iterator[Served]:
    """A server that is ready, ended with the block."""
    server = Served(project, port)
    try:
        server.wait_ready()
        yield server
    finally:
        server.process.send_signal(signal.SIGINT)
        server.process.wait(timeout=60)


def wait_for(path: Path, served: Served) -> None:
    deadline = time.monotonic() + LONG
    while not path.exists():
        assert time.monotonic() < deadline, served.log.read_text()
        time.sleep(0.1)


def flow_processes(served: Served) -> list[int]:
    """The process that runs the flow: the parent of the guard."""
    import psutil

    guards = [pid for pid in processes_with("sum.guard") if str(served.project) in environ_of(pid)]
    return sorted({psutil.Process(pid).ppid() for pid in guards})


def environ_of(pid: int) -> str:
    import psutil

    try:
        return psutil.Process(pid).environ().get("PREFECT_HOME", "")
    except psutil.Error:
        return ""
