"""A folder with the project's params.yaml, for the commands that read or change it."""

from __future__ import annotations

from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    return tmp_path
