"""SAM's mask decoder for many single points on a few views, as automatic mask generation asks: same outputs, cheaper.

Nothing is approximated; only the order of the arithmetic differs from Segmenter.decode, so outputs agree to rounding.
- Without a mask prompt all points of a view see one image: what the first layer makes of it is made once.
- A projection of the image side is moved to the few tokens: sum/models/absorbed.py.
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
from torch import Tensor

from sum.models import absorbed
from sum.models.segmenter import POSITIVE, Prompts, Segmenter

Autocast = Callable[[], AbstractContextManager[object]]
Runs = Sequence[tuple[int, int, int]]  # view, and the first and last + 1 of the points on it


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
        self._first_keys = [absorbed.split(reads, reads.k_proj(image + self._where)) for image in self._images]
        self._first_values = [absorbed.split(reads, reads.v_proj(image)) for image in self._images]
        self._first_queries = [absorbed.split(writes, writes.q_proj(image + self._where)) for image in self._images]

    @property
    def near(self) -> int:
        """How many points at once are fastest on a CPU."""
        return absorbed.at_once(int(self._images[0].numel()))

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
            tokens = absorbed.self_attention(layer, tokens, points)
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
            of_view = absorbed.split(attention, asked[start:end].flatten(0, 1))  # [h, m * T, d]
            share = (of_view @ self._first_keys[view].transpose(1, 2) * absorbed.temperature(attention)).softmax(-1)
            parts.append((share @ self._first_values[view]).transpose(0, 1).reshape(end - start, queries.shape[1], -1))
        out: Tensor = attention.out_proj(torch.cat(parts))
        return out

    def _scores_shared(self, attention: Any, keys: Tensor, runs: Runs) -> Tensor:
        """How the positions of each point's view match its tokens: `[n, h, T, P]`."""
        length = keys.shape[1]
        asked = attention.k_proj(keys)
        parts = []
        for view, start, end in runs:
            answers = absorbed.split(attention, asked[start:end].flatten(0, 1))  # [h, m * T, d]
            scores = answers @ self._first_queries[view].transpose(1, 2) * absorbed.temperature(attention)
            parts.append(scores.view(len(scores), end - start, length, -1).transpose(0, 1))
        together: Tensor = torch.cat(parts)
        return together

    def _draw(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Mask logits `[n, 3, L, L]` from tokens and image after the transformer."""
        up = self._decoder.output_upscaling
        heads = self._decoder.output_hypernetworks_mlps
        planes = torch.stack([heads[k](tokens[:, 1 + k]) for k in range(1, self._decoder.num_mask_tokens)], 1)
        fine = up[2](absorbed.norm(up[1], absorbed.unfold(up[0], image)))  # [n, P, 4, C / 4]
        fine = up[4](absorbed.unfold(up[3], fine))  # [n, P, 4, 4, C / 8]
        return absorbed.in_order(fine.flatten(1, 3) @ planes.transpose(1, 2), self._grid)


class OneOutputDecoder:
    """The same for a model with one output a prompt (HQ-SAM), whose decoder is not SAM's alone: `model.decode`."""

    def __init__(self, model: Segmenter, embedding: Tensor, *, autocast: Autocast = nullcontext) -> None:
        """As PointDecoder's."""
        self._model, self._embedding, self._autocast = model, embedding, autocast

    @property
    def near(self) -> int:
        """How many points at once are fastest on a CPU."""
        return absorbed.at_once(int(self._embedding[0].numel()))

    def ask(
        self, xy: Tensor, *, floor: float | None, chunk: int, views: Sequence[int] | None = None
    ) -> Iterator[Outputs]:
        """The output of each of the points whose predicted IoU is above `floor`; see PointDecoder.ask."""
        where = torch.tensor(views or [0] * len(xy), device=xy.device)
        for start in range(0, len(xy), chunk):
            part = slice(start, start + chunk)
            label = torch.full((len(xy[part]), 1), POSITIVE, device=xy.device)
            with self._autocast():
                prompts = Prompts.from_points(xy[part, None], label)
                said = self._model.decode(self._embedding, where[part], prompts, multimask=True)
            iou = said.iou[:, 0].float()
            good = torch.ones_like(iou, dtype=torch.bool) if floor is None else iou > floor
            points = torch.arange(start, start + len(iou), device=xy.device)
            yield Outputs(said.logits[good, 0].float(), iou[good], points[good])


def runs_of(views: Sequence[int]) -> Runs:
    """Where the points of each view begin and end."""
    runs, start = list[tuple[int, int, int]](), 0
    for view, group in groupby(views):
        end = start + len(list(group))
        runs.append((view, start, end))
        start = end
    return runs


def _read(attention: Any, queries: Tensor, *, image: Tensor, placed: Tensor) -> Tensor:
    """Tokens look at their own image `[n, P, C]`."""
    share = (absorbed.questions(attention, queries) @ placed.transpose(1, 2)).softmax(-1)  # [n, h * T, P]
    return absorbed.findings(attention, share @ image)


def _scores(attention: Any, keys: Tensor, *, placed: Tensor) -> Tensor:
    """How the positions of each image match its tokens: `[n, h, T, P]`."""
    offers, bias = absorbed.offers(attention, keys)
    return absorbed.each_head(offers @ placed.transpose(1, 2) + bias, attention.num_heads)


def _write(attention: Any, scores: Tensor, tokens: Tensor) -> Tensor:
    """What the positions take from the tokens: `[n, P, C]`."""
    share = scores.softmax(2).flatten(1, 2)  # [n, h * T, P]
    taken: Tensor = share.transpose(1, 2) @ absorbed.gifts(attention, tokens) + attention.out_proj.bias
    return taken
