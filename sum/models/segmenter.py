"""SAM with a task prompt: many images and many prompts in one call.

Frames: `xy` and `xyxy` are pixels of the model frame, the S x S square after the longest side was resized to S.
L is the side of low-resolution logits (S/4 for SAM, S/2 for `tiny`); N counts prompts over all images of the call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from segment_anything.modeling import PromptEncoder, Sam
from torch import Tensor, nn

from sum.core.geometry import valid_frame
from sum.errors import ConfigError
from sum.models import vit
from sum.models.archs import ArchSpec
from sum.models.training_decoder import answer

TASKS: dict[str, int] = {
    "unspecified": 0,
    "salient": 1,
    "entity": 2,
    "part": 3,
}  # rows of the task prompt (paper 3.2.4)

PAD, NEGATIVE, POSITIVE, BOX_FIRST, BOX_SECOND = -1, 0, 1, 2, 3  # SAM's point labels; a box is its two corners


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of N masks, padded to one length.

    xy `[N, T, 2]` float, model frame; label `[N, T]` long: 1 on the object, 0 off it, 2 and 3 a box's corners, -1
    padding (SAM always adds one padding point where there is no box); logits `[N, 1, L, L]` of the round before, or
    None.
    """

    xy: Tensor
    label: Tensor
    logits: Tensor | None = None

    def __post_init__(self) -> None:
        if self.xy.shape != (*self.label.shape, 2):
            raise ValueError(
                f"Prompts.xy has shape {tuple(self.xy.shape)}, wants {(*self.label.shape, 2)} to match label"
            )
        if self.logits is not None and self.logits.shape[:2] != (len(self.xy), 1):
            raise ValueError(f"Prompts.logits has shape {tuple(self.logits.shape)}, wants ({len(self.xy)}, 1, L, L)")

    @classmethod
    def from_points(cls, xy: Tensor, label: Tensor, *, logits: Tensor | None = None) -> Prompts:
        """Points without a box: xy `[N, T, 2]`, label `[N, T]`; adds SAM's padding point."""
        none = torch.full_like(label[:, :1], PAD)
        return cls(torch.cat([xy, torch.zeros_like(xy[:, :1])], 1), torch.cat([label, none], 1), logits)

    @classmethod
    def from_boxes(cls, xyxy: Tensor, *, logits: Tensor | None = None) -> Prompts:
        """One box a mask: `[N, 4]`."""
        label = torch.arange(BOX_FIRST, BOX_SECOND + 1, device=xyxy.device).expand(len(xyxy), 2)
        return cls(xyxy.view(-1, 2, 2), label, logits)

    def with_point(self, xy: Tensor, label: Tensor, *, logits: Tensor | None) -> Prompts:
        """One more point a mask (`[N, 2]`, `[N]`), and the logits the model gave last."""
        return Prompts(torch.cat([xy[:, None], self.xy], 1), torch.cat([label[:, None].long(), self.label], 1), logits)

    def masks(self, part: slice) -> Prompts:
        """The prompts of some of the masks."""
        return Prompts(self.xy[part], self.label[part], None if self.logits is None else self.logits[part])

    def with_logits(self, logits: Tensor) -> Prompts:
        """The same points with the logits the model gave last."""
        return Prompts(self.xy, self.label, logits)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the decoder says of N prompts: logits `[N, M, L, L]` and predicted IoU `[N, M]`, M = 3 (multimask) or 1."""

    logits: Tensor
    iou: Tensor

    def pick(self, index: Tensor) -> Prediction:
        """Keep output `index` `[N]` of each prompt: M becomes 1."""
        rows = torch.arange(len(index), device=index.device)
        return Prediction(self.logits[rows, index][:, None], self.iou[rows, index][:, None])


def asking(encoder: PromptEncoder, vector: Tensor) -> PromptEncoder:
    """A prompt encoder that adds `vector` `[C]` wherever no mask is given: in the first round, where the paper asks.

    Every part but `no_mask_embed` is shared with `encoder`, not copied. It is a stock PromptEncoder with stock keys.
    """
    with torch.device("meta"):  # no memory, and no number of the generator that others draw from
        view = PromptEncoder(
            embed_dim=encoder.embed_dim,
            image_embedding_size=encoder.image_embedding_size,
            input_image_size=encoder.input_image_size,
            mask_in_chans=4,
        )
    for name, part in encoder.named_children():
        setattr(view, name, part)
    stock = encoder.no_mask_embed.weight.detach()
    view.no_mask_embed = nn.Embedding.from_pretrained(stock + vector.detach().to(stock))  # type: ignore[no-untyped-call]
    return view


class Segmenter(nn.Module):
    """A stock SAM plus four task vectors `[4, C]`, zero at birth: an untuned Segmenter equals SAM bit for bit.

    That holds for `encode` and `decode` without gradients; with them, and in `encode_fast`, up to rounding.
    Row 0 (unspecified) is never trained: unlabelled images must keep asking for SAM's own behaviour.
    recompute_encoder: with gradients, the encoder's blocks run again in the backward pass instead of keeping their
    values. arch: what of it trains or was trained, and what it has beside SAM.
    """

    recompute_encoder = False
    arch = ArchSpec()
    single_output = False  # whether it has one output even where three are asked for

    def __init__(self, sam: Sam, *, backbone: str) -> None:
        super().__init__()
        self.sam = sam
        self.backbone = backbone
        self.task_prompt = nn.Parameter(torch.zeros(len(TASKS), sam.prompt_encoder.embed_dim))

    def for_task(self, task: str) -> Sam:
        """A Sam for SamPredictor and SamAutomaticMaskGenerator that is asked for masks of `task`.

        The vector stands in `no_mask_embed`, so it acts where no mask is given: on the first click or box, not on later
        ones, as in training and in the benchmark (paper 3.2.4; "continuous" is worse, Table 2). The image embedding
        is the same for all tasks. Weights are shared with this model, not copied; `unspecified` is SAM bit for bit.
        Raises ConfigError for a task that is none of TASKS.
        """
        if task not in TASKS:
            raise ConfigError(f"task: unknown '{task}'. Known: {', '.join(TASKS)}.")
        stock = self.sam
        row = TASKS[task]
        sam = Sam(
            image_encoder=self._sam_encoder(),
            prompt_encoder=asking(stock.prompt_encoder, self.task_prompt[row]) if row else stock.prompt_encoder,
            mask_decoder=self._sam_decoder(),
            pixel_mean=stock.pixel_mean.flatten().tolist(),
            pixel_std=stock.pixel_std.flatten().tolist(),
        )
        # Of what is shared nothing moves; task_prompt stays behind where a user moves only a Sam that this gave.
        return sam.to(next(stock.image_encoder.parameters()).device).train(self.training)

    def _sam_encoder(self) -> nn.Module:
        """What stands as image encoder in the Sam of `for_task`."""
        encoder: nn.Module = self.sam.image_encoder
        return encoder

    def _sam_decoder(self) -> nn.Module:
        """What stands as mask decoder in the Sam of `for_task`: of the embedding that `_sam_encoder` makes."""
        decoder: nn.Module = self.sam.mask_decoder
        return decoder

    @property
    def learnt_tasks(self) -> tuple[str, ...]:
        """The tasks whose vector is not zero; asked for another, the model answers as for `unspecified`."""
        sizes = self.task_prompt.detach().abs().amax(1).tolist()
        return tuple(name for name, row in TASKS.items() if row and sizes[row] > 0)

    @property
    def side(self) -> int:
        """S, px of the model frame."""
        return int(self.sam.image_encoder.img_size)

    @property
    def low_side(self) -> int:
        """L, px of low-resolution logits."""
        return 4 * int(self.sam.prompt_encoder.image_embedding_size[0])

    def encode(self, image: Tensor, hw: Tensor) -> Tensor:
        """image `[B, 3, S, S]` uint8 or float 0..255, hw `[B, 2]` the part of the frame that is image -> `[B, C, h,
        w]`.

        The padding becomes zero after normalisation, as in SAM. Without gradients every bit is SAM's; with them, as
        `encode_fast`.
        """
        if torch.is_grad_enabled():
            return self.encode_fast(image, hw)
        features: Tensor = self.sam.image_encoder(self._normalised(image, hw))
        return features

    def encode_fast(self, image: Tensor, hw: Tensor) -> Tensor:
        """`encode` in less time and memory, equal up to rounding: how training, refinement and labelling encode."""
        return vit.encode(self.sam.image_encoder, self._normalised(image, hw), recompute=self.recompute_encoder)

    def _normalised(self, image: Tensor, hw: Tensor) -> Tensor:
        x = (image.to(self.sam.pixel_mean.dtype) - self.sam.pixel_mean) / self.sam.pixel_std
        inside: Tensor = x * valid_frame(hw, self.side)
        return inside

    def embed_points(self, prompts: Prompts) -> Tensor:
        """Sparse prompt embedding `[N, T, C]`, equal to SAM's for points, boxes and padding alike."""
        encoder = self.sam.prompt_encoder
        xy = ((prompts.xy + 0.5) / self.side).float()  # + 0.5: SAM shifts to the centre of the pixel
        position = encoder.pe_layer._pe_encoding(xy)
        label = prompts.label[..., None]
        position = torch.where(label == PAD, torch.zeros_like(position), position)
        table = torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embeddings)])
        return position + table[prompts.label + 1]

    def _task_rows(self) -> Tensor:
        """The task vectors `[4, C]`; row 0 is zero and gets no gradient, whatever it holds."""
        return torch.cat([torch.zeros_like(self.task_prompt[:1]), self.task_prompt[1:]])

    def decode(
        self, embedding: Tensor, image_index: Tensor, prompts: Prompts, *, multimask: bool, task: Tensor | None = None
    ) -> Prediction:
        """Answer N prompts on B images.

        embedding `[B, C, h, w]`; image_index `[N]`: the image of each prompt; task `[N]`: rows of the task prompt, or
        None.
        multimask: three outputs (after one prompt), else the single-mask output.
        """
        tokens = self._tokens(prompts)
        offset = None if task is None else self._task_rows()[task]
        wanted = range(1, self.sam.mask_decoder.num_mask_tokens) if multimask else range(1)
        if torch.is_grad_enabled():
            logits, iou = answer(
                self.sam,
                embedding,
                image_index=image_index,
                tokens=tokens,
                offset=offset,
                feedback=prompts.logits,
                wanted=wanted,
            )
            return Prediction(logits, iou)
        return self._decode_as_sam(embedding[image_index], tokens, offset, prompts.logits, wanted)

    def _tokens(self, prompts: Prompts) -> Tensor:
        """The decoder's own tokens and the prompts': `[N, T, C]`."""
        decoder = self.sam.mask_decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(prompts.label), -1, -1)
        return torch.cat([own, self.embed_points(prompts)], 1)

    def _source(self, source: Tensor, offset: Tensor | None, feedback: Tensor | None) -> Tensor:
        """The embedding `[N, C, h, w]` with the task's vector and the dense prompt, in SAM's order of arithmetic."""
        encoder = self.sam.prompt_encoder
        if offset is not None:
            source = source + offset[:, :, None, None]
        if feedback is None:
            dense: Tensor = source + encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        else:
            dense = source + encoder.mask_downscaling(feedback)
        return dense

    def _decode_as_sam(
        self, source: Tensor, tokens: Tensor, offset: Tensor | None, feedback: Tensor | None, wanted: range
    ) -> Prediction:
        """The decoder in SAM's own order of arithmetic: without gradients every bit is SAM's."""
        encoder, decoder = self.sam.prompt_encoder, self.sam.mask_decoder
        source = self._source(source, offset, feedback)
        states, pixels = decoder.transformer(source, encoder.get_dense_pe().expand(len(source), -1, -1, -1), tokens)
        fine = decoder.output_upscaling(pixels.transpose(1, 2).reshape(source.shape))
        planes = torch.stack([decoder.output_hypernetworks_mlps[i](states[:, 1 + i]) for i in wanted], 1)
        logits = (planes @ fine.flatten(2)).view(len(source), len(wanted), *fine.shape[-2:])
        return Prediction(logits, decoder.iou_prediction_head(states[:, 0])[:, wanted[0] : wanted[-1] + 1])


def unlearnt(model: Segmenter, task: str) -> str:
    """What to tell a user who asks for a task that the model has not learnt; '' where it has, or for no task."""
    known = model.learnt_tasks
    if task in known or task == "unspecified":
        return ""
    whose = f"it learnt {', '.join(known)}" if known else "it learnt no task"
    return f"task {task}: this model does not know it ({whose}): the answer is that of unspecified"
