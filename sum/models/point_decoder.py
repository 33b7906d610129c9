"""SAM's mask decoder for many single points on one image, as automatic mask generation asks: the same outputs, cheaper.

Nothing is approximated; only the order of the arithmetic differs from Segmenter.decode, so outputs agree to rounding.
- Without a mask prompt all points see one image: what the first layer makes of it is made once.
- A projection of the image side is moved to the few tokens: with T tokens, h heads and C channels,
  q . (W k) = (q W) . k costs h*T instead of D columns for each of the h*w positions; likewise values and outputs.
- The predicted IoU is known before the masks are drawn: points of which no output passes are not drawn.
- A transposed 2x2 convolution of stride 2 is a matrix product; positions are put in their order last, for 3 planes.
N counts points, P positions of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sum.models.segmenter import POSITIVE, Prompts, Segmenter

Autocast = Callable[[], AbstractContextManager[object]]
NEAR = 1 << 22  # numbers of the image side that a CPU keeps near: four points of a ViT's decoder, 256 of tiny's


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What passed: logits `[K, L, L]`, predicted IoU `[K]`, and the point of each `[K]`."""

    logits: Tensor
    iou: Tensor
    point: Tensor


class PointDecoder:
    """The decoder of a Segmenter, ready for any number of points on one image."""

    def __init__(self, model: Segmenter, embedding: Tensor, *, autocast: Autocast = nullcontext) -> None:
        """embedding `[1, C, h, w]` float32, of `model.encode`; autocast: makes the context in which to compute."""
        self._model, self._decoder, self._autocast = model, model.sam.mask_decoder, autocast
        with autocast():
            self._prepare(embedding)

    def _prepare(self, embedding: Tensor) -> None:
        """Compute what all points share."""
        model = self._model
        encoder = model.sam.prompt_encoder
        source = embedding + encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        self._grid = (source.shape[2], source.shape[3])
        self._image, self._where = (
            plane.flatten(2).transpose(1, 2)[0].contiguous() for plane in (source, encoder.get_dense_pe())
        )  # [P, C]
        transformer = self._decoder.transformer
        first = transformer.layers[0]
        placed = self._image + self._where
        self._first_keys = _split(first.cross_attn_token_to_image, first.cross_attn_token_to_image.k_proj(placed))
        self._first_values = _split(
            first.cross_attn_token_to_image, first.cross_attn_token_to_image.v_proj(self._image)
        )
        self._first_queries = _split(first.cross_attn_image_to_token, first.cross_attn_image_to_token.q_proj(placed))

    @property
    def near(self) -> int:
        """How many points at once are fastest on a CPU."""
        return max(1, NEAR // int(self._image.numel()))

    def ask(self, xy: Tensor, *, floor: float | None, chunk: int) -> Iterator[Outputs]:
        """The outputs of points `[N, 2]`, model frame, whose predicted IoU is above `floor` (None: all three of each).

        chunk: points at once.
        """
        for start in range(0, len(xy), chunk):
            part = xy[start : start + chunk]
            with self._autocast():
                iou, good, logits = self._answer(part, floor)
            points = torch.arange(start, start + len(part), device=xy.device)[:, None].expand_as(iou)
            yield Outputs(logits, iou[good], points[good])

    def _answer(self, xy: Tensor, floor: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted IoU `[n, 3]`, which of them pass, and the logits of these `[K, L, L]`, all float32."""
        tokens, image = self._look(xy)
        iou = self._decoder.iou_prediction_head(tokens[:, 0])[:, 1:].float()
        good = torch.ones_like(iou, dtype=torch.bool) if floor is None else iou > floor
        drawn = good.any(1)
        return iou, good, self._draw(tokens[drawn], image[drawn])[good[drawn]].float()

    def _look(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        """The two-way transformer: tokens `[n, T, C]` and image `[n, P, C]` after both layers."""
        label = torch.full((len(xy), 1), POSITIVE, device=xy.device)
        own = torch.cat([self._decoder.iou_token.weight, self._decoder.mask_tokens.weight]).expand(len(xy), -1, -1)
        asked = self._model.embed_points(Prompts.from_points(xy[:, None], label))
        points = torch.cat([own, asked], 1)
        transformer = self._decoder.transformer
        tokens, image, placed = points, self._image, self._image
        for number, layer in enumerate(transformer.layers):
            tokens = self._self_attention(layer, tokens, points)
            reads, writes = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            seen = (
                self._read_shared(reads, tokens + points)
                if number == 0
                else _read(reads, tokens + points, image=image, placed=placed)
            )
            tokens = layer.norm2(tokens + seen)
            tokens = layer.norm3(tokens + layer.mlp(tokens))
            scores = (
                self._scores_shared(writes, tokens + points)
                if number == 0
                else _scores(writes, tokens + points, placed=placed)
            )
            image = layer.norm4(_write(writes, scores, tokens) + image)
            placed = image + self._where
        seen = _read(transformer.final_attn_token_to_image, tokens + points, image=image, placed=placed)
        return transformer.norm_final_attn(tokens + seen), image

    @staticmethod
    def _self_attention(layer: Any, tokens: Tensor, points: Tensor) -> Tensor:
        if layer.skip_first_layer_pe:
            mixed: Tensor = layer.self_attn(q=tokens, k=tokens, v=tokens)
        else:
            placed = tokens + points
            mixed = tokens + layer.self_attn(q=placed, k=placed, v=tokens)
        out: Tensor = layer.norm1(mixed)
        return out

    def _read_shared(self, attention: Any, queries: Tensor) -> Tensor:
        """Tokens look at the image that all points share: `[n, T, C]` -> `[n, T, C]`."""
        count, length = queries.shape[:2]
        asked = attention.q_proj(queries).flatten(0, 1)  # [n * T, D]
        share = (_split(attention, asked) @ self._first_keys.transpose(1, 2) * _temperature(attention)).softmax(-1)
        found = (share @ self._first_values).transpose(0, 1).reshape(count, length, -1)
        out: Tensor = attention.out_proj(found)
        return out

    def _scores_shared(self, attention: Any, keys: Tensor) -> Tensor:
        """How the shared image's positions match the tokens: `[n, h, T, P]`."""
        count, length = keys.shape[:2]
        answers = _split(attention, attention.k_proj(keys).flatten(0, 1))  # [h, n * T, d]
        scores = answers @ self._first_queries.transpose(1, 2) * _temperature(attention)
        return scores.view(len(scores), count, length, -1).transpose(0, 1)

    def _draw(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Mask logits `[n, 3, L, L]` from tokens and image after the transformer."""
        up = self._decoder.output_upscaling
        heads = self._decoder.output_hypernetworks_mlps
        planes = torch.stack([heads[k](tokens[:, 1 + k]) for k in range(1, self._decoder.num_mask_tokens)], 1)
        fine = _unfold(up[0], image)  # [n, P, 4, C / 4]
        fine = F.layer_norm(fine, fine.shape[-1:], up[1].weight, up[1].bias, up[1].eps)
        fine = up[4](_unfold(up[3], up[2](fine)))  # [n, P, 4, 4, C / 8]
        logits = fine.flatten(1, 3) @ planes.transpose(1, 2)  # [n, 16 P, 3]
        height, width = self._grid
        logits = logits.view(len(tokens), height, width, 2, 2, 2, 2, planes.shape[1])
        ordered: Tensor = logits.permute(0, 7, 1, 3, 5, 2, 4, 6)
        return ordered.reshape(len(tokens), planes.shape[1], 4 * height, 4 * width)


def _split(attention: Any, x: Tensor) -> Tensor:
    """`[n, D]` -> `[h, n, d]`."""
    return x.view(len(x), attention.num_heads, -1).transpose(0, 1).contiguous()


def _temperature(attention: Any) -> float:
    return float((attention.internal_dim // attention.num_heads) ** -0.5)


def _by_head(attention: Any, linear: Any) -> Tensor:
    """The weight of a projection to D as `[h, d, C]`."""
    weight: Tensor = linear.weight.view(attention.num_heads, -1, linear.weight.shape[1])
    return weight


def _heads(attention: Any, x: Tensor) -> Tensor:
    """`[n, T, D]` -> `[n, h, T, d]`."""
    return x.view(*x.shape[:2], attention.num_heads, -1).transpose(1, 2)


def _read(attention: Any, queries: Tensor, *, image: Tensor, placed: Tensor) -> Tensor:
    """Tokens look at their own image `[n, P, C]`. The keys' bias adds the same to all positions: softmax drops it."""
    asked = _heads(attention, attention.q_proj(queries))
    absorbed = (asked @ _by_head(attention, attention.k_proj)) * _temperature(attention)  # [n, h, T, C]
    share = (absorbed.flatten(1, 2) @ placed.transpose(1, 2)).softmax(-1)  # [n, h * T, P]
    mixed = (share @ image).view(absorbed.shape)
    found = mixed @ _by_head(attention, attention.v_proj).transpose(1, 2)  # [n, h, T, d]
    values = found.transpose(1, 2).flatten(2) + attention.v_proj.bias  # shares add up to 1
    out: Tensor = attention.out_proj(values)
    return out


def _scores(attention: Any, keys: Tensor, *, placed: Tensor) -> Tensor:
    """How the positions of each image match its tokens: `[n, h, T, P]`."""
    answers = _heads(attention, attention.k_proj(keys)) * _temperature(attention)
    absorbed = answers @ _by_head(attention, attention.q_proj)  # [n, h, T, C]
    bias = (answers * attention.q_proj.bias.view(attention.num_heads, 1, -1)).sum(-1, keepdim=True)
    scores: Tensor = (absorbed.flatten(1, 2) @ placed.transpose(1, 2)).view(*absorbed.shape[:3], -1) + bias
    return scores


def _write(attention: Any, scores: Tensor, tokens: Tensor) -> Tensor:
    """What the positions take from the tokens: `[n, P, C]`."""
    values = _heads(attention, attention.v_proj(tokens))  # [n, h, T, d]
    through = attention.out_proj.weight.view(-1, attention.num_heads, values.shape[-1]).permute(1, 2, 0)  # [h, d, C]
    share = scores.softmax(2).flatten(1, 2)  # [n, h * T, P]
    taken: Tensor = share.transpose(1, 2) @ (values @ through).flatten(1, 2) + attention.out_proj.bias
    return taken


def _unfold(layer: Any, x: Tensor) -> Tensor:
    """A transposed 2x2 convolution of stride 2, channels last: `[..., C]` -> `[..., 4, C']`, rows before columns."""
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)  # [4 * C', C]
    out = F.linear(x, weight, layer.bias.repeat(4))
    return out.view(*out.shape[:-1], 4, out.shape[-1] // 4)
