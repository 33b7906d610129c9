"""Train the mask-refinement module (paper 3.2.3, Appendix D); measure on held-out images what it does to masks, and
whether what it doubts is wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from sum.alone import alone
from sum.config import Config
from sum.core.evidence import CUTS
from sum.core.losses import LossWeights, mask_losses
from sum.core.uncertainty import OTHERS
from sum.data.batches import Mixture, TrainBatch
from sum.data.pictures import to_jpeg
from sum.data.records import Manifest, read_manifest
from sum.data.refined import (
    CURVES,
    FIGURES,
    MASK_SCHEMA,
    MASKS,
    PIXEL_SCHEMA,
    PIXELS,
    mask_figures,
    nested,
    pixel_figures,
    read_tables,
)
from sum.data.refined_pages import PICTURES, charts, write_charts
from sum.data.samples import HumanImages
from sum.data.score_tables import TableWriter
from sum.data.showcase import KINDS, choose_masks
from sum.data.splits import divide
from sum.engine import Loop
from sum.errors import DataError
from sum.models.checkpoint import fingerprint as file_fingerprint
from sum.models.checkpoint import load_base
from sum.models.refiner import Refiner, save_refiner
from sum.models.segmenter import TASKS, Segmenter
from sum.refinements import Trial, images_of, mask_row, pairs_of, picture, pixel_rows, prompts_of, trials
from sum.stages.common import base_weights, fingerprint, loop_options, require_valid
from sum.storage import replace_folder, write_json

log = logging.getLogger(__name__)
TOLD = (("certain", "share"), ("certain", "accuracy"), ("uncertain", "accuracy"))  # at every cut
MANIFEST, OUT, WORK = Path("data/manifest"), Path("data/refiner"), Path("work/refine")


@dataclass(frozen=True, slots=True)
class Models:
    """SAM, its refiner, and those that the discrepancies compare with it, by their names in OTHERS."""

    base: Segmenter
    refiner: Refiner
    others: Mapping[str, Refiner]


def run(config: Config) -> Path:
    """Train data/refiner on the human masks of all train sets; resumes from work/refine. Returns the folder."""
    require_valid(reader="refine")
    settings = config.refine
    manifest = read_manifest(MANIFEST, reader="refine").select(split="train")
    learn, measure = divide(manifest, share=settings.holdout_share)
    base_path = base_weights(config)
    base = load_base(base_path, backbone=config.model.backbone).requires_grad_(False)
    base_hash = file_fingerprint(base_path)
    images = HumanImages(learn, side=base.side, loss_side=base.side, tasks=TASKS)
    if not len(images):
        raise DataError(
            "refine: no human mask in any data set of split 'train'; the refinement module learns from those"
        )
    recipe = replace(settings, discrepancy=[], resamples=1, pictures=0)  # what the weights hang on
    work = WORK / fingerprint(recipe, config.seed, config.model, base_hash, learn.fingerprint)
    others = {}
    if "decoders" in settings.discrepancy:
        second = train(config, base, images, folder=work / "decoder", seed=(config.seed + 1) % 2**31)
        others[OTHERS["discrepancy_decoders"]] = _eval(second.finish())
    loop = train(config, base, images, folder=work, seed=config.seed)
    if "teacher" in settings.discrepancy:
        others[OTHERS["discrepancy_teacher"]] = _eval(deepcopy(loop.model))
    models = Models(base, _eval(loop.finish()), others)
    if loop.rank == 0:
        with replace_folder(OUT) as folder:
            about = {"steps": str(settings.optim.steps)}
            for name, refiner in {"model": models.refiner, **others}.items():
                save_refiner(folder / f"{name}.safetensors", refiner, origin=base_hash, about=about)
            report = {**summarise(loop.history), **prove(config, models, measure, folder=folder)}
            write_json(folder / "report.json", report)
    return OUT


def train(config: Config, base: Segmenter, images: HumanImages, *, folder: Path, seed: int) -> Loop:
    """A refiner of `base` in a loop at its last step. seed: draws images, masks and points."""
    settings, optim = config.refine, config.refine.optim
    loop = Loop(Refiner(base), options=replace(loop_options(optim, config), seed=seed), folder=folder)
    base.to(loop.accelerator.device)
    mixture = Mixture([images], [1], optim.images_per_batch, optim.masks_per_image, seed, loop.rank, loop.ranks)
    thresholds = (settings.min_iou, settings.pred_iou_thresh, settings.stability_thresh)

    def batches(start: int) -> Iterator[TrainBatch]:
        return mixture.batches(start=start, stop=optim.steps, workers=optim.workers)

    def step(state: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        return refine_step(state, batch, generator, base=base, thresholds=thresholds)

    with alone(loop):
        loop.run(batches, step, title="refine")
    return loop


def refine_step(
    loop: Loop,
    batch: TrainBatch,
    generator: torch.Generator,
    *,
    base: Segmenter,
    thresholds: tuple[float, float, float],
) -> dict[str, Tensor]:
    """Loss of the refined masks of a batch against the human masks, over the pairs worth learning from."""
    refiner = loop.model
    with torch.no_grad(), loop.autocast():
        embedding = base.encode_fast(batch.image, batch.hw)
    pairs = pairs_of(base, embedding, batch, generator=generator, thresholds=thresholds)
    kept = pairs.good.nonzero().flatten()
    scalars = {"kept": pairs.good.float().mean(), "iou_sam": pairs.iou.mean(), "loss": torch.zeros(())}
    if not len(kept):
        return scalars
    with loop.autocast():
        refined = refiner(embedding, batch.image_index[kept], **prompts_of(pairs, kept))
    losses = mask_losses(refined, batch.mask[kept], batch.certainty[kept], LossWeights())
    loss = losses.mean()
    loop.backward(loss)
    each = torch.zeros(len(batch.mask), device=losses.device).index_copy(0, kept, losses.detach()[:, 0])
    return scalars | {"loss": loss.detach(), "mask_losses": each}


def prove(config: Config, models: Models, manifest: Manifest, *, folder: Path) -> dict[str, Any]:
    """Measure the held-out masks; write tables, figures, charts and pictures into `folder`; returns report figures.

    Without a held-out mask that SAM's filters pass there is nothing to tell: empty tables, and nothing else is there.
    """
    settings, options = config.refine, {"resamples": config.refine.resamples, "seed": config.seed}
    with (
        TableWriter(folder / MASKS, MASK_SCHEMA) as masks,
        TableWriter(folder / PIXELS, PIXEL_SCHEMA) as pixels,
    ):
        for trial in _trials(config, models, manifest):
            masks.add([mask_row(trial)])
            pixels.add(pixel_rows(trial))
    table, counts = read_tables(folder, reader="refine")
    pairs = table[table["iou_sam"] >= settings.min_iou]
    report: dict[str, Any] = {"held_out_masks": len(pairs), "held_out_filtered": len(table)}
    if len(table):
        figures, curves = pixel_figures(table, counts, min_iou=settings.min_iou, **options)
        figures.to_csv(folder / FIGURES, index=False)
        curves.to_csv(folder / CURVES, index=False, float_format="%.6g")
        write_json(folder / "evidence.json", nested(figures))
        write_charts(folder, charts(table, figures, curves, min_iou=settings.min_iou))
        report |= mask_figures(pairs, **options) if len(pairs) else {}
        report |= _accuracies(figures)
    _write_pictures(config, models, images_of(manifest, set(pairs["image_id"])), pairs, folder=folder)
    return report


def summarise(history: list[dict[str, float]]) -> dict[str, Any]:
    """What the report says of the training."""
    last = pd.DataFrame(history).tail(20)
    return {
        "steps": len(history),
        "pairs_kept_share": round(float(last["kept"].mean()), 4),
        "final_loss": round(float(last["loss"].mean()), 5),
    }


def _trials(config: Config, models: Models, manifest: Manifest) -> Iterator[Trial]:
    filters = (config.refine.pred_iou_thresh, config.refine.stability_thresh)
    return trials(models.refiner, models.base, manifest, others=models.others, filters=filters, seed=config.seed)


def _accuracies(figures: pd.DataFrame) -> dict[str, Any]:
    """Accuracy of certain and uncertain pixels by method, of the pairs, all tasks, whole images: as the paper does."""
    chosen = figures[
        (figures["masks"] == "pairs") & (figures["region"] == "image") & (figures["task"] == "all")
        & (figures["kind"] == "uncertainty")
    ]  # fmt: skip
    names = [f"{side}_{what}_{cut}" for cut in CUTS for side, what in TOLD] + ["aurc", "ece"]
    return {
        f"uncertainty {row['method']}": {name: round(row[name], 5) for name in names if not pd.isna(row[name])}
        for row in chosen.to_dict("records")
    }


def _write_pictures(config: Config, models: Models, manifest: Manifest, pairs: pd.DataFrame, *, folder: Path) -> None:
    """Masks that gained most, lost most and some by lot, and a list of what they are."""
    known = pairs.set_index("mask_id")
    chosen = choose_masks(known[["task", "iou_sam", "iou_refined"]], count=config.refine.pictures) if len(known) else []
    images = {str(known.loc[mask_id, "image_id"]) for _, _, mask_id in chosen}
    wanted = {mask_id: (task, kind) for task, kind, mask_id in chosen}
    (folder / PICTURES).mkdir()
    found = []
    for trial in _trials(config, models, images_of(manifest, images)):
        name = trial.mask.mask_id
        if name in wanted:
            task, kind = wanted[name]
            before, after = (
                100 * float(value) for value in known.loc[[name], ["iou_sam", "iou_refined"]].to_numpy()[0]
            )
            words = f"SAM {before:.1f}, refined {after:.1f} ({after - before:+.1f})"
            file = f"{task}-{kind}-{[*wanted].index(name):02d}.jpg"
            (folder / PICTURES / file).write_bytes(to_jpeg(picture(trial, method="refinement")))
            found.append({"file": file, "task": task, "kind": KINDS[kind], "mask_id": name, "iou": words})
    write_json(folder / f"{PICTURES}.json", sorted(found, key=lambda entry: entry["file"].rsplit("-", 1)[-1]))


def _eval(model: nn.Module) -> Refiner:
    assert isinstance(model, Refiner)
    return model.eval()
