"""Random numbers by seed and place: the published generator, its laws, and that nobody's company matters."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sum.core.chance import bits, normal, uniform

WORD = (1 << 64) - 1


def splitmix64(seed: int, count: int) -> list[int]:
    """The published algorithm in whole numbers of Python: state += golden ratio, two multiplications."""
    state, out = seed & WORD, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
        out.append(z ^ (z >> 31))
    return out


def test_the_published_numbers_of_seed_1234567() -> None:
    found = [int(value) & WORD for value in bits(torch.tensor([1234567]), start=0, count=3)[0]]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(seeds=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), start=st.integers(0, 20))
def test_every_seed_has_its_stream(seeds: list[int], start: int) -> None:
    found = bits(torch.tensor(seeds), start=start, count=5).tolist()
    assert [[value & WORD for value in row] for row in found] == [splitmix64(s, start + 5)[start:] for s in seeds]
    want = [[((value & WORD) >> 11) * 2.0**-53 for value in row] for row in found]
    assert uniform(torch.tensor(seeds), start=start, count=5).tolist() == want


def test_neighbouring_seeds_and_places_are_even_and_independent() -> None:
    drawn = uniform(torch.arange(20_000), start=0, count=6)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    for column in drawn.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-4
    assert (torch.corrcoef(drawn.T) - torch.eye(6)).abs().max() < 0.03  # sd 0.007
    beside = torch.corrcoef(torch.stack([drawn[:-1].flatten(), drawn[1:].flatten()]))[0, 1]
    assert abs(float(beside)) < 0.015  # sd 0.003


def test_normal_numbers_are_normal() -> None:
    drawn = normal(torch.arange(20_000), start=3, count=4)
    for column in drawn.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    assert (torch.corrcoef(drawn.T) - torch.eye(4)).abs().max() < 0.03
    assert torch.isfinite(drawn).all()


def test_who_else_draws_does_not_matter() -> None:
    seeds = torch.randint(2**62, (30,), generator=torch.Generator().manual_seed(0))
    whole = normal(seeds, start=0, count=4)
    assert torch.equal(whole[7:9], normal(seeds[7:9], start=0, count=4))
    assert torch.equal(uniform(seeds, start=0, count=9)[:, 4:6], uniform(seeds, start=4, count=2))
