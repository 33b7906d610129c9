"""`python -m sum rollback REASON`: the alias champion goes back to the version before."""

from __future__ import annotations

import argparse

from sum.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind the command's name."""
    parser.add_argument("reason", metavar="REASON", help="why, in quotes: kept as a tag of the version gone back from")
    parser.add_argument("--model", metavar="NAME", help="the registered model, else tracking.model of params.yaml")


def run(options: argparse.Namespace) -> str:
    """Swap the aliases `champion` and `previous`; returns who is what now. Errors as `sum.champion.swap`."""
    from sum.champion import swap
    from sum.config import load_config
    from sum.registry import Registry

    reason = options.reason.strip()
    if not reason:
        raise ConfigError("rollback wants a reason, in quotes")
    tracking = load_config().tracking
    name = options.model or tracking.model
    found = swap(Registry(tracking.uri), name, reason=reason)
    held = [f"version {version.number}" if version else "none" for version in (found.champion, found.previous)]
    return f"{name}: champion is {held[0]} again, previous is {held[1]}; {found.why}\n"
