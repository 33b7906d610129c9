"""SAM's mask decoder with gradients, for many masks on a few images: the same answers, less time and memory.

The order of the arithmetic is that of sum/models/absorbed.py; see there and sum/models/point_decoder.py, which does
the same without gradients. Here besides:
- Without a mask prompt, on one image, all masks see the same image but for their task vector `o`, which is the same at
  every position: it drops out of the scores over positions, adds W o to values and k . W o to the scores over tokens.
- What is cheap to make again is made again in the backward pass, not kept.
N counts masks, T tokens, P positions of the embedding, M wanted outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from sum.models import absorbed


def answer(
    sam: Sam,
    embedding: Tensor,
    *,
    image_index: Tensor,
    tokens: Tensor,
    offset: Tensor | None,
    feedback: Tensor | None,
    wanted: range,
) -> tuple[Tensor, Tensor]:
    """Logits `[N, M, L, L]` and predicted IoU `[N, M]` of the wanted outputs of N masks on B images.

    embedding `[B, C, h, w]`; image_index `[N]`; tokens `[N, T, C]`: the decoder's own and the prompt's; offset
    `[N, C]`: what is added to the embedding at every position; feedback `[N, 1, L, L]`: mask prompts.
    """
    scene = _Scene(sam, embedding, shared=feedback is None and len(embedding) == 1)
    count = absorbed.at_once(embedding[0].numel()) if embedding.device.type == "cpu" else max(1, len(tokens))
    parts = [
        scene.answer(*part, wanted)
        for part in zip(
            torch.split(image_index, count),
            torch.split(tokens, count),
            _parts(offset, count),
            _parts(feedback, count),
            strict=False,
        )
    ]
    logits, iou = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(iou)


def _parts(x: Tensor | None, count: int) -> Iterator[Tensor | None]:
    while x is None:
        yield None
    yield from torch.split(x, count)


class _Scene:
    """The images of a call, and what all their masks share."""

    def __init__(self, sam: Sam, embedding: Tensor, *, shared: bool) -> None:
        encoder = sam.prompt_encoder
        self.encoder, self.decoder, self.shared = encoder, sam.mask_decoder, shared
        self.grid = (embedding.shape[2], embedding.shape[3])
        self.image = embedding.flatten(2).transpose(1, 2).contiguous()  # [B, P, C]
        self.where = encoder.get_dense_pe().flatten(2).transpose(1, 2)[0].contiguous()  # [P, C]
        if shared:
            self.image = self.image + encoder.no_mask_embed.weight
            first = self.decoder.transformer.layers[0]
            reads, writes = first.cross_attn_token_to_image, first.cross_attn_image_to_token
            placed = self.image[0] + self.where
            self.keys = absorbed.split(reads, reads.k_proj(placed))  # [h, P, d]
            self.values = absorbed.split(reads, reads.v_proj(self.image[0]))
            self.queries = absorbed.split(writes, writes.q_proj(placed))

    def answer(
        self, index: Tensor, points: Tensor, offset: Tensor | None, feedback: Tensor | None, wanted: range
    ) -> tuple[Tensor, Tensor]:
        """Logits and predicted IoU of a few masks."""
        tokens, image = self.look(self.source(index, offset, feedback), points, offset)
        heads = self.decoder.output_hypernetworks_mlps
        planes = torch.stack([heads[k](tokens[:, 1 + k]) for k in wanted], 1)
        drawn = checkpoint(self.draw, image, planes, use_reentrant=False, preserve_rng_state=False)
        logits, iou = absorbed.in_order(drawn, self.grid), self.decoder.iou_prediction_head(tokens[:, 0])
        return logits, iou[:, wanted[0] : wanted[-1] + 1]  # a list as an index would be copied to a GPU, which waits

    def source(self, index: Tensor, offset: Tensor | None, feedback: Tensor | None) -> Tensor:
        """The image as each mask sees it `[n, P, C]`, or, shared, `[1, P, C]` without the offset."""
        if self.shared:
            return self.image
        image = self.image if len(self.image) == 1 else self.image.index_select(0, index)
        constant = self.encoder.no_mask_embed.weight if feedback is None else self.feed(feedback)
        image = image + constant
        return image if offset is None else image + offset[:, None]

    def feed(self, feedback: Tensor) -> Tensor:
        """Mask prompts `[n, 1, L, L]` as SAM's mask_downscaling embeds them: `[n, P, C]`."""
        down = self.encoder.mask_downscaling
        x = down[2](absorbed.norm(down[1], absorbed.fold(down[0], feedback.permute(0, 2, 3, 1))))
        x = down[5](absorbed.norm(down[4], absorbed.fold(down[3], x)))
        return F.linear(x.flatten(1, 2), down[6].weight.flatten(1), down[6].bias)

    def look(self, image: Tensor, points: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        """The two-way transformer: tokens `[n, T, C]` and image `[n, P, C]` after all layers."""
        transformer = self.decoder.transformer
        tokens = points
        for number, layer in enumerate(transformer.layers):
            tokens = absorbed.self_attention(layer, tokens, points)
            reads, writes = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            shared = self.shared and number == 0
            seen = (
                self.read_shared(reads, tokens + points, offset) if shared else self.read(reads, tokens + points, image)
            )
            tokens = layer.norm2(tokens + seen)
            tokens = layer.norm3(tokens + layer.mlp(tokens))
            image = (
                layer.norm4(self.write_shared(writes, tokens + points, tokens, offset))
                if shared
                else self.write(layer, tokens + points, tokens, image)
            )
        seen = self.read(transformer.final_attn_token_to_image, tokens + points, image)
        return transformer.norm_final_attn(tokens + seen), image

    def read(self, attention: Any, queries: Tensor, image: Tensor) -> Tensor:
        """Tokens look at their image: `[n, T, C]`."""
        if absorbed.pays(attention, queries.shape[1]):
            asked = absorbed.questions(attention, queries)
            mixed = (_read if _autocast(image) else _Read.apply)(asked, image, self.where)
            nothing = 0 * attention.k_proj.bias.sum()  # its gradient is zero: exactly, and not by being absent
            return absorbed.findings(attention, mixed + nothing)
        keys = F.linear(image, attention.k_proj.weight) + attention.k_proj(self.where)
        found = _look_up(attention, attention.q_proj(queries), keys, attention.v_proj(image))
        out: Tensor = attention.out_proj(found)
        return out

    def write(self, layer: Any, keys: Tensor, tokens: Tensor, image: Tensor) -> Tensor:
        """The image `[n, P, C]` and what its positions take from the tokens, normed."""
        attention = layer.cross_attn_image_to_token
        if absorbed.pays(attention, keys.shape[1]):
            gifts = absorbed.gifts(attention, tokens) + attention.out_proj.bias / attention.num_heads
            offers, bias = absorbed.offers(attention, keys)
            if _autocast(image):
                return _write(offers, bias, gifts, image, self.where, layer)
            scale = torch.stack([layer.norm4.weight, layer.norm4.bias])
            out: Tensor = _Write.apply(offers, bias, gifts, image, self.where, scale, layer)
            return out
        queries = F.linear(image, attention.q_proj.weight) + attention.q_proj(self.where)
        taken = _look_up(attention, queries, attention.k_proj(keys), attention.v_proj(tokens))
        together: Tensor = layer.norm4(image + attention.out_proj(taken))
        return together

    def read_shared(self, attention: Any, queries: Tensor, offset: Tensor | None) -> Tensor:
        """Tokens look at the one image: `[n, T, C]`."""
        count, length = queries.shape[:2]
        asked = absorbed.split(attention, attention.q_proj(queries).flatten(0, 1)) * absorbed.temperature(attention)
        share = (asked @ self.keys.transpose(1, 2)).softmax(-1)  # [h, n * T, P]
        found = (share @ self.values).transpose(0, 1).reshape(count, length, -1)
        if offset is not None:
            found = found + F.linear(offset, attention.v_proj.weight)[:, None]
        out: Tensor = attention.out_proj(found)
        return out

    def write_shared(self, attention: Any, keys: Tensor, tokens: Tensor, offset: Tensor | None) -> Tensor:
        """The one image with each mask's offset `[n, P, C]`, and what its positions take from the tokens."""
        count, length = keys.shape[:2]
        answers = attention.k_proj(keys) * absorbed.temperature(attention)
        scores = absorbed.split(attention, answers.flatten(0, 1)) @ self.queries.transpose(1, 2)  # [h, n * T, P]
        scores = scores.view(len(scores), count, length, -1)
        base = self.image + attention.out_proj.bias
        if offset is not None:
            turned = absorbed.heads(attention, F.linear(offset, attention.q_proj.weight)[:, None])  # [n, h, 1, d]
            bias = (absorbed.heads(attention, answers) * turned).sum(-1, keepdim=True)  # [n, h, T, 1]
            scores = scores + bias.transpose(0, 1)
            base = base + offset[:, None]
        share = scores.softmax(2).transpose(0, 1).flatten(1, 2)  # [n, h * T, P]
        out: Tensor = base + share.transpose(1, 2) @ absorbed.gifts(attention, tokens)
        return out

    def draw(self, image: Tensor, planes: Tensor) -> Tensor:
        """Logits in the order of unfolding `[n, 16 P, M]`."""
        up = self.decoder.output_upscaling
        fine = up[2](absorbed.norm(up[1], absorbed.unfold(up[0], image)))  # [n, P, 4, C / 4]
        fine = up[4](absorbed.unfold(up[3], fine))  # [n, P, 4, 4, C / 8]
        logits: Tensor = fine.flatten(1, 3) @ planes.transpose(1, 2)
        return logits


def _look_up(attention: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention after all projections but the last: each `[n, ?, D]` -> `[n, queries, D]`."""
    q, k, v = (absorbed.heads(attention, x) for x in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _autocast(x: Tensor) -> bool:
    """Whether types are chosen by autocast: it does not reach into the backward pass of a Function of ours."""
    return torch.is_autocast_enabled(x.device.type)


def _shares(questions: Tensor, image: Tensor, where: Tensor) -> Tensor:
    """How much each question looks at each position: `[n, m, P]`."""
    return (questions @ (image + where).transpose(1, 2)).softmax(-1)


def _read(questions: Tensor, image: Tensor, where: Tensor) -> Tensor:
    """Mixtures of positions, one a question: `[n, m, C]`."""
    return _shares(questions, image, where) @ image


def _write(offers: Tensor, bias: Tensor, gifts: Tensor, image: Tensor, where: Tensor, layer: Any) -> Tensor:
    """The image and what it takes from the tokens, normed: `[n, P, C]`."""
    scores = offers @ (image + where).transpose(1, 2) + bias
    share = absorbed.each_head(scores, layer.cross_attn_image_to_token.num_heads).softmax(2).flatten(1, 2)
    out: Tensor = layer.norm4(image + share.transpose(1, 2) @ gifts)
    return out


class _Read(torch.autograd.Function):
    """`_read`, which keeps its shares and makes image + where again."""

    @staticmethod
    def forward(ctx: Any, questions: Tensor, image: Tensor, where: Tensor) -> Tensor:
        share = _shares(questions, image, where)
        mixed = share @ image
        ctx.save_for_backward(questions, image, where, share, mixed)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        questions, image, where, share, mixed = ctx.saved_tensors
        pull = upstream @ image.transpose(1, 2)
        pull = pull.sub_((upstream * mixed).sum(-1, keepdim=True)).mul_(share)  # of the scores
        back = torch.baddbmm(share.transpose(1, 2) @ upstream, pull.transpose(1, 2), questions)
        return pull @ (image + where), back, None


class _Write(torch.autograd.Function):
    """`_write`, which keeps its shares and makes image + where, and what is normed, again."""

    @staticmethod
    def forward(
        ctx: Any, offers: Tensor, bias: Tensor, gifts: Tensor, image: Tensor, where: Tensor, scale: Tensor, layer: Any
    ) -> Tensor:
        """scale: weight and bias of the layer's norm `[2, C]`, whose gradient is wanted."""
        scores = torch.baddbmm(bias, offers, (image + where).transpose(1, 2))  # fused: fewer passes than `_write`
        ctx.heads = layer.cross_attn_image_to_token.num_heads
        share = absorbed.each_head(scores, ctx.heads).softmax(2).flatten(1, 2)
        together = torch.baddbmm(image, share.transpose(1, 2), gifts)
        weight, shift = scale
        out, mean, rstd = torch.native_layer_norm(together, weight.shape, weight, shift, layer.norm4.eps)
        ctx.save_for_backward(offers, gifts, image, where, share, scale, mean, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        offers, gifts, image, where, share, scale, mean, rstd = ctx.saved_tensors
        together = torch.baddbmm(image, share.transpose(1, 2), gifts)
        slope, *by_scale = torch.ops.aten.native_layer_norm_backward(
            upstream, together, scale.shape[1:], mean, rstd, *scale, [True] * 3
        )
        del together
        each = (gifts @ slope.transpose(1, 2)).mul_(share)
        each = absorbed.each_head(each, ctx.heads)
        total = each.sum(2, keepdim=True)
        pull = (each - absorbed.each_head(share, ctx.heads) * total).flatten(1, 2)  # of the scores
        by_gifts = share @ slope
        back = slope.baddbmm_(pull.transpose(1, 2), offers)
        by_offers = pull @ (image + where)
        return by_offers, pull.sum(-1, keepdim=True), by_gifts, back, None, torch.stack(by_scale), None
