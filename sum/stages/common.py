"""What several stages need: settings into plain options, and the name of a piece of work."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

import torch

from sum.config import Config
from sum.core.losses import LossWeights
from sum.core.uncertainty import OF_SAM_ALONE, OTHERS
from sum.data import verdicts
from sum.engine import LoopOptions
from sum.errors import ConfigError
from sum.models.archs import ARCHS, ArchSpec
from sum.models.refiner import other_path
from sum.rounds import Rounds
from sum.settings import PseudoLabelConfig, UncertaintyConfig
from sum.storage import S3, fetch, sha256_file
from sum.training_settings import AdapterConfig, FinetuneConfig, HqConfig, LoraConfig, OptimConfig, RoundsConfig

PACKAGE = Path(__file__).parents[1]
MANIFEST = Path("data/manifest")
REPORT = Path("data/validation/report.json")
REFINER = Path("data/refiner/model.safetensors")
MAPS_WORK = Path("work/uncertainty")
WEIGHTS_CACHE = Path("work/weights")  # copies of base weights that lie in a bucket


def fingerprint(*parts: object) -> str:
    """16 hexadecimal digits naming settings and inputs: a work folder of this name was made from exactly these."""
    plain = [asdict(part) if is_dataclass(part) and not isinstance(part, type) else part for part in parts]
    return hashlib.sha256(json.dumps([code_hash(), *plain], sort_keys=True).encode()).hexdigest()[:16]


def file_hashes(*folders: Path) -> dict[str, str]:
    """Path -> sha256 of the files of some stages' folders; of a folder that is not there, none."""
    return {path.as_posix(): sha256_file(path) for folder in folders for path in sorted(folder.glob("*"))}


def files_fingerprint(files: Mapping[str, str]) -> str:
    """sha256 over names and contents of `file_hashes`."""
    lines = (f"{PurePosixPath(path).name} {content}\n" for path, content in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@cache
def code_hash() -> str:
    """sha256 over this package's code: work begun by other code is not gone on with."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def maps_work(settings: UncertaintyConfig, asked: PseudoLabelConfig, *, backbone: str, weights: Path) -> Path:
    """The work folder of uncertainty maps made so by this refiner and the SAM of `weights`; asked: how it encodes."""
    files = [] if settings.method in OF_SAM_ALONE else [REFINER, weights]
    if settings.method in OTHERS:
        files.append(other_path(REFINER.parent, method=settings.method))
    return MAPS_WORK / fingerprint(
        settings,
        backbone,
        asked.precision,
        asked.images_per_batch,
        [sha256_file(path) for path in files],
    )


def base_weights(config: Config) -> Path:
    """The local file of `model.checkpoint`, fetched first when it is an s3:// URL."""
    return local_weights(config.model.checkpoint)


def local_weights(uri: str) -> Path:
    """The local file of weights at a path or s3:// URL."""
    return fetch(uri, WEIGHTS_CACHE) if uri.startswith(S3) else Path(uri)


def require_valid(*, reader: str) -> None:
    """Stop before anything is learnt from a manifest that stage validate refused; see sum.data.verdicts."""
    verdicts.require_valid(REPORT, reader=reader, maker="validate", manifest=MANIFEST)


def pick_device(name: str) -> torch.device:
    """Where to compute: `device` of params.yaml, or for 'auto' the best that is there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    if not there[name]:
        known = ", ".join(kind for kind, found in there.items() if found)
        raise ConfigError(
            f"params.yaml: device: '{name}' is not there; this machine has {known}. Use auto or one of these."
        )
    return torch.device(name)


def training_device(name: str, *, processes: int = 0) -> torch.device:
    """As `pick_device`, where to train: it needs float64, which 'mps' does not have, and a GPU for each process.

    processes: of this machine; those of torchrun if 0.
    """
    if name == "mps":
        raise ConfigError(
            "params.yaml: device: 'mps' has no float64, which training needs. Use cpu, or cuda where there is one."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else pick_device(name)
    count, gpus = processes or int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if device.type == "cuda" and count > max(1, gpus):
        raise ConfigError(
            f"params.yaml: device: {count} processes are to train here, and each needs a GPU of its own, of which "
            f"there are {gpus}. Start as many (SUM_PROCESSES=gpu, or torchrun --nproc-per-node gpu), or device: cpu."
        )
    return device


def loop_options(optim: OptimConfig, config: Config) -> LoopOptions:
    """The loop's numbers from a section's `optim`."""
    return LoopOptions(
        steps=optim.steps,
        lr=optim.lr,
        layer_decay=optim.layer_decay,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_steps,
        decay_steps=optim.decay_steps,
        drop_last=optim.drop_last,
        clip_norm=optim.clip_norm,
        ema=optim.ema,
        precision=optim.precision,
        checkpoint_every=optim.checkpoint_every,
        images_per_batch=optim.images_per_batch,
        max_skipped=optim.max_skipped,
        mask_chunk=optim.mask_chunk,
        seed=config.seed,
        device=training_device(config.device).type,
    )


def arch_of(settings: FinetuneConfig) -> ArchSpec:
    """What `finetune.arch` names, with the options that are of it."""
    options = _options(settings)
    return ArchSpec(settings.arch, asdict(options[settings.arch]) if settings.arch in options else {})


def unused_options(settings: FinetuneConfig) -> list[str]:
    """The sections of other archs than the one that is trained, where they are not as they are by default."""
    return [name for name, own in _options(settings).items() if name != settings.arch and own != type(own)()]


def _options(settings: FinetuneConfig) -> dict[str, LoraConfig | AdapterConfig | HqConfig]:
    return {"lora": settings.lora, "adapter": settings.adapter, "hq": settings.hq}


def round_options(
    rounds: RoundsConfig,
    *,
    task_prompt: Literal["first", "all", "off"],
    arch: str = "full",
) -> Rounds:
    """How batches are prompted, from a section's `rounds` and the arch that is trained; what a method switches beside:
    sum/semi_supervised.py.

    An arch with one-shot prompts has one round, and its IoU head is frozen.
    """
    one_shot = ARCHS[arch].one_shot
    return Rounds(
        count=1 if one_shot else rounds.rounds,
        one_shot=one_shot,
        idle_last=rounds.idle_last,
        box_odds=rounds.box_odds,
        box_noise=rounds.box_noise,
        box_noise_limit=rounds.box_noise_limit,
        task_prompt=task_prompt,
        iou_of_all=rounds.iou_of_all,
        weights=LossWeights(
            focal=rounds.focal_weight,
            dice=rounds.dice_weight,
            iou=0.0 if one_shot else rounds.iou_weight,
            theta=rounds.theta,
        ),
    )
