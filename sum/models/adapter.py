"""Bottleneck adapters in the blocks of an image encoder (AIM, Yang et al. 2023; SAM-Adapter, Chen et al. 2023).

One behind the attention's projection, with a skip; one beside the MLP, scaled. Both are nothing at birth. The adapted
layers take over the layers they replace, weights and names: SAM's own code and sum/models/vit.py call them alike.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import MLPBlock
from torch import Tensor, nn

from sum.models.backbones import ConvBlock, GlobalBlock


class Bottleneck(nn.Module):
    """Down, GELU, up; the last has zeros only at birth."""

    def __init__(self, width: int, *, ratio: float) -> None:
        """ratio: of the narrow width to `width`."""
        super().__init__()
        narrow = max(1, int(width * ratio))
        self.down, self.up = nn.Linear(width, narrow), nn.Linear(narrow, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` -> `[..., width]`."""
        out: Tensor = self.up(F.gelu(self.down(x)))
        return out


class SerialLinear(nn.Linear):
    """A linear layer, then `y + adapter(y)`."""

    def __init__(self, layer: nn.Linear, *, ratio: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.adapter = Bottleneck(layer.out_features, ratio=ratio)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """`[..., in]` -> `[..., out]`."""
        y = super().forward(input)
        out: Tensor = y + self.adapter(y)
        return out


class ParallelMlp(MLPBlock):  # type: ignore[misc]  # segment_anything has no types
    """The MLP of a ViT's block, and beside it `scale * adapter(x)`."""

    def __init__(self, layer: MLPBlock, *, ratio: float, scale: float) -> None:
        nn.Module.__init__(self)
        self.lin1, self.lin2, self.act = layer.lin1, layer.lin2, layer.act
        self.adapter, self.scale = Bottleneck(layer.lin1.in_features, ratio=ratio), scale

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` -> `[..., width]`."""
        out: Tensor = super().forward(x) + self.scale * self.adapter(x)
        return out


class ParallelSequential(nn.Sequential):
    """The MLP of a block of `tiny`, and beside it `scale * adapter(x)`."""

    def __init__(self, layers: Any, *, ratio: float, scale: float) -> None:
        super().__init__(*layers)
        self.adapter, self.scale = Bottleneck(layers[-1].out_features, ratio=ratio), scale

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]` -> `[..., width]`."""
        y = x
        for name, layer in self.named_children():
            y = y if name == "adapter" else layer(y)
        out: Tensor = y + self.scale * self.adapter(x)
        return out


def insert(encoder: Any, *, ratio: float, scale: float, seed: int) -> None:
    """Give every block of an encoder its adapters. The global random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(encoder, ImageEncoderViT):
            for block in encoder.blocks:
                block.attn.proj = SerialLinear(block.attn.proj, ratio=ratio)
                block.mlp = ParallelMlp(block.mlp, ratio=ratio, scale=scale)
            return
        for part in list(encoder.blocks.modules()):
            if isinstance(part, ConvBlock):
                part.shrink = SerialLinear(part.shrink, ratio=ratio)
            elif isinstance(part, GlobalBlock):
                part.out = SerialLinear(part.out, ratio=ratio)
                part.mlp = ParallelSequential(part.mlp, ratio=ratio, scale=scale)


def parameters_of(encoder: nn.Module) -> list[nn.Parameter]:
    """The adapters' own."""
    return [value for part in encoder.modules() if isinstance(part, Bottleneck) for value in part.parameters()]
