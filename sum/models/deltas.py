"""What a training changed, alone: a small file beside the weights, of use with the base it was trained from.

A delta holds the trained numbers themselves, not differences: nothing is lost on the way. The names are those of the
whole file (`model.safetensors`), and peft's for the factors of LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sum.errors import CheckpointError, ConfigError
from sum.models.archs import ArchSpec
from sum.models.checkpoint import (
    TASK_PROMPT,
    fill,
    fingerprint,
    header_of,
    load_base,
    read_tensors,
    save_segmenter,
    save_tensors,
)
from sum.models.parts import merge_adapters, select_parts
from sum.models.segmenter import Segmenter

KIND = "delta"
WEIGHTS, DELTA = "model.safetensors", "delta.safetensors"


def save_both(folder: Path, model: Segmenter, *, base: str, about: Mapping[str, str]) -> str:
    """Write the delta and the whole model, on the CPU, where both are loaded; returns the whole's sha256.

    Adapters of LoRA are merged then. base, about: as `save_delta`.
    """
    model.cpu()
    save_delta(folder / DELTA, model, base=base, about=about)
    merge_adapters(model)
    return save_segmenter(folder / WEIGHTS, model, about=about)


def save_delta(path: Path, model: Segmenter, *, base: str, about: Mapping[str, str]) -> str:
    """Write what of a model trains and its task prompt, atomically; returns the file's sha256.

    base: sha256 of the weights file it was trained from; about: facts for the header.
    """
    head = {"kind": KIND, "base": base, "backbone": model.backbone, "arch": model.arch.to_json()}
    kept = {n: value for n, value in model.named_parameters() if value.requires_grad or n == TASK_PROMPT}
    tensors = {_in_file(name): value for name, value in kept.items()}
    return save_tensors(path, tensors, about={**about, **head})


def is_delta(path: Path) -> bool:
    """Whether a local file is a delta and no whole model."""
    return header_of(path).get("kind") == KIND


def load_delta(path: Path, *, base: Path) -> Segmenter:
    """The model that was trained from the weights file `base`, in eval mode on the CPU, its LoRA merged.

    It answers with the bits of the model.safetensors beside the delta. Raises CheckpointError for a file that is no
    delta, is damaged, or was trained from other weights than `base`.
    """
    about = header_of(path)
    tensors = read_tensors(path)
    if about.get("kind") != KIND:
        raise CheckpointError(f"{path}: wants a delta as stage finetune writes beside model.safetensors, found another")
    found = fingerprint(base)
    if found != about.get("base"):
        raise CheckpointError(
            f"{path}: trained from weights of sha256 {about.get('base', 'unknown')[:12]}, {base} is {found[:12]}. "
            "Give the weights that model.checkpoint named when it was trained"
        )
    try:
        spec = ArchSpec.from_json(about.get("arch", ""))
        model = load_base(base, backbone=about.get("backbone", ""))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    model = select_parts(model, spec=spec, task_prompt=True, seed=0)
    places = {_in_file(name): name for name, value in model.named_parameters() if value.requires_grad}
    fill(
        model,
        {places.get(name, name): value for name, value in tensors.items()},
        path=path,
        owner=f"arch '{spec.name}' of backbone '{model.backbone}'",
        only={*places.values()},
    )
    merge_adapters(model)
    return model.eval()


def _in_file(name: str) -> str:
    """A parameter's name in a file: without the Sam's own place, and without peft's name of an adapter."""
    return name.removeprefix("sam.").replace(".default.", ".")
