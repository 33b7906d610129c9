"""A tuned model as a plain SAM checkpoint: Meta's keys, the vector of one task folded in, nothing of this project."""

from __future__ import annotations

from pathlib import Path

import torch
from segment_anything import sam_model_registry
from torch import Tensor

from sum.errors import CheckpointError, ConfigError
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import fingerprint, save_tensors
from sum.models.segmenter import Segmenter
from sum.storage import replace_file

KINDS = (".pth", ".safetensors")


def plain_sam(model: Segmenter, *, task: str) -> dict[str, Tensor]:
    """The state dict of a stock Sam of the model's backbone that answers as `model` does when asked for `task`.

    Raises CheckpointError for a model with parts that no stock Sam has, ConfigError for an unknown task.
    """
    found: dict[str, Tensor] = model.for_task(task).state_dict()
    with torch.device("meta"):
        wanted = BACKBONES[model.backbone].build().state_dict()
    parts = sorted(found.keys() ^ wanted.keys()) or [n for n, t in wanted.items() if t.shape != found[n].shape]
    if parts:
        more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
        raise CheckpointError(
            f"export: no plain SAM can hold this model: '{parts[0]}'{more} cannot be merged into SAM's own weights. "
            "Use it through sum.predict.Predictor, which has SamPredictor's methods"
        )
    return found


def export(model: Segmenter, path: Path, *, task: str) -> str:
    """Write `plain_sam` as Meta's format (.pth, a table of tensors) or as .safetensors, atomically; returns its sha256.

    Raises ConfigError for another suffix; else as `plain_sam`.
    """
    if path.suffix not in KINDS:
        raise ConfigError(f"export: {path} ends in '{path.suffix}', wants {' or '.join(KINDS)}")
    tensors = {name: value.detach().cpu().contiguous() for name, value in plain_sam(model, task=task).items()}
    if path.suffix == ".safetensors":
        return save_tensors(path, tensors, about={"backbone": model.backbone, "task": task})
    with replace_file(path) as partial, partial.open("wb") as file:  # a file has no name that torch would write down
        torch.save(tensors, file)
    return fingerprint(path)


def loader(backbone: str, path: Path) -> str:
    """How a plain checkpoint of a backbone is loaded without this project, or with it where that cannot be."""
    if backbone not in sam_model_registry:
        return (
            f"segment_anything's sam_model_registry has no '{backbone}': "
            f'sam = sum.models.backbones.BACKBONES["{backbone}"].build(); sam.load_state_dict(...), or Predictor'
        )
    if path.suffix == ".safetensors":
        return (
            f'sam = sam_model_registry["{backbone}"](); sam.load_state_dict(safetensors.torch.load_file("{path.name}"))'
        )
    return f'sam = sam_model_registry["{backbone}"](checkpoint="{path.name}")'
