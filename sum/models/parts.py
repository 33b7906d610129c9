"""Which parts of a Segmenter train, and which layers get low-rank adapters: those of the attention (SAMed).

The adapters themselves: sum/models/lora.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

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
    for number, part in enumerate(sorted(adapted)):
        from sum.models.lora import adapt  # seconds: only where it is wanted

        within = model.sam.get_submodule(part)
        names = list(_attention(within, ATTENTION[part]))
        adapt(within, names, rank=lora.rank, alpha=lora.alpha, seed=seed + number)


def merge_adapters(model: nn.Module) -> None:
    """Write every adapter into its weight; the state dict has stock SAM's names again, the answers are the same."""
    if any(hasattr(layer, "base_layer") for layer in model.modules()):
        from sum.models.lora import merge

        merge(model)


def _attention(part: nn.Module, names: tuple[str, ...]) -> Iterator[str]:
    for name, layer in part.named_modules():
        if isinstance(layer, nn.Linear) and name.rsplit(".", 1)[-1] in names:
            yield name
