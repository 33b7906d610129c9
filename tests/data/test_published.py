"""The published figures: as printed, consistent with each other, and of sets that examples/paper.yaml names."""

from __future__ import annotations

from math import fsum
from pathlib import Path
from typing import Any

import pytest
import yaml

from sum.core.first_prompts import FIRST_PROMPTS
from sum.data.published import SAM, comparable, figures, published, source, tables
from sum.data.scores import METRICS
from sum.models.interact import OUTPUTS

ENTRIES: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "examples/paper.yaml").read_text())["datasets"]
TESTED = {name: entry["task"] for name, entry in ENTRIES.items() if entry["split"] == "test"}
STATED = {name: ENTRIES[name].get("expect", {}).get("point_miou") for name in TESTED}
LATER = {"cityscapes", "egohos", "dram", "ishape", "gtav", "ndd20", "trashcan", "ibd"}  # table 19, not of the 14
SUITE = {name: task for name, task in TESTED.items() if name not in LATER}


def test_figures_speak_the_words_of_evaluation() -> None:
    for figure in figures():
        assert figure.name in {*TESTED, *TESTED.values(), "all"}
        assert figure.prompt in FIRST_PROMPTS
        assert figure.output in OUTPUTS
        assert figure.metric in METRICS
        assert 1 <= figure.round <= 9
        assert 0 < figure.value < 100
    assert "NeurIPS 2024" in source()


def test_every_test_set_has_the_figure_that_its_entry_expects() -> None:
    for name, expected in STATED.items():
        assert published(name, prompt="point", number=1, metric="iou")[SAM] == expected, name


@pytest.mark.parametrize(
    ("name", "prompt", "number", "metric", "model", "value"),
    [
        ("dis_vd", "box", 1, "iou", SAM, 68.3),
        ("fashionpedia_subpart", "point", 1, "boundary_iou", SAM, 42.9),
        ("gtav", "point", 9, "iou", SAM, 57.0),
        ("all", "point", 3, "boundary_iou", "U2PL FT-Small", 72.8),
        ("all", "point", 3, "iou", "SUM without task prompt FT-Medium", 82.0),
        ("part", "point", 5, "boundary_iou", "SUM FT-Large", 75.6),
        ("entity", "point", 1, "iou", "SUM FT-Medium ViT-L", 77.9),
    ],
)
def test_figures_as_printed(name: str, prompt: str, number: int, metric: str, model: str, value: float) -> None:
    assert published(name, prompt=prompt, number=number, metric=metric)[model] == value


def test_other_outputs_are_kept_apart() -> None:
    assert published("all", prompt="point", number=6, metric="iou") == {}
    assert published("all", prompt="point", number=6, metric="iou", output="single")["HQ-SAM"] == 76.7


def mean(values: list[float]) -> float:
    return fsum(values) / len(values)


@pytest.mark.parametrize("task", ["salient", "entity", "part"])
def test_table_6_is_the_mean_of_table_14(task: str) -> None:
    """The paper's tables were typed in apart; that they agree says that no digit was lost."""
    names = [name for name, kind in SUITE.items() if kind == task]
    sets = [published(name, prompt="point", number=1, metric="iou")[SAM] for name in names]
    assert mean(sets) == pytest.approx(published(task, prompt="point", number=1, metric="iou")[SAM], abs=0.1)


@pytest.mark.parametrize(
    ("number", "metric", "model"),
    [(1, "iou", SAM), (1, "iou", "SUM FT-Medium"), (5, "boundary_iou", SAM), (5, "boundary_iou", "SUM FT-Large")],
)
def test_all_is_the_mean_of_the_tasks_by_their_sets(number: int, metric: str, model: str) -> None:
    sizes = {"salient": 6, "entity": 3, "part": 5}
    of = {name: published(name, prompt="point", number=number, metric=metric)[model] for name in (*sizes, "all")}
    assert fsum(sizes[task] * of[task] for task in sizes) / 14 == pytest.approx(of["all"], abs=0.1)


def test_what_may_stand_beside_ones_own() -> None:
    assert comparable(TESTED, STATED) == {*TESTED, "salient", "part"}  # table 19's sets are entities, too
    assert comparable(SUITE, STATED) == {*SUITE, "salient", "entity", "part", "all"}
    fewer = {name: task for name, task in SUITE.items() if name != "coift"}
    assert comparable(fewer, STATED) == {*fewer, "entity", "part"}
    assert comparable(SUITE, STATED | {"mhp": None}) == {*SUITE, "salient", "entity"} - {"mhp"}
    assert comparable(SUITE, STATED | {"mhp": 66.7}) == {*SUITE, "salient", "entity"} - {"mhp"}
    assert comparable({"mine": "part"}, {"mine": 66.6}) == frozenset()
    assert comparable({"mine": "part"}, {}) == frozenset()


def test_tables_are_named() -> None:
    assert tables({"coift", "gtav"}) == ["14, 17", "19"]
    assert tables({"mine"}) == []
