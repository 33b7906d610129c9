"""Low-rank adapters (LoRA, Hu et al. 2021) by the package peft: W + alpha / rank * B A, B zero at birth.

With gradients a layer computes W x + scale * B (A x), peft's own way: no gradient of a whole weight is made. Without
gradients, and where code reads `weight` itself (sum/models/absorbed.py), it is W + scale * B A: the very tensor that
merging writes in W's place, so that a merged model answers with the same bits.
The only module that knows peft; its import takes seconds: import it where adapters are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import Tensor, nn

NAME = "default"  # of the one adapter of a layer, as peft calls it in names of parameters


class Adapted(Linear):
    """peft's adapted linear layer, whose `weight` is the one that acts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cast_input_dtype_enabled = False  # weights are float32; autocast chooses types

    @property
    def weight(self) -> Tensor:
        """`[out, in]`, with gradients for the adapter only; float32 under autocast, too, as a merged weight is."""
        base: Any = self.get_base_layer().weight
        with torch.autocast(base.device.type, enabled=False):
            weight: Tensor = base + self.get_delta_weight(NAME)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` -> `[..., out]`."""
        out: Tensor = super().forward(x) if torch.is_grad_enabled() else F.linear(x, self.weight, self.bias)
        return out


def adapt(part: nn.Module, names: Sequence[str], *, rank: int, alpha: float, seed: int) -> None:
    """Give the linear layers `names` of a part their adapters and freeze all else of it.

    A `[rank, in]` is drawn evenly within 1 / sqrt(in) (peft's default), as a linear layer's weights. The global random
    numbers are left as they were.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names))  # type: ignore[arg-type]  # used as float
    config._register_custom_module({nn.Linear: Adapted})  # peft's documented way to a layer of one's own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, part, adapter_name=NAME)


def merge(model: nn.Module) -> None:
    """Write every adapter into its weight and put the plain layer back under its name."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Adapted):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
