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

from sum.config import Config
from sum.data.batches import ImageSource, Mixture, TrainBatch
from sum.data.coarse import CoarseManifest, CoarseScenes
from sum.data.records import read_manifest
from sum.engine import Loop
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import load_segmenter, save_segmenter
from sum.models.segmenter import Segmenter
from sum.rounds import train_rounds
from sum.stages.common import fingerprint, loop_options, round_options

log = logging.getLogger(__name__)


def run(config: Config) -> Path:
    """Train and write `pretrain.output`; returns its path."""
    settings = config.pretrain
    backbone = BACKBONES["tiny"]
    side = backbone.side
    loss_side = settings.rounds.loss_side or side
    work = Path("work/pretrain") / fingerprint(settings, config.seed)
    scenes = CoarseScenes.made(
        work, count=settings.scenes, seed=settings.seed, coarsen=settings.coarsen, side=side, loss_side=loss_side
    )
    sources: list[ImageSource] = [scenes]
    shares = [1]
    if settings.manifest is not None:
        manifest = read_manifest(Path(settings.manifest), reader="pretrain").select(split="train")
        sources.append(CoarseManifest(manifest, coarsen=settings.coarsen, side=side, loss_side=loss_side))
        shares.append(1)
    torch.manual_seed(config.seed)
    if settings.start is None:
        model = Segmenter(backbone.build(), backbone="tiny")
    else:
        model = load_segmenter(settings.start, backbone="tiny")
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
            model, batch, rounds=rounds, generator=generator, backward=state.backward, autocast=state.autocast
        )

    loop.run(batches, step, title="pretrain")
    output = Path(settings.output)
    loop.finish()
    save_segmenter(output, model, about={"recipe": "sum pretrain", "steps": str(settings.optim.steps)})
    load_segmenter(str(output), backbone="tiny")
    log.info("wrote %s", output)
    return output
