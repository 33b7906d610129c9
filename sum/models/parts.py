"""Which parts of a Segmenter train, and which layers get low-rank adapters: those of the attention (SAMed).

The adapters themselves: sum/models/lora.py; the table of architectures: sum/models/archs.py; what else they add:
sum/models/extras.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from sum.models.adapter import parameters_of
from sum.models.archs import DECODER, ENCODER, ArchSpec
from sum.models.extras import with_extras
from sum.models.segmenter import Segmenter

ATTENTION = {  # the last name of the layers that get an adapter: those of an attention
    ENCODER: ("qkv", "proj", "out"),  # proj: SAM's ViT, out: tiny
    DECODER: ("q_proj", "k_proj", "v_proj", "out_proj"),
}


def select_parts(model: Segmenter, *, spec: ArchSpec, task_prompt: bool, seed: int) -> Segmenter:
    """The model as an arch trains it: what does not train is frozen, what is added stands in its place.

    task_prompt: whether the task vectors train; seed: of the first values of what is added. To be called before an
    optimizer is made; the model given is part of the one returned.
    """
    for name, value in model.sam.named_parameters():
        value.requires_grad_(name.split(".")[0] in spec.own)
    model.task_prompt.requires_grad_(task_prompt)
    model = with_extras(model, spec, seed=seed)
    for value in parameters_of(model.sam.image_encoder):
        value.requires_grad_(True)
    add_lora(model, spec, seed=seed)
    return model


def add_lora(model: Segmenter, spec: ArchSpec, *, seed: int) -> None:
    """Give the parts that a spec names their low-rank adapters, if it names any."""
    for number, part in enumerate(sorted(spec.adapted)):
        from sum.models.lora import adapt  # seconds: only where it is wanted

        within = model.sam.get_submodule(part)
        names = list(_attention(within, ATTENTION[part]))
        adapt(within, names, rank=int(spec.options["rank"]), alpha=float(spec.options["alpha"]), seed=seed + number)


def merge_adapters(model: nn.Module) -> None:
    """Write every adapter into its weight; the state dict has stock SAM's names again, the answers are the same."""
    if any(hasattr(layer, "base_layer") for layer in model.modules()):
        from sum.models.lora import merge

        merge(model)


def _attention(part: nn.Module, names: tuple[str, ...]) -> Iterator[str]:
    for name, layer in part.named_modules():
        if isinstance(layer, nn.Linear) and name.rsplit(".", 1)[-1] in names:
            yield name
