"""What the tests of the stages share: each gets a copy of its module's `template` and works there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos with pseudo-labels and maps, and one photo with a human mask."""
    from tests.stages.tuning_world import make_labelled

    folder = tmp_path_factory.mktemp("labelled")
    make_labelled(folder)
    return folder


@pytest.fixture(scope="module")
def template(labelled: Path) -> Path:
    """What `project` copies, if a module has none of its own."""
    return labelled


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder
