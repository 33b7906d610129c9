"""`make ui`: MLflow's pages over the project's database; SUM_MLFLOW_PORT (5000) is the only setting."""

from __future__ import annotations

import os
import sys

from flows.ports import HOST, chosen_port, require_free
from sum.cli import QUIET
from sum.config import load_config
from sum.errors import ConfigError, SumError
from sum.registry import START_PAGE

PORT, PORT_VARIABLE = 5000, "SUM_MLFLOW_PORT"


def main() -> int:
    """Become `mlflow ui`; returns an exit code only when it cannot."""
    try:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or load_config().tracking.uri
        if uri.startswith("http"):
            raise ConfigError(f"MLflow runs at {uri} already: open it there")
        port = chosen_port(PORT_VARIABLE, default=PORT)
        require_free(port, variable=PORT_VARIABLE, command="make ui")
    except SumError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"Open http://{HOST}:{port}{START_PAGE}   Ctrl-C stops it.\n")
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", HOST, "--port", str(port)]
    return os.execve(sys.executable, command, {**os.environ, **QUIET})  # noqa: S606  # Ctrl-C is MLflow's from here on


if __name__ == "__main__":
    sys.exit(main())
