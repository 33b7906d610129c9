"""An image's embedding together with early features of its encoder, which still know fine edges (HQ-SAM fuses both).

B counts images; the features are `[B, E, g, g]`, the embedding `[B, C, h, h]`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from sum.models.backbones import TinyEncoder
from sum.models.vit import block, through


def width(encoder: Any) -> tuple[int, int]:
    """E, and how many times the side of the embedding fits into g."""
    if isinstance(encoder, TinyEncoder):
        return encoder.widths[0], 2
    return int(encoder.patch_embed.proj.out_channels), 1


def encode_both(encoder: nn.Module, image: Tensor, *, exact: bool, recompute: bool = False) -> tuple[Tensor, Tensor]:
    """Embedding and early features of normalised images `[B, 3, S, S]`.

    SAM's ViT: behind its first block that attends globally (HQ-SAM); tiny: its first stage, of stride 4.
    exact: the embedding is the encoder's own to the last bit, else that of `sum.models.vit.encode`.
    """
    if isinstance(encoder, TinyEncoder):
        fine, middle, coarse = encoder.stages(image, recompute=recompute)
        return encoder.join(fine, middle, coarse), fine
    assert isinstance(encoder, ImageEncoderViT)
    x, early = encoder.patch_embed(image), None
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for layer in encoder.blocks:
        x = through(layer if exact else partial(block, layer), x, recompute=recompute)
        if early is None and layer.window_size == 0:
            early = x
    assert early is not None  # every SAM has global blocks
    return encoder.neck(x.permute(0, 3, 1, 2)), early.permute(0, 3, 1, 2)
