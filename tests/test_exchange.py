"""Figures of a step over several processes, here threads that meet at every exchange."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from sum.exchange import Exchange

Figures = Mapping[str, Tensor | float]


class Hall:
    """Where `ranks` threads meet: each brings a tensor, each leaves with those of all."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.brought, self.meetings = ranks, [torch.empty(0)] * ranks, 0
        self.barrier = threading.Barrier(ranks, timeout=20)

    def gather(self, rank: int) -> Callable[[Tensor], Tensor]:
        def meet(values: Tensor) -> Tensor:
            self.brought[rank] = values
            self.barrier.wait()
            told = torch.cat(self.brought)
            self.meetings += rank == 0
            self.barrier.wait()
            return told

        return meet


def exchanged(steps: Sequence[Sequence[Figures]]) -> tuple[list[list[dict[str, float]]], int]:
    """What each process learns in each step, and how often they met; steps: for each step what each process has."""
    hall = Hall(len(steps[0]))

    def process(rank: int) -> list[dict[str, float]]:
        exchange = Exchange(hall.gather(rank), ranks=hall.ranks, device=torch.device("cpu"))
        return [exchange.over(step[rank]) for step in steps]

    with ThreadPoolExecutor(hall.ranks) as pool:
        return list(pool.map(process, range(hall.ranks))), hall.meetings


def test_all_learn_the_mean_the_sum_and_the_maximum() -> None:
    step = [
        {"loss": torch.tensor(1.0), "masks": 3, "out_of_memory": torch.tensor(1), "peak_memory_mb": 10.0},
        {"loss": torch.tensor(0.5), "masks": 4, "out_of_memory": torch.tensor(0), "peak_memory_mb": 30.0},
        {"loss": torch.tensor(0.0), "masks": 5, "out_of_memory": torch.tensor(1), "peak_memory_mb": 20.0},
    ]
    told, _ = exchanged([step])
    wanted = {"loss": 0.5, "masks": 12.0, "out_of_memory": 2.0, "peak_memory_mb": 30.0}
    assert told == [[wanted]] * 3
    assert list(told[2][0]) == list(wanted)


def test_a_round_that_another_process_does_not_have_is_the_mean_of_those_that_have_it() -> None:
    """Also one that appears later, under names in another order; known names take one meeting a step."""
    steps: list[list[Figures]] = [
        [{"a": 1.0, "b": 2.0}, {"b": 4.0, "a": 3.0}],
        [{"a": 1.0, "b": 2.0, "late": 7.0}, {"a": 1.0}],
        [{"a": 1.0}, {"a": 2.0, "b": 1.0}],
        [{"a": 1.0, "b": 2.0, "late": 5.0}, {"a": 3.0, "b": 4.0, "late": 6.0}],
    ]
    told, meetings = exchanged(steps)
    wanted = [{"a": 2.0, "b": 3.0}, {"a": 1.0, "b": 2.0, "late": 7.0}, {"a": 1.5, "b": 1.0}]
    wanted.append({"a": 2.0, "b": 3.0, "late": 5.5})
    assert told == [wanted, wanted]
    assert meetings == 4 + 2 * 3  # a new name: its length, the names, and the figures again


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_anywhere_is_not_finite_everywhere(value: float) -> None:
    told, _ = exchanged([[{"loss": 1.0}, {"loss": value}]])
    assert not any(torch.isfinite(torch.tensor(row[0]["loss"])) for row in told)


def test_one_process_keeps_its_figures_and_their_order() -> None:
    def nobody(values: Tensor) -> Tensor:
        raise AssertionError

    exchange = Exchange(nobody, ranks=1, device=torch.device("cpu"))
    assert list(exchange.over({"z": torch.tensor(2), "a": 0.5}).items()) == [("z", 2.0), ("a", 0.5)]
