"""Ports of this machine: which one a server is to take, and whether it can."""

from __future__ import annotations

import os
import socket

from sum.errors import ConfigError

HOST = "127.0.0.1"


def chosen_port(variable: str, *, default: int) -> int:
    """The port that environment `variable` names, else `default`. Raises ConfigError when it names none."""
    text = os.environ.get(variable, str(default))
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ConfigError(f"{variable} is '{text}'; wanted a port number, 1 to 65535")
    return int(text)


def require_free(port: int, *, variable: str, command: str) -> None:
    """Raise ConfigError when somebody listens on `port` already; variable, command: how to take another."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} is in use ({error.strerror}), perhaps by the same server, started before. Stop it, or "
                f"take another: `{variable}={port + 1} {command}`"
            ) from error
