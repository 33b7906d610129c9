"""`make serve`: Prefect's server, a work pool, the deployments and one worker, in one terminal; Ctrl-C ends all.

Everything Prefect keeps lies in .prefect/ of the project. SUM_PREFECT_PORT (4200) is the only setting. The worker takes
one flow at a time: DVC's outputs are shared by all budgets.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from flows.ports import HOST, chosen_port, require_free
from sum.cli import QUIET
from sum.errors import ConfigError, SumError

POOL = "sum-local"
PORT, PORT_VARIABLE = 4200, "SUM_PREFECT_PORT"
START = 180.0  # seconds the server may take; 18 s measured on an idle machine, its first start makes a database
GRACE = 12.0  # seconds a child has to end before it is killed


class _Stopped(Exception):
    """Ctrl-C or SIGTERM."""


class ServeError(SumError):
    """Prefect's server or worker did not start, or ended."""


def main() -> int:
    """Serve until Ctrl-C; returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        serve(port=chosen_port(PORT_VARIABLE, default=PORT), project=Path.cwd())
    except SumError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    except _Stopped:
        sys.stdout.write("stopped\n")
    return 0


def environment(port: int, *, project: Path) -> dict[str, str]:
    """What every Prefect process of this project gets."""
    return {
        **os.environ,
        **QUIET,
        "PREFECT_HOME": str(project / ".prefect"),
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # seconds; at the default of 10 a busy machine finds SQLite locked
        "PYTHONUNBUFFERED": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }


def serve(*, port: int, project: Path) -> None:
    """Start everything in order and watch it. Raises ServeError when a child ends by itself."""
    require_free(port, variable=PORT_VARIABLE, command="make serve")
    env = environment(port, project=project)
    with running(["server", "start", "--host", HOST, "--port", str(port)], env=env) as server:
        wait_healthy(f"{env['PREFECT_API_URL']}/health", server)
        prefect(["work-pool", "create", POOL, "--type", "process", "--overwrite"], env=env)
        prefect(["work-pool", "set-concurrency-limit", POOL, "1"], env=env)
        prefect(["--no-prompt", "deploy", "--all"], env=env)
        with running(["worker", "start", "--pool", POOL, "--limit", "1"], env=env) as worker:
            sys.stdout.write(
                f"\nServing. In another terminal, any of small, medium, large:\n"
                f"  PREFECT_API_URL={env['PREFECT_API_URL']} prefect deployment run sum/ft-large --watch\n"
                f"The grid of params.yaml's ablation, compared: sum/ablation instead.\n"
                f"Pages: http://{HOST}:{port}   Ctrl-C stops server and worker.\n\n"
            )
            sys.stdout.flush()
            watch({"server": server, "worker": worker})


def watch(children: dict[str, subprocess.Popen[bytes]]) -> None:
    """Return never; raise ServeError when one ends."""
    while True:
        for name, child in children.items():
            if child.poll() is not None:
                raise ServeError(f"Prefect's {name} ended with exit code {child.returncode}; its last words are above")
        time.sleep(0.5)


def prefect(words: Sequence[str], *, env: dict[str, str]) -> None:
    """Run one command of Prefect to its end; its words are shown only when it fails."""
    command = [sys.executable, "-m", "prefect", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServeError(f"`prefect {' '.join(words)}` failed:\n{done.stdout}{done.stderr}")


@contextmanager
def running(words: Sequence[str], *, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A long-lived command of Prefect in a group of its own, ended with the block."""
    child = subprocess.Popen([sys.executable, "-m", "prefect", *words], env=env, start_new_session=True)
    try:
        yield child
    finally:
        end(child)


def end(child: subprocess.Popen[bytes]) -> None:
    """Ask twice (a Prefect worker ignores the first SIGTERM), then kill the group."""
    half = GRACE / 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(timeout=half)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    child.wait()


def wait_healthy(url: str, server: subprocess.Popen[bytes]) -> None:
    """Return when the server answers. Raises ServeError when it ends or takes too long."""
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise ServeError(f"Prefect's server ended with exit code {server.returncode}; its last words are above")
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310  # http, on this machine
                return
        except OSError:
            time.sleep(0.5)
    raise ServeError(f"Prefect's server did not answer at {url} within {START:.0f} s")


def _stop(number: int, frame: FrameType | None) -> None:
    for later in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(later, signal.SIG_IGN)  # once is enough; ending takes seconds
    raise _Stopped


if __name__ == "__main__":
    sys.exit(main())
