"""Which parameters learn how fast: layer-wise learning-rate decay over the encoder's blocks (Appendix B.1: 0.8)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

_BLOCK = re.compile(r"(?:^|\.)image_encoder\.blocks\.(\d+)\.")
_TABLE = re.compile(
    r"pos_embed|rel_pos|point_embed|no_mask_embed|iou_token|mask_tokens|task_prompt|hq\.token|\.position$"
)
_EARLY = re.compile(r"(?:^|\.)image_encoder\.(?:patch_embed|pos_embed)")


def layer_of(name: str, *, blocks: int) -> int:
    """Layer of a parameter: 0 the patch embedding, i + 1 encoder block i, blocks + 1 everything behind the encoder."""
    if _EARLY.search(name):
        return 0
    block = _BLOCK.search(name)
    return int(block.group(1)) + 1 if block else blocks + 1


def parameter_groups(model: nn.Module, *, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW, one a layer and kind; `scale` is the group's share of the learning rate.

    Layer l of n has scale `layer_decay ** (n - l)`. Vectors (biases, norms) and embeddings are not decayed.
    Each group also tells its `layer` and lists its parameter `names`. Frozen parameters are left out.
    """
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    blocks = 1 + max((int(m.group(1)) for m in map(_BLOCK.search, dict(model.named_parameters())) if m), default=-1)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, value in named:
        layer = layer_of(name, blocks=blocks)
        plain = value.ndim <= 1 or _TABLE.search(name) is not None
        group = groups.setdefault(
            (layer, plain),
            {
                "params": [],
                "names": [],
                "layer": layer,
                "scale": layer_decay ** (blocks + 1 - layer),
                "weight_decay": 0.0 if plain else weight_decay,
            },
        )
        group["params"].append(value)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]


def group_table(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line a group: its layer, its share of the learning rate, its weight decay, and how much it holds."""
    return [
        f"layer {group['layer']:2d}: learning rate x {group['scale']:.4f}, weight decay {group['weight_decay']:g}, "
        f"{len(group['params'])} tensors, {sum(value.numel() for value in group['params']):,} numbers"
        for group in groups
    ]


def rate_curves(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A name for each layer that learns, such as lr/encoder_03, and its share of the learning rate.

    Empty where all have the same. lr/patch_embed comes before the encoder's blocks, lr/decoder is all behind them.
    """
    found = dict[str, float]()
    for group in groups:
        scale, layer = float(group["scale"]), int(group["layer"])
        part = "decoder" if scale == 1 else f"encoder_{layer - 1:02d}" if layer else "patch_embed"
        found[f"lr/{part}"] = scale
    return found if len({*found.values()}) > 1 else {}
