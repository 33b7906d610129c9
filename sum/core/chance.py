"""Random numbers that are a function of a seed and a position: the same whoever draws them and in whatever company.

So a mask is prompted alike in a batch of one process, in the share of one of many, and in a piece of a batch. The
function is splitmix64 (Steele, Lea, Flood 2014) on int64 tensors; nothing waits for the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_STEP, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # splitmix64's, as int64
_MANTISSA = 53  # bits of a float64


def bits(seed: Tensor, *, start: int, count: int) -> Tensor:
    """Numbers `start` .. `start + count - 1` of the streams of seeds `[N]` int64: int64 `[N, count]`, any bits."""
    place = torch.arange(start + 1, start + count + 1, device=seed.device)
    x = seed[:, None] + place * _STEP  # int64 wraps around, as it should
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def uniform(seed: Tensor, *, start: int, count: int) -> Tensor:
    """The same as numbers from [0, 1): float64 `[N, count]`."""
    return _shifted(bits(seed, start=start, count=count), 64 - _MANTISSA).double() * 2.0**-_MANTISSA


def normal(seed: Tensor, *, start: int, count: int) -> Tensor:
    """Standard normal numbers, float64 `[N, count]`; takes 2 * count places of the streams (Box and Muller 1958)."""
    size, angle = uniform(seed, start=start, count=2 * count).chunk(2, dim=1)
    return (-2 * torch.log1p(-size)).sqrt() * (2 * math.pi * angle).cos()


def _shifted(x: Tensor, by: int) -> Tensor:
    """Bits moved right, zeros moved in."""
    return (x >> by) & ((1 << (64 - by)) - 1)
