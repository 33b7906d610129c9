"""The paper's figures that we have, from published.json beside this file: to be shown as published beside one's own."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

SAM = "SAM ViT-H"


@dataclass(frozen=True, slots=True)
class Figure:
    """One published number."""

    table: str  # of the paper
    model: str
    name: str  # a data set as in examples/paper.yaml, a task, or `all`
    prompt: str  # the first one
    output: str
    metric: str
    round: int
    value: float  # per cent


@functools.cache
def figures() -> tuple[Figure, ...]:
    """All of them, in the order of the file."""
    return tuple(
        Figure(table["table"], model, name, table["prompt"], table["output"], *_split(key), value)
        for table in _content()["tables"]
        for name, models in table["figures"].items()
        for model, values in models.items()
        for key, value in values.items()
    )


def published(name: str, *, prompt: str, number: int, metric: str, output: str = "oracle") -> dict[str, float]:
    """Model -> per cent of a data set, a task or `all` after round `number`; empty where nothing was published."""
    wanted = (name, prompt, number, metric, output)
    return {
        figure.model: figure.value
        for figure in figures()
        if (figure.name, figure.prompt, figure.round, figure.metric, figure.output) == wanted
    }


def source() -> str:
    """Where the figures were printed, in words."""
    return str(_content()["source"])


def comparable(tested: Mapping[str, str], stated: Mapping[str, float | None]) -> frozenset[str]:
    """The data sets that are the paper's own, and the tasks and `all` where they are all there is and none is missing.

    tested: data set -> task, all that were evaluated; stated: data set -> `expect.point_miou` of its entry. An entry
    says that its set is the paper's by having the paper's name and the figure that was published for it.
    """
    own = {name for name in tested if stated.get(name) is not None and stated[name] == _one_point(name)}
    suite: dict[str, list[str]] = _content()["suite"]
    found = set(own)
    for task, names in suite.items():
        of_task = {name for name, kind in tested.items() if kind == task}
        if of_task == set(names) and of_task <= own:
            found.add(task)
    if set(tested) == {name for names in suite.values() for name in names} and set(suite) <= found:
        found.add("all")
    return frozenset(found)


def tables(names: Collection[str]) -> list[str]:
    """The paper's tables that hold figures of `names`, as printed: `14, 17`, `19`."""
    return list(dict.fromkeys(figure.table for figure in figures() if figure.name in names))


def _one_point(name: str) -> float | None:
    return published(name, prompt="point", number=1, metric="iou").get(SAM)


def _split(key: str) -> tuple[str, int]:
    metric, _, number = key.partition("@")
    return metric, int(number)


@functools.cache
def _content() -> dict[str, Any]:
    text = files("sum.data").joinpath("published.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
