"""The contrastive loss against plain loops, and places drawn evenly from those that are allowed."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sum.core.contrast import draw_places, info_nce


def cosine(a: list[float], b: list[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(y * y for y in b)))


def by_loops(anchors: Tensor, positive: Tensor, keys: Tensor, index: Tensor, temperature: float) -> list[float]:
    """Equation 6 of U2PL, one mask, one anchor, one key at a time."""
    found = []
    for n in range(len(anchors)):
        total = 0.0
        for a in range(anchors.shape[1]):
            own = anchors[n, a].tolist()
            good = math.exp(cosine(own, positive[n].tolist()) / temperature)
            bad = 0.0
            for k in index[n, a].tolist():
                bad += math.exp(cosine(own, keys[n, k].tolist()) / temperature)
            total -= math.log(good / (good + bad))
        found.append(total / anchors.shape[1])
    return found


def test_the_loss_is_that_of_plain_loops() -> None:
    g = torch.Generator().manual_seed(0)
    anchors, positive = torch.randn(3, 5, 4, generator=g), torch.randn(3, 4, generator=g)
    keys, index = torch.randn(3, 9, 4, generator=g), torch.randint(0, 9, (3, 5, 6), generator=g)
    for temperature in (0.5, 0.07):
        found = info_nce(anchors, positive, keys, index, temperature=temperature)
        wanted = torch.tensor(by_loops(anchors, positive, keys, index, temperature))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_only_anchors_get_a_gradient_and_it_is_the_numerical_one() -> None:
    g = torch.Generator().manual_seed(1)
    anchors = torch.randn(2, 3, 4, generator=g, requires_grad=True)
    positive = torch.randn(2, 4, generator=g, requires_grad=True)
    keys = torch.randn(2, 7, 4, generator=g, requires_grad=True)
    index = torch.randint(0, 7, (2, 3, 5), generator=g)
    info_nce(anchors, positive, keys, index, temperature=0.5).sum().backward()
    assert positive.grad is None
    assert keys.grad is None
    assert anchors.grad is not None
    step = 1e-3
    for place in ((0, 0, 1), (1, 2, 3)):
        moved = [anchors.detach().clone() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        up, down = (math.fsum(by_loops(one, positive, keys, index, 0.5)) for one in moved)
        assert math.isclose(float(anchors.grad[place]), (up - down) / (2 * step), rel_tol=1e-2, abs_tol=1e-4)


def test_places_are_drawn_evenly_from_those_that_are_allowed() -> None:
    allowed = torch.zeros(3, 10, dtype=torch.bool)
    allowed[0, [2, 3, 9]] = True
    allowed[1] = True
    index, some = draw_places(allowed, torch.rand(3, 6000, generator=torch.Generator().manual_seed(0)).double())
    assert some.tolist() == [True, True, False]
    assert set(index[0].tolist()) == {2, 3, 9}
    counts = torch.bincount(index[0], minlength=10)[[2, 3, 9]]
    assert (counts - 2000).abs().max() < 200  # sd 37
    assert len(set(index[1].tolist())) == 10
    assert 0 <= int(index[2].min()) <= int(index[2].max()) < 10
    edges, _ = draw_places(allowed[:1], torch.tensor([[0.0, 1 / 3, 2 / 3, 1 - 2.0**-53]], dtype=torch.float64))
    assert edges.tolist() == [[2, 3, 9, 9]]
