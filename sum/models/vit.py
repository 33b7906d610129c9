"""SAM's image encoder with the attention of sum/models/attention.py: the modules are segment_anything's, and so are
their weights and names; only the order of the arithmetic differs.

B counts images, h x w patches, C channels of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import get_rel_pos, window_partition, window_unpartition
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sum.models.attention import attend


def encode(encoder: nn.Module, image: Tensor, *, recompute: bool = False) -> Tensor:
    """What `encoder(image)` answers, up to rounding: `[B, 3, S, S]` normalised -> `[B, C', S/16, S/16]`.

    recompute: keep only what goes into each block, and run the block again in the backward pass: the same gradients,
    about a third more time. An encoder that is not SAM's ViT runs as it is; to recompute, its forward takes the word.
    """
    if not isinstance(encoder, ImageEncoderViT):
        other: Tensor = encoder(image, recompute=True) if recompute else encoder(image)
        return other
    x = encoder.patch_embed(image)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for layer in encoder.blocks:
        x = through(partial(block, layer), x, recompute=recompute)
    features: Tensor = encoder.neck(x.permute(0, 3, 1, 2))
    return features


def through(part: Callable[[Tensor], Tensor], x: Tensor, *, recompute: bool) -> Tensor:
    """part(x), whose inner values are kept for the backward pass or made again in it. Nothing in it is random."""
    if not (recompute and torch.is_grad_enabled()):
        return part(x)
    out: Tensor = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False)
    return out


def block(layer: Any, x: Tensor) -> Tensor:
    """A transformer block of SAM's ViT, over windows or the whole grid: `[B, h, w, C]` -> `[B, h, w, C]`."""
    y, side, hw = layer.norm1(x), layer.window_size, (x.shape[1], x.shape[2])
    if side > 0:
        windows, padded = window_partition(y, side)
        y = window_unpartition(attention(layer.attn, windows), side, padded, hw)
    else:
        y = attention(layer.attn, y)
    x = x + y
    out: Tensor = x + layer.mlp(layer.norm2(x))
    return out


def attention(layer: Any, x: Tensor) -> Tensor:
    """segment_anything's image encoder Attention: `[n, H, W, C]` -> `[n, H, W, C]`."""
    count, height, width, _ = x.shape
    qkv = layer.qkv(x).view(count, height * width, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
    if layer.use_rel_pos:
        q, k, v = qkv.flatten(1, 2).unbind(0)  # [n * heads, H * W, d]
        grid = q.view(-1, height, width, q.shape[-1])
        rows = torch.einsum("mhwc,hkc->mhwk", grid, between(layer.rel_pos_h, height)).flatten(1, 2)
        columns = torch.einsum("mhwc,wkc->mhwk", grid, between(layer.rel_pos_w, width)).flatten(1, 2)
        mixed = attend(q, k, v, rows, columns, scale=layer.scale).view(count, layer.num_heads, *q.shape[1:])
    else:
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, scale=layer.scale)
    out: Tensor = layer.proj(mixed.transpose(1, 2).reshape(x.shape))  # from [n, heads, H * W, d]
    return out


def between(table: Tensor, size: int) -> Tensor:
    """The embedding of each query's distance to each key on a line: `[2 * size - 1, d]` -> `[size, size, d]`.

    As segment_anything's get_rel_pos, whose index lies on the CPU: a GPU would have to be waited for.
    """
    if len(table) == 2 * size - 1:
        return table.unfold(0, size, 1).flip(-1).transpose(1, 2)
    resized: Tensor = get_rel_pos(size, size, table)
    return resized
