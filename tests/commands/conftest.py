"""A folder with the project's params.yaml, for the commands that read or change it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    (tmp_path / "params.yaml").write_bytes((PROJECT / "params.yaml").read_bytes())
    return tmp_path


@pytest.fixture(scope="session")
def empty_dvc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after `dvc init` without git; a dvc takes a second or two, so tests copy it."""
    folder = tmp_path_factory.mktemp("dvc")
    command = [sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def dvc_project(project: Path, empty_dvc: Path) -> Path:
    """The same folder, after `dvc init`."""
    shutil.copytree(empty_dvc, project, dirs_exist_ok=True)
    return project
