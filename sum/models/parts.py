"""Which parts of a Segmenter train, and low-rank adapters in their attention (LoRA, Hu et al. 2021; SAMed).

An adapter is a parametrization of a weight: whoever reads it gets W + scale * U D, so that every path through the model
sees it. Merging writes that very tensor to W's place: nothing is rounded anew, and the names are stock SAM's again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sum.models.segmenter import Segmenter

ENCODER, DECODER, PROMPT_ENCODER = "image_encoder", "mask_decoder", "prompt_encoder"
TRAINED: dict[str, tuple[str, ...]] = {  # finetune.train -> parts of SAM
    "full": (ENCODER, PROMPT_ENCODER, DECODER),
    "decoder": (DECODER,),
    "decoder+prompt_encoder": (PROMPT_ENCODER, DECODER),
}
ATTENTION = {  # the last name of the layers that get an adapter: those of an attention
    ENCODER: ("qkv", "proj", "out"),  # proj: SAM's ViT, out: tiny
    DECODER: ("q_proj", "k_proj", "v_proj", "out_proj"),
}


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters instead of a part's own weights, which freeze whatever `train` says."""

    encoder: bool = False
    decoder: bool = False
    rank: int = 4
    alpha: float = 4.0  # an adapter is scaled by alpha / rank


class LowRank(nn.Module):
    """W -> W + scale * U D; U is zero at birth, so the model answers exactly as before."""

    def __init__(self, weight: Tensor, *, rank: int, scale: float, generator: torch.Generator) -> None:
        """weight `[out, in]`; D `[rank, in]` is drawn evenly within 1 / sqrt(in), as a linear layer's weights."""
        super().__init__()
        outputs, inputs = weight.shape
        down = (2 * torch.rand(rank, inputs, generator=generator) - 1) / inputs**0.5
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """`[out, in]` -> `[out, in]`."""
        return torch.addmm(weight, self.up, self.down, alpha=self.scale)


def select_parts(model: Segmenter, *, train: str, lora: Lora, task_prompt: bool, seed: int) -> None:
    """Freeze what does not train and give the parts that `lora` names their adapters.

    train: a name of TRAINED; task_prompt: whether the task vectors train; seed: of the adapters' first values. To be
    called before an optimizer is made.
    """
    adapted = {part for part, wanted in ((ENCODER, lora.encoder), (DECODER, lora.decoder)) if wanted}
    own = set(TRAINED[train]) - adapted
    for name, value in model.sam.named_parameters():
        value.requires_grad_(name.split(".")[0] in own)
    model.task_prompt.requires_grad_(task_prompt)
    generator = torch.Generator().manual_seed(seed)
    for part in sorted(adapted):
        for layer in list(_attention(model.sam.get_submodule(part), ATTENTION[part])):
            adapter = LowRank(layer.weight, rank=lora.rank, scale=lora.alpha / lora.rank, generator=generator)
            parametrize.register_parametrization(layer, "weight", adapter)


def merge_adapters(model: nn.Module) -> None:
    """Write every adapter into its weight; the state dict has stock SAM's names again, the answers are the same."""
    for layer in list(model.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def _attention(part: nn.Module, names: tuple[str, ...]) -> Iterator[Any]:
    for name, layer in part.named_modules():
        if isinstance(layer, nn.Linear) and name.rsplit(".", 1)[-1] in names:
            yield layer
