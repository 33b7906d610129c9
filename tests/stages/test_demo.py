"""Stage demo writes the scenes that are asked for, and an explained empty folder when none are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sum.config import load_config
from sum.settings import Config, DatasetConfig, DemoConfig
from sum.stages import demo

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    settings = load_config(root=ROOT)
    monkeypatch.chdir(tmp_path)
    return replace(settings, demo=DemoConfig(side=64, scenes={"salient_train": 2, "unlabelled": 1, "part_test": 0}))


def test_writes_the_scenes_that_are_asked_for(config: Config) -> None:
    assert demo.run(config) == Path("data/raw/demo")
    assert sorted(path.name for path in demo.OUT.iterdir()) == ["salient_train", "unlabelled"]
    assert len(list((demo.OUT / "salient_train" / "masks").iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"demo": DemoConfig(scenes={"salient_train": 0})}, "asks for no scene"),
        ({"demo": DemoConfig()}, "asks for no scene"),
        (
            {"datasets": {"own": DatasetConfig(kind="images", root="s3://b/p", split="unlabelled", licence="x")}},
            "no data set of params.yaml has its root below data/raw/demo",
        ),
    ],
)
def test_says_why_the_folder_is_empty(config: Config, changes: dict[str, object], why: str) -> None:
    demo.run(config)
    demo.run(replace(config, budgets={}, **changes))  # type: ignore[arg-type]
    assert [path.name for path in demo.OUT.iterdir()] == ["README.txt"]
    assert why in (demo.OUT / "README.txt").read_text()
