"""HQ-SAM as a Segmenter: a frozen SAM, and beside it what sum/models/hq_decoder.py adds; one output.

The embedding of an image is one tensor: SAM's C channels, then the head's features `[C / 8, L, L]` folded to `[2 C, h,
w]`. Callers that hand it on need not know.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sum.models import early
from sum.models.archs import ArchSpec
from sum.models.hq_decoder import LARGER, HqHead, answer
from sum.models.segmenter import Prediction, Prompts, Segmenter


class HqSegmenter(Segmenter):
    """Without gradients it answers SAM's logits + the head's, with them the head's alone, which is what is trained.

    hq_only: the head's alone then, too. M is always 1; the predicted IoU is that of SAM's output. SAM's path has no
    part in the head: its embedding and its share of the logits are SAM's bit for bit where `Segmenter`'s are.
    """

    single_output = True

    def __init__(self, sam: Sam, *, backbone: str, hq_only: bool = False) -> None:
        super().__init__(sam, backbone=backbone)
        channels, ratio = early.width(sam.image_encoder)
        self.hq = HqHead(channels=self.channels, early=channels, ratio=ratio)
        self.hq_only = hq_only
        self.arch = ArchSpec("hq", {"token_only": hq_only})

    @property
    def channels(self) -> int:
        """C, of SAM's embedding."""
        return int(self.task_prompt.shape[1])

    def encode(self, image: Tensor, hw: Tensor) -> Tensor:
        """As a Segmenter's, with the head's features behind SAM's channels: `[B, 3 C, h, w]`."""
        return self._encode(image, hw, exact=not torch.is_grad_enabled())

    def encode_fast(self, image: Tensor, hw: Tensor) -> Tensor:
        """`encode` in less time and memory, equal up to rounding."""
        return self._encode(image, hw, exact=False)

    def _encode(self, image: Tensor, hw: Tensor, *, exact: bool) -> Tensor:
        recompute = self.recompute_encoder
        return encode(self.sam.image_encoder, self.hq, self._normalised(image, hw), exact=exact, recompute=recompute)

    def decode(
        self, embedding: Tensor, image_index: Tensor, prompts: Prompts, *, multimask: bool, task: Tensor | None = None
    ) -> Prediction:
        """As a Segmenter's, with one output; embedding `[B, 3 C, h, w]`."""
        sam, features = unpack(embedding, self.channels)
        offset = None if task is None else self._task_rows()[task]
        source = self._source(sam[image_index], offset, prompts.logits)
        found = answer(
            self.sam.mask_decoder,
            self.hq,
            source,
            where=self.sam.prompt_encoder.get_dense_pe().expand(len(source), -1, -1, -1),
            tokens=self._tokens(prompts),
            features=features if len(features) == 1 else features[image_index],
            multimask=multimask,
        )
        return together(*found, hq_only=self.hq_only)

    def _sam_encoder(self) -> nn.Module:
        return _Encoder(self)

    def _sam_decoder(self) -> nn.Module:
        return _Decoder(self)


def encode(encoder: nn.Module, head: HqHead, image: Tensor, *, exact: bool, recompute: bool = False) -> Tensor:
    """Embedding and head's features of normalised images as one tensor `[B, 3 C, h, w]`."""
    sam, fine = early.encode_both(encoder, image, exact=exact, recompute=recompute)
    return torch.cat([sam, F.pixel_unshuffle(head.features(sam, fine), LARGER)], 1)


def unpack(embedding: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """SAM's embedding `[B, C, h, w]`, through which no gradient comes back, and the head's features."""
    return embedding[:, :channels].detach(), F.pixel_shuffle(embedding[:, channels:], LARGER)


def together(sam: Tensor, hq: Tensor, iou: Tensor, *, hq_only: bool) -> Prediction:
    """The model's answer from SAM's logits `[N, 1, L, L]`, the head's and the predicted IoU `[N, 1]`."""
    return Prediction(hq if hq_only or torch.is_grad_enabled() else sam + hq, iou)


class _Encoder(nn.Module):
    """Image encoder and head's features in the interface of SAM's encoder."""

    def __init__(self, model: HqSegmenter) -> None:
        super().__init__()
        self.encoder, self.hq, self.img_size = model.sam.image_encoder, model.hq, model.side

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 3, S, S]`, normalised -> `[B, 3 C, h, w]`."""
        return encode(self.encoder, self.hq, image, exact=True)


class _Decoder(nn.Module):
    """Mask decoder and head in the interface of SAM's decoder."""

    def __init__(self, model: HqSegmenter) -> None:
        super().__init__()
        self.decoder, self.hq, self.hq_only = model.sam.mask_decoder, model.hq, model.hq_only

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """As MaskDecoder.forward, for one image; one output whatever is asked for: `[N, 1, L, L]`, `[N, 1]`."""
        decoder, count = self.decoder, len(sparse_prompt_embeddings)
        sam, features = unpack(image_embeddings, image_pe.shape[1])
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(count, -1, -1)
        found = answer(
            decoder,
            self.hq,
            sam.expand(count, -1, -1, -1) + dense_prompt_embeddings,
            where=image_pe.expand(count, -1, -1, -1),
            tokens=torch.cat([own, sparse_prompt_embeddings], 1),
            features=features,
            multimask=multimask_output,
        )
        said = together(*found, hq_only=self.hq_only)
        return said.logits, said.iou
