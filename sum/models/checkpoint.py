"""Weights on disk: ours in safetensors, Meta's .pth read safely.

A file of another model is refused by name, before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sum.errors import CheckpointError, ConfigError, choose
from sum.models.archs import ArchSpec
from sum.models.backbones import BACKBONES
from sum.models.extras import HEAD, with_extras
from sum.models.segmenter import TASKS, Segmenter

TASK_PROMPT = "task_prompt"
WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # of Meta's encoders


def load_segmenter(path: str | Path, *, backbone: str) -> Segmenter:
    """A Segmenter with the weights of a local file: our .safetensors or Meta's .pth.

    A file without a task prompt (every stock SAM) gets a zero one. Raises CheckpointError with the keys or shapes
    that differ.
    """
    built = choose(BACKBONES, backbone, key="model.backbone").build()
    tensors = read_tensors(Path(path))
    spec = _arch_of(Path(path))
    model = with_extras(Segmenter(built, backbone=backbone), spec)
    beside = {name for name in tensors if name == TASK_PROMPT or name.startswith(HEAD)}
    stock = {name: value for name, value in tensors.items() if name not in beside}
    arch = "" if spec.arch.merges else f" with arch '{spec.name}'"
    fill(model.sam, stock, path=path, owner=f"backbone '{backbone}'{arch}")
    head = {name for name in model.state_dict() if name.startswith(HEAD)}
    if beside or head:
        more = {name: tensors[name] for name in beside}
        wanted = head | (beside & {TASK_PROMPT})
        fill(model, more, path=path, owner="the task prompt" if not head else f"arch '{spec.name}'", only=wanted)
    return model.eval()


def load_base(path: str | Path, *, backbone: str) -> Segmenter:
    """As `load_segmenter`, a plain SAM to train or label with; refuses by name one with something beside SAM."""
    model = load_segmenter(path, backbone=backbone)
    if not model.arch.arch.merges:
        raise CheckpointError(
            f"{path} was trained with finetune.arch '{model.arch.name}' and is no plain SAM: it is no "
            "base to train or to label with. Set model.checkpoint to the weights that it was trained from"
        )
    return model


def header_of(path: Path) -> dict[str, str]:
    """The strings in the header of a safetensors file; none for another kind of file."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}


def _arch_of(path: Path) -> ArchSpec:
    """What a weights file says it has beside SAM. Raises CheckpointError for what this version does not know."""
    head = header_of(path)
    if head.get("kind") == "delta":
        raise CheckpointError(f"{path}: holds what a training changed only; the whole model is the file beside it")
    try:
        return ArchSpec.from_json(head["arch"]) if "arch" in head else ArchSpec()
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def backbone_of(path: Path) -> str:
    """The backbone whose weights a local file holds: what our header says, else SAM's by the width of its ViT.

    Raises CheckpointError when it is neither.
    """
    if path.suffix == ".safetensors" and (named := header_of(path).get("backbone")):
        return named
    patches = _read(path).get("image_encoder.patch_embed.proj.weight")
    width = None if patches is None else len(patches)
    if width not in WIDTHS:
        known = ", ".join(WIDTHS.values())
        raise CheckpointError(f"{path}: neither weights that this project wrote nor SAM's {known}")
    return WIDTHS[width]


def save_segmenter(path: Path, model: Segmenter, *, about: Mapping[str, str]) -> str:
    """Write stock SAM's keys, the task prompt and what else the arch has to one safetensors file, atomically.

    about: what the header tells a reader (recipe, data hash ...), beside backbone and arch. Returns the file's sha256.
    """
    tensors = {name.removeprefix("sam."): value for name, value in model.state_dict().items()}
    arch = {} if model.arch.arch.merges else {"arch": model.arch.to_json()}
    return save_tensors(path, tensors, about={"backbone": model.backbone, **arch, **about})


def describe(weights: str, model: Segmenter, *, fingerprint: str, about: Mapping[str, object]) -> dict[str, object]:
    """What it takes to load a file that `save_segmenter` wrote without this pipeline, and where it comes from.

    weights: the file's name; fingerprint: its sha256; about: facts of the training.
    """
    beside = "" if model.arch.arch.merges else f"; what arch '{model.arch.name}' adds: load_segmenter reads it"
    return {
        "weights": weights,
        "sha256": fingerprint,
        "format": f"safetensors: the state dict of segment_anything's Sam, and '{TASK_PROMPT}' [tasks, C]{beside}",
        "backbone": model.backbone,
        "arch": {"name": model.arch.name, **model.arch.options},
        "side": model.side,  # px of the model frame: the longest side is resized to it, the rest is padded
        "tasks": TASKS,  # name -> row of the task prompt
        **about,
    }


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, about: Mapping[str, str]) -> str:
    """Write tensors and a header of strings, atomically; returns the file's sha256. Refuses NaN and infinity."""
    from sum.storage import write_atomic

    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    name = _not_finite(ready)
    if name is not None:
        raise CheckpointError(f"{path}: '{name}' holds NaN or infinity; nothing was written")
    data = sorted_header(save(ready, metadata=dict(about)))
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def sorted_header(data: bytes) -> bytes:
    """The same safetensors file with the header's keys in order: the library writes them in a new order every run."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def fingerprint(path: str | Path) -> str:
    """sha256 of a weights file. Raises CheckpointError when there is none."""
    _require(Path(path))
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors or .pth file. Nothing in the file can run code; NaN and infinity are refused."""
    tensors = _read(path)
    name = _not_finite(tensors)
    if name is not None:
        raise CheckpointError(f"{path}: '{name}' holds NaN or infinity. Take another file, or make it again")
    return tensors


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that holds NaN or infinity."""
    return next((n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())), None)


def _require(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(
            f'{path}: no such weights file. Put Meta\'s file there (README, "The real SAM"), or set model.checkpoint '
            "in params.yaml; those of backbone 'tiny' are sum/models/weights/tiny.safetensors"
        )


def _read(path: Path) -> dict[str, Tensor]:
    """`read_tensors` without looking at the numbers."""
    _require(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if not zipfile.is_zipfile(path) and path.read_bytes()[:1] != b"\x80":  # torch's formats: a zip, or a pickle
            raise ValueError("its first bytes are of another kind of file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols: the file is judged below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or not a safetensors file ({error})") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: holds more than tensors, refused: a weights file must not run code") from error
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{path}: truncated or not a PyTorch checkpoint ({type(error).__name__} {str(error)[:80]})"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(
            f"{path}: wants a flat table of tensors as Meta's checkpoints are, found {type(found).__name__}"
        )
    return found


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], *, path: str | Path, owner: str, only: set[str] | None = None
) -> None:
    """Copy tensors into a module after comparing every key and shape; owner: what the module is, for the message.

    only: the keys to fill; None for all of the module.
    """
    wanted = {name: value for name, value in module.state_dict().items() if only is None or name in only}
    wrong = [f"misses '{name}'" for name in wanted if name not in tensors]
    wrong += [f"has unknown '{name}'" for name in tensors if name not in wanted]
    wrong += [
        f"'{name}' has shape {tuple(tensors[name].shape)}, wants {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        more = f" (+{len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{path} is not of {owner}: {'; '.join(wrong[:3])}{more}. Check model.backbone and model.checkpoint"
        )
    module.load_state_dict(dict(tensors), strict=only is None)
