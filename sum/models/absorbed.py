"""Attention between few tokens and the many positions of an image, in the order of arithmetic that costs least.

SAM's mask decoder projects all positions of the image ten times. With T tokens, h heads of d channels and C channels of
the image, q . (W k) = (q W) . k moves a projection to the tokens: h * T columns instead of D = h * d. Values and
outputs likewise. Nothing is approximated: results differ from SAM's by rounding only. N counts masks, P positions.
`attention` is a `segment_anything.modeling.transformer.Attention`.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

NEAR = 1 << 22  # numbers of the image side that a CPU keeps near: four masks of a ViT's decoder, 256 of tiny's


def at_once(numbers: int) -> int:
    """How many masks, each with so many numbers of the image side, are fastest together on a CPU."""
    return max(1, NEAR // numbers)


def pays(attention: Any, tokens: int) -> bool:
    """Whether absorbing a projection of the image side into this many tokens is less work than the projection."""
    return bool(attention.num_heads * tokens < attention.internal_dim)


def temperature(attention: Any) -> float:
    """What scores are multiplied by."""
    return float((attention.internal_dim // attention.num_heads) ** -0.5)


def split(attention: Any, x: Tensor) -> Tensor:
    """`[n, D]` -> `[h, n, d]`."""
    return x.view(len(x), attention.num_heads, -1).transpose(0, 1).contiguous()


def heads(attention: Any, x: Tensor) -> Tensor:
    """`[N, T, D]` -> `[N, h, T, d]`."""
    return x.view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2)


def each_head(x: Tensor, count: int) -> Tensor:
    """`[N, h * T, P]` -> `[N, h, T, P]`."""
    return x.view(len(x), count, -1, x.shape[-1])


def by_head(attention: Any, linear: Any) -> Tensor:
    """The weight of a projection to D as `[h, d, C]`."""
    weight: Tensor = linear.weight.view(attention.num_heads, -1, linear.weight.shape[1])
    return weight


def questions(attention: Any, queries: Tensor) -> Tensor:
    """What tokens `[N, T, C]` ask of the positions, keys absorbed: `[N, h * T, C]`.

    The keys' bias adds the same to all positions: softmax drops it.
    """
    asked = heads(attention, attention.q_proj(queries))
    return ((asked @ by_head(attention, attention.k_proj)) * temperature(attention)).flatten(1, 2)


def findings(attention: Any, mixed: Tensor) -> Tensor:
    """What tokens take from mixtures of positions `[N, h * T, C]`, values absorbed: `[N, T, C]`."""
    each = mixed.view(len(mixed), attention.num_heads, -1, mixed.shape[-1])
    found = each @ by_head(attention, attention.v_proj).transpose(1, 2)  # [N, h, T, d]
    out: Tensor = attention.out_proj(found.transpose(1, 2).flatten(2) + attention.v_proj.bias)  # shares add up to 1
    return out


def offers(attention: Any, keys: Tensor) -> tuple[Tensor, Tensor]:
    """What tokens `[N, T, C]` offer to the positions, queries absorbed: `[N, h * T, C]`, and a bias `[N, h * T, 1]`."""
    answers = heads(attention, attention.k_proj(keys)) * temperature(attention)
    absorbed = answers @ by_head(attention, attention.q_proj)
    bias = (answers * attention.q_proj.bias.view(attention.num_heads, 1, -1)).sum(-1, keepdim=True)
    return absorbed.flatten(1, 2), bias.flatten(1, 2)


def gifts(attention: Any, tokens: Tensor) -> Tensor:
    """What a position gets from a token it looks at, values and outputs absorbed, without bias: `[N, h * T, C]`."""
    values = heads(attention, attention.v_proj(tokens))  # [N, h, T, d]
    through = attention.out_proj.weight.view(-1, attention.num_heads, values.shape[-1]).permute(1, 2, 0)  # [h, d, C]
    given: Tensor = (values @ through).flatten(1, 2)
    return given


def self_attention(layer: Any, tokens: Tensor, points: Tensor) -> Tensor:
    """The tokens `[N, T, C]` of a layer after looking at each other; points: what the prompts were embedded as."""
    if layer.skip_first_layer_pe:
        mixed: Tensor = layer.self_attn(q=tokens, k=tokens, v=tokens)
    else:
        placed = tokens + points
        mixed = tokens + layer.self_attn(q=placed, k=placed, v=tokens)
    out: Tensor = layer.norm1(mixed)
    return out


def unfold(layer: Any, x: Tensor) -> Tensor:
    """A transposed 2x2 convolution of stride 2, channels last: `[..., C]` -> `[..., 4, C']`, rows before columns."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [4 * C', C]
    out = F.linear(x, weight, layer.bias.repeat(4))
    return out.view(*out.shape[:-1], 4, out.shape[-1] // 4)


def fold(layer: Any, x: Tensor) -> Tensor:
    """A 2x2 convolution of stride 2, channels last: `[N, H, W, C]` -> `[N, H / 2, W / 2, C']`."""
    count, height, width, channels = x.shape
    quads = x.view(count, height // 2, 2, width // 2, 2, channels).transpose(2, 3).flatten(3)
    return F.linear(quads, layer.weight.permute(0, 2, 3, 1).flatten(1), layer.bias)


def norm(layer: Any, x: Tensor) -> Tensor:
    """SAM's LayerNorm2d over the last axis."""
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, layer.eps)


def in_order(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Two times unfolded planes to images: `[N, 16 * h * w, M]` -> `[N, M, 4 h, 4 w]`."""
    height, width = grid
    cells = x.view(len(x), height, width, 2, 2, 2, 2, x.shape[-1])
    return cells.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(len(x), x.shape[-1], 4 * height, 4 * width)
