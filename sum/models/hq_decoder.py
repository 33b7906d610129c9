"""HQ-SAM's output token beside SAM's mask decoder (Ke et al., Segment Anything in High Quality, NeurIPS 2023).

In every layer the token looks at itself, at SAM's tokens and at the image, through SAM's own weights. Unlike in
HQ-SAM's code nothing looks back at it, so SAM's tokens, image and outputs stay what they are to the last bit.
N counts masks, T SAM's tokens, C channels of the embedding, P its positions, L the side of low-resolution logits.
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sum.models import absorbed

LARGER = 4  # L as a multiple of the embedding's side


class HqHead(nn.Module):
    """All that HQ-SAM adds: the token, its MLP, and what makes and mixes the features that it is multiplied with."""

    def __init__(self, *, channels: int, early: int, ratio: int) -> None:
        """channels: C; early: of the early features, whose side is `ratio` (1 or 2) times the embedding's."""
        super().__init__()
        few, step = channels // 8, LARGER // 2 // ratio
        self.token = nn.Embedding(1, channels)
        self.mlp = MLP(channels, channels, few, 3)
        self.compress = _Twice(
            nn.ConvTranspose2d(early, channels, step, stride=step), nn.ConvTranspose2d(channels, few, 2, stride=2)
        )
        self.enlarge = _Twice(
            nn.ConvTranspose2d(channels, channels // 4, 2, stride=2),
            nn.ConvTranspose2d(channels // 4, few, 2, stride=2),
        )
        self.mix = _Twice(nn.Conv2d(few, channels // 4, 3, padding=1), nn.Conv2d(channels // 4, few, 3, padding=1))

    def features(self, embedding: Tensor, early: Tensor) -> Tensor:
        """What hangs on the image alone: `[B, C, h, w]`, `[B, E, g, g]` -> `[B, C / 8, L, L]`."""
        together: Tensor = self.enlarge(embedding) + self.compress(early)
        return together

    def draw(self, state: Tensor, fine: Tensor, features: Tensor) -> Tensor:
        """Logits `[N, 1, L, L]` of the token's last state `[N, C]` on SAM's mask features `[N, C / 8, L, L]`.

        features: `[N or 1, C / 8, L, L]` of the images.
        """
        mixed = self.mix(fine) + features
        plane = self.mlp(state)[:, None]
        logits: Tensor = (plane @ mixed.flatten(2)).view(len(state), 1, *mixed.shape[-2:])
        return logits


class _Twice(nn.Sequential):
    """Two convolutions, between them a norm over channels and GELU."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__(first, LayerNorm2d(first.out_channels), nn.GELU(), second)


def answer(
    decoder: Any, head: HqHead, source: Tensor, *, where: Tensor, tokens: Tensor, features: Tensor, multimask: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """SAM's logits `[N, 1, L, L]`, the head's, and SAM's predicted IoU `[N, 1]`.

    source `[N, C, h, w]`: the image with dense prompts; where `[N, C, h, w]`: its positions; tokens `[N, T, C]`.
    multimask: of SAM's three outputs that of the highest predicted IoU, else the single-mask output. With gradients
    SAM's logits are not drawn: they are the head's.
    """
    states, pixels, state = look(decoder.transformer, head.token.weight, source, where=where, tokens=tokens)
    image = pixels.transpose(1, 2).reshape(source.shape)
    iou = decoder.iou_prediction_head(states[:, 0].detach())
    if torch.is_grad_enabled():
        logits = checkpoint(_draw, decoder, head, image, state, features, use_reentrant=False, preserve_rng_state=False)
        return logits, logits, iou[:, :1]
    fine = decoder.output_upscaling(image)
    wanted = range(1, decoder.num_mask_tokens) if multimask else range(1)
    planes = torch.stack([decoder.output_hypernetworks_mlps[i](states[:, 1 + i]) for i in wanted], 1)
    logits = (planes @ fine.flatten(2)).view(len(source), len(wanted), *fine.shape[-2:])
    iou = iou[:, wanted[0] : wanted[-1] + 1]
    rows, best = torch.arange(len(iou), device=iou.device), iou.argmax(1)
    return logits[rows, best][:, None], head.draw(state, fine, features), iou[rows, best][:, None]


def _draw(decoder: Any, head: HqHead, image: Tensor, state: Tensor, features: Tensor) -> Tensor:
    return head.draw(state, decoder.output_upscaling(image), features)


def look(
    transformer: Any, token: Tensor, source: Tensor, *, where: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """SAM's two-way transformer in its own order of arithmetic, and the token `[1, C]` that watches it.

    Returns SAM's tokens `[N, T, C]` and image `[N, P, C]` after all layers, and the token's state `[N, C]`.
    """
    image, where = source.flatten(2).permute(0, 2, 1), where.flatten(2).permute(0, 2, 1)
    states, own = tokens, token.expand(len(tokens), 1, -1)
    watcher = own
    for layer in transformer.layers:
        watcher = _layer(layer, watcher, own, states=states, points=tokens, image=image, where=where)
        states, image = layer(queries=states, keys=image, query_pe=tokens, key_pe=where)
    final = transformer.final_attn_token_to_image
    watcher = transformer.norm_final_attn(watcher + _read(final, watcher + own, image, where))
    states = states + final(q=states + tokens, k=image + where, v=image)
    return transformer.norm_final_attn(states), image, watcher[:, 0]


def _layer(
    layer: Any, watcher: Tensor, own: Tensor, *, states: Tensor, points: Tensor, image: Tensor, where: Tensor
) -> Tensor:
    """The token's part in a layer, before SAM's own: `[N, 1, C]`."""
    together = torch.cat([states, watcher], 1)
    if layer.skip_first_layer_pe:
        watcher = layer.self_attn(q=watcher, k=together, v=together)
    else:
        placed = together + torch.cat([points, own], 1)
        watcher = watcher + layer.self_attn(q=watcher + own, k=placed, v=together)
    watcher = layer.norm1(watcher)
    watcher = layer.norm2(watcher + _read(layer.cross_attn_token_to_image, watcher + own, image, where))
    out: Tensor = layer.norm3(watcher + layer.mlp(watcher))
    return out


def _read(attention: Any, query: Tensor, image: Tensor, where: Tensor) -> Tensor:
    """One token looks at the image `[N, P, C]`: keys and values absorbed, or the image would be projected again."""
    share = (absorbed.questions(attention, query) @ (image + where).transpose(1, 2)).softmax(-1)
    return absorbed.findings(attention, share @ image)
