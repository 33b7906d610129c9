"""`make flow BUDGET=large`: run a deployment on the server of `make serve` and follow it; one error without one."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from flows.ports import HOST, chosen_port
from flows.serve import PORT, PORT_VARIABLE, ServeError
from flows.serve import environment as prefect_environment
from sum.errors import ConfigError, SumError


def main(words: list[str]) -> int:
    """words: the budget; returns Prefect's exit code."""
    try:
        if len(words) != 1:
            raise ConfigError("usage: make flow BUDGET=small|medium|large")
        port = chosen_port(PORT_VARIABLE, default=PORT)
        url = os.environ.get("PREFECT_API_URL") or f"http://{HOST}:{port}/api"
        require_server(url)
    except SumError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    env = {**prefect_environment(port, project=Path.cwd()), "PREFECT_API_URL": url}
    command = [sys.executable, "-m", "prefect", "deployment", "run", f"sum/ft-{words[0]}", "--watch"]
    return subprocess.run(command, env=env, check=False).returncode


def require_server(url: str) -> None:
    """Raise ServeError when no Prefect server answers at `url`."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5):  # noqa: S310  # set by the user or by us
            return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ServeError(
            f"no Prefect server answers at {url} ({reason}). Start it in another terminal: `make serve` "
            f"(PREFECT_API_URL or {PORT_VARIABLE} if it is elsewhere)"
        ) from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
