"""What a number of params.yaml may be; a broken limit is a ValueError that pydantic turns into a path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

PILLOW_LIMIT = 89_478_485  # px: Pillow's own guard against decompression bombs


def require(good: bool, message: str) -> None:
    """Refuse with `message` unless `good`."""
    if not good:
        raise ValueError(message)


def at_least(section: object, low: float, *names: str) -> None:
    """Refuse a field of `section` below `low`."""
    for name in names:
        require(getattr(section, name) >= low, f"{name} must be at least {low}, got {getattr(section, name)}")


def share(section: object, *names: str) -> None:
    """Refuse a field of `section` outside 0..1."""
    for name in names:
        require(0 <= getattr(section, name) <= 1, f"{name} must be in 0..1, got {getattr(section, name)}")


def names(keys: Iterable[str], *, where: str, taken: Mapping[str, str]) -> None:
    """Refuse a name that cannot be a file, a word of the command line and a part of MLflow's names at once.

    taken: a pattern of names that have another meaning -> that meaning.
    """
    for key in keys:
        require(
            re.fullmatch("[A-Za-z0-9_-]+", key) is not None,
            f"{where}.{key}: a name has only letters, digits, _ and -",
        )
        for pattern, meaning in taken.items():
            require(re.fullmatch(pattern, key) is None, f"{where}.{key}: '{key}' is {meaning}; take another name")
