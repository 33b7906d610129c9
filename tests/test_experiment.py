"""Where the experiment's runs find photos, and what they are made of. Its means: tests/data/test_seeds.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import experiment
from benchmarks.experiment import Run, make


def test_a_run_sees_photos_beside_the_project_and_links_nothing_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, out = tmp_path / "project", tmp_path / "out"
    (project / "data").mkdir(parents=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/one.png").write_bytes(b"1")
    monkeypatch.setattr(experiment, "photo_folders", lambda _: ["../photos"])
    monkeypatch.setattr(Run, "commands", lambda self: iter(()))
    for seed in (0, 1):
        make(Run("small", "sum", seed), project, out, [])
        assert (out / f"runs/small-sum-{seed}" / "../photos/one.png").read_bytes() == b"1"
    monkeypatch.setattr(experiment, "photo_folders", lambda _: ["../../../photos"])
    with pytest.raises(SystemExit, match="outside"):
        make(Run("small", "sum", 2), project, out, [])
