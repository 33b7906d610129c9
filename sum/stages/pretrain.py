"""Rebuild the base weights of `tiny`: SAM's interactive training on masks without thin structures and small holes.

`python -m sum pretrain` takes hours on a CPU; it can be stopped at any time and goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sum.alone import alone
from sum.config import Config
from sum.data.batches import ImageSource, Mixture, TrainBatch
from sum.data.coarse import CoarseManifest, CoarseScenes
from sum.data.records import Manifest, read_manifest
from sum.engine import Loop
from sum.errors import DataError
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import fingerprint as file_fingerprint
from sum.models.checkpoint import load_segmenter, save_segmenter
from sum.models.segmenter import Segmenter
from sum.rounds import train_rounds
from sum.stages.common import fingerprint, local_weights, loop_options, round_options
from sum.training_settings import PretrainConfig

log = logging.getLogger(__name__)


def train_manifest(settings: PretrainConfig) -> Manifest | None:
    """The human train masks to learn from beside the scenes, if wanted. Raises DataError where there are none."""
    if settings.manifest is None:
        return None
    manifest = read_manifest(Path(settings.manifest), reader="pretrain").select(split="train")
    if not manifest.masks:
        raise DataError(
            f"pretrain.manifest: {settings.manifest} has no mask of split 'train'. Add such a data set and run "
            "`python -m sum ingest`, or set pretrain.manifest to null."
        )
    return manifest


def start_weights(settings: PretrainConfig) -> Path | None:
    """The local file of `pretrain.start`, fetched first when it lies in a bucket; None for random weights."""
    return None if settings.start is None else local_weights(settings.start)


def run(config: Config) -> Path:
    """Train and write `pretrain.output`; returns its path."""
    settings = config.pretrain
    backbone, side = BACKBONES["tiny"], BACKBONES["tiny"].side
    loss_side = settings.rounds.loss_side or side
    manifest, start = train_manifest(settings), start_weights(settings)
    inputs = [manifest and manifest.fingerprint, start and file_fingerprint(start)]
    work = Path("work/pretrain") / fingerprint(settings, config.seed, inputs)
    scenes = CoarseScenes.made(
        work, count=settings.scenes, seed=settings.seed, coarsen=settings.coarsen, side=side, loss_side=loss_side
    )
    sources: list[ImageSource] = [scenes]
    shares = [1]
    if manifest is not None:
        sources.append(CoarseManifest(manifest, coarsen=settings.coarsen, side=side, loss_side=loss_side))
        shares.append(1)
    torch.manual_seed(config.seed)
    model = load_segmenter(start, backbone="tiny") if start else Segmenter(backbone.build(), backbone="tiny")
    model.task_prompt.requires_grad_(False)
    loop = Loop(model, options=loop_options(settings.optim, config), folder=work)
    optim = settings.optim
    mixture = Mixture(
        sources, shares, optim.images_per_batch, optim.masks_per_image, config.seed, loop.rank, loop.ranks
    )
    interactive = round_options(settings.rounds, task_prompt="off")
    single = replace(interactive, count=1)

    def batches(start: int) -> Iterator[TrainBatch]:
        return mixture.batches(start=start, stop=optim.steps, workers=optim.workers)

    def step(state: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        rounds = single if state.step < settings.single_round_steps else interactive
        return train_rounds(
            model,
            batch,
            rounds=rounds,
            generator=generator,
            backward=state.backward,
            autocast=state.autocast,
            chunk=state.chunk,
        )

    with alone(loop):
        loop.run(batches, step, title="pretrain")
    output = Path(settings.output)
    loop.finish()
    save_segmenter(output, model, about={"recipe": "sum pretrain", "steps": str(settings.optim.steps)})
    load_segmenter(str(output), backbone="tiny")
    log.info("wrote %s", output)
    return output
