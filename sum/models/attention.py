"""Attention with SAM's decomposed relative positions without the map of all pairs: the same answers up to rounding.

Scores are scale * q . k + row term + column term (Li et al., MViTv2, 2021; SAM's image encoder). segment_anything keeps
several maps of all pairs for the backward pass, 805 MB each in a global block of ViT-B. Here no map outlives its use:
- on a CPU a strip of queries at a time, whose shares are made again in the backward pass;
- elsewhere the terms ride in further columns of queries and keys, so that a fused kernel sees plain attention. On a CPU
  these columns would cost more than they save.
m counts planes (images or windows, times heads), H x W the grid of positions, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

STRIP = 1 << 20  # scores at work at once on a CPU, 4 MB: large enough for its matrix products, and they stay near
COUNTED = ContextVar("counted", default=False)  # operations are, of tensors without values
ALIGNED = 8  # fused kernels want a multiple of columns
HALVES = (torch.bfloat16, torch.float16)


def attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, *, scale: float) -> Tensor:
    """What each position takes from all: `[m, H * W, d]`.

    q, k, v: `[m, H * W, d]`; rows `[m, H * W, H]`, columns `[m, H * W, W]`: what a query's score gains by the key's
    row and column; scale: of q . k only. All of one floating type; gradients to all, once.
    """
    if q.device.type == "cpu":
        out: Tensor = _Strips.apply(q, k, v, rows, columns, scale)
        return out
    return by_columns(q, k, v, rows, columns, scale=scale)


def by_columns(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, *, scale: float) -> Tensor:
    """`attend` as plain attention over d + H + W columns: a key's row and column are 1 where it lies, else 0."""
    height, width, channels = rows.shape[-1], columns.shape[-1], q.shape[-1]
    row = torch.eye(height, dtype=q.dtype, device=q.device)[:, None].expand(-1, width, -1).flatten(0, 1)
    column = torch.eye(width, dtype=q.dtype, device=q.device).repeat(height, 1)
    where = torch.cat([row, column], 1).expand(len(k), -1, -1)
    asked = _aligned(torch.cat([q, rows / scale, columns / scale], 2))
    keys = _aligned(torch.cat([k, where], 2))
    values = F.pad(v, (0, keys.shape[-1] - channels)) if v.dtype in HALVES else v  # flash kernels: one width for all
    mixed = F.scaled_dot_product_attention(asked[None], keys[None], values[None], scale=scale)[0]
    return mixed[..., :channels]


def _aligned(x: Tensor) -> Tensor:
    return F.pad(x, (0, -x.shape[-1] % ALIGNED))


class _Strips(torch.autograd.Function):
    """`attend` a strip at a time; keeps its inputs and its answer."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        with torch.autocast(q.device.type, enabled=False):
            for plane, part in _strips(q):
                share = _shares(q[plane, part], k[plane], rows[plane, part], columns[plane, part], scale)
                out[plane, part] = share @ v[plane]
        ctx.save_for_backward(q, k, v, rows, columns, out)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v, rows, columns, out = ctx.saved_tensors
        wide = torch.promote_types(q.dtype, torch.float32)  # of sums over strips
        to_k, to_v = (torch.zeros_like(x.transpose(1, 2), dtype=wide).contiguous() for x in (k, v))  # [m, d, H * W]
        to_q, to_rows, to_columns = (torch.empty_like(x) for x in (q, rows, columns))
        mean = (upstream * out).sum(-1, keepdim=True)
        for plane, part in _strips(q):
            share = _shares(q[plane, part], k[plane], rows[plane, part], columns[plane, part], ctx.scale)
            to_v[plane] += upstream[plane, part].transpose(1, 2) @ share
            pull = upstream[plane, part] @ v[plane].transpose(1, 2)
            pull.sub_(mean[plane, part]).mul_(share)  # of the scores
            grid = pull.unflatten(2, (rows.shape[-1], columns.shape[-1]))
            to_rows[plane, part], to_columns[plane, part] = grid.sum(3), grid.sum(2)
            to_q[plane, part] = pull @ k[plane]
            to_k[plane] += q[plane, part].transpose(1, 2) @ pull
        back_k, back_v = to_k.mul_(ctx.scale).transpose(1, 2).to(q.dtype), to_v.transpose(1, 2).to(q.dtype)
        return to_q.mul_(ctx.scale), back_k, back_v, to_rows, to_columns, None


def _strips(q: Tensor) -> Iterator[tuple[slice, slice]]:
    """Planes and queries whose scores are made at once: several small planes, or a part of a large one.

    Of the planner's tensors, which have no values, only the first: the others need the same memory after it.
    Where their operations are counted the first is all there is.
    """
    planes, queries = q.shape[:2]
    strip = planes * queries**2 if COUNTED.get() else STRIP
    together = max(1, strip // queries**2)
    length = queries if queries**2 <= strip else max(1, strip // queries)
    for plane in range(0, planes, together):
        for start in range(0, queries, length):
            yield slice(plane, plane + together), slice(start, start + length)
            if isinstance(q, FakeTensor):
                return


def _shares(q: Tensor, k: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """How much each query of a strip looks at each position: `[n, t, H * W]`."""
    scores = (rows[..., :, None] + columns[..., None, :]).flatten(2)
    return scores.baddbmm_(q, k.transpose(1, 2), alpha=scale).softmax(-1)
