"""SAM's mask decoder for many single points on a few views, as automatic mask generation asks: same outputs, cheaper.

Nothing is approximated; only the order of the arithmetic differs from Segmenter.decode, so outputs agree to rounding.
- Without a mask prompt all points of a view see one image: what the first layer makes of it is made once.
- A projection of the image side is moved to the few tokens: with T tokens, h heads and C channels,
  q . (W k) = (q W) . k costs h*T instead of D columns for each of the h*w positions; likewise values and outputs.
- The predicted IoU is known before the masks are drawn: points of which no output passes are not drawn.
- A transposed 2x2 convolution of stride 2 is a matrix product; positions are put in their order last, for 3 planes.
A view is an image or a crop of one. N counts points, P positions of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sum.models.segmenter import POSITIVE, Prompts, Segmenter

Autocast = Callable[[], AbstractContextManager[object]]
Runs = Sequence[tuple[int, int, int]]  # view, and the first and last + 1 of the points on it
NEAR = 1 << 22  # numbers of the image side that a CPU keeps near: four points of a ViT's decoder, 256 of tiny's


@dataclass(frozen=True, slots=True, eq=False)
class Outputs:
    """What passed: logits `[K, L, L]`, predicted IoU `[K]`, and the point of each `[K]`."""

    logits: Tensor
    iou: Tensor
    point: Tensor


class PointDecoder:
    """The decoder of a Segmenter, ready for any number of points on V views."""

    def __init__(self, model: Segmenter, embedding: Tensor, *, autocast: Autocast = nullcontext) -> None:
        """embedding `[V, C, h, w]` float32, of `model.encode`; autocast: makes the context in which to compute."""
        self._model, self._decoder, self._autocast = model, model.sam.mask_decoder, autocast
        with autocast():
            self._prepare(embedding)

    def _prepare(self, embedding: Tensor) -> None:
        """Compute what all points of a view share, a view after the other: so it does not hang on the others."""
        model = self._model
        encoder = model.sam.prompt_encoder
        source = embedding + encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        self._grid = (source.shape[2], source.shape[3])
        self._images = [plane.flatten(1).T.contiguous() for plane in source]  # each [P, C]
        self._where = encoder.get_dense_pe()[0].flatten(1).T.contiguous()
        first = self._decoder.transformer.layers[0]
        reads, writes = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        self._first_keys = [_split(reads, reads.k_proj(image + self._where)) for image in self._images]
        self._first_values = [_split(reads, reads.v_proj(image)) for image in self._images]
        self._first_queries = [_split(writes, writes.q_proj(image + self._where)) for image in self._images]

    @property
    def near(self) -> int:
        """How many points at once are fastest on a CPU."""
        return max(1, NEAR // int(self._images[0].numel()))

    def ask(
        self, xy: Tensor, *, floor: float | None, chunk: int, views: Sequence[int] | None = None
    ) -> Iterator[Outputs]:
        """The outputs of points `[N, 2]`, model frame, whose predicted IoU is above `floor` (None: all three of each).

        chunk: points at once; views `[N]`: where each point is, the points of a view side by side (None: on the first).
        """
        views = views or [0] * len(xy)
        for start in range(0, len(xy), chunk):
            part = xy[start : start + chunk]
            with self._autocast():
                iou, good, logits = self._answer(part, runs_of(views[start : start + chunk]), floor)
            points = torch.arange(start, start + len(part), device=xy.device)[:, None].expand_as(iou)
            yield Outputs(logits, iou[good], points[good])

    def _answer(self, xy: Tensor, runs: Runs, floor: float | None) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted IoU `[n, 3]`, which of them pass, and the logits of these `[K, L, L]`, all float32."""
        tokens, image = self._look(xy, runs)
        iou = self._decoder.iou_prediction_head(tokens[:, 0])[:, 1:].float()
        good = torch.ones_like(iou, dtype=torch.bool) if floor is None else iou > floor
        drawn = good.any(1)
        return iou, good, self._draw(tokens[drawn], image[drawn])[good[drawn]].float()

    def _look(self, xy: Tensor, runs: Runs) -> tuple[Tensor, Tensor]:
        """The two-way transformer: tokens `[n, T, C]` and image `[n, P, C]` after both layers."""
        label = torch.full((len(xy), 1), POSITIVE, device=xy.device)
        own = torch.cat([self._decoder.iou_token.weight, self._decoder.mask_tokens.weight]).expand(len(xy), -1, -1)
        asked = self._model.embed_points(Prompts.from_points(xy[:, None], label))
        points = torch.cat([own, asked], 1)
        transformer = self._decoder.transformer
        tokens, image = points, self._of_views(runs)
        placed = image
        for number, layer in enumerate(transformer.layers):
            tokens = self._self_attention(layer, tokens, points)
            reads, writes = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            seen = (
                self._read_shared(reads, tokens + points, runs)
                if number == 0
                else _read(reads, tokens + points, image=image, placed=placed)
            )
            tokens = layer.norm2(tokens + seen)
            tokens = layer.norm3(tokens + layer.mlp(tokens))
            scores = (
                self._scores_shared(writes, tokens + points, runs)
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

    def _of_views(self, runs: Runs) -> Tensor:
        """The image that each point sees: `[n, P, C]`, or `[P, C]` if it is one."""
        if len(runs) == 1:
            image: Tensor = self._images[runs[0][0]]
            return image
        return torch.cat([self._images[view].expand(end - start, -1, -1) for view, start, end in runs])

    def _read_shared(self, attention: Any, queries: Tensor, runs: Runs) -> Tensor:
        """Tokens look at the image that all points of their view share: `[n, T, C]` -> `[n, T, C]`."""
        asked = attention.q_proj(queries)  # [n, T, D]
        parts = []
        for view, start, end in runs:
            of_view = _split(attention, asked[start:end].flatten(0, 1))  # [h, m * T, d]
            share = (of_view @ self._first_keys[view].transpose(1, 2) * _temperature(attention)).softmax(-1)
            parts.append((share @ self._first_values[view]).transpose(0, 1).reshape(end - start, queries.shape[1], -1))
        out: Tensor = attention.out_proj(torch.cat(parts))
        return out

    def _scores_shared(self, attention: Any, keys: Tensor, runs: Runs) -> Tensor:
        """How the positions of each point's view match its tokens: `[n, h, T, P]`."""
        length = keys.shape[1]
        asked = attention.k_proj(keys)
        parts = []
        for view, start, end in runs:
            answers = _split(attention, asked[start:end].flatten(0, 1))  # [h, m * T, d]
            scores = answers @ self._first_queries[view].transpose(1, 2) * _temperature(attention)
            parts.append(scores.view(len(scores), end - start, length, -1).transpose(0, 1))
        together: Tensor = torch.cat(parts)
        return together

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


def runs_of(views: Sequence[int]) -> Runs:
    """Where the points of each view begin and end."""
    runs, start = list[tuple[int, int, int]](), 0
    for view, group in groupby(views):
        end = start + len(list(group))
        runs.append((view, start, end))
        start = end
    return runs


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
