"""Files of other repositories, beside ours: a benchmark takes the folder of a checkout as an option."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any


def module_at(path: Path, option: str) -> Any:
    """A Python file of a checkout as a module."""
    if not path.is_file():
        raise SystemExit(f"{option}: {path} is missing; wanted is a checkout of the repository.")
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
