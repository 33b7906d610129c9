"""Train the mask-refinement module (paper 3.2.3, Appendix D); measure on held-out images what it does to masks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from sum.config import Config
from sum.core.losses import LossWeights, mask_losses
from sum.core.metrics import boundary_iou, iou
from sum.core.prompts import sample_points
from sum.core.uncertainty import refinement
from sum.data.batches import Mixture, TrainBatch, collate
from sum.data.records import Manifest, read_manifest
from sum.data.samples import HumanImages
from sum.data.splits import held_out
from sum.engine import Loop
from sum.errors import DataError
from sum.models.checkpoint import fingerprint as file_fingerprint
from sum.models.checkpoint import load_segmenter
from sum.models.pairs import Pairs, propose
from sum.models.refiner import Refiner, save_refiner
from sum.models.segmenter import TASKS, Segmenter
from sum.progress import track
from sum.rounds import valid_pixels
from sum.stages.common import base_weights, fingerprint, loop_options, require_valid
from sum.storage import replace_folder, write_json

log = logging.getLogger(__name__)
MANIFEST, OUT = Path("data/manifest"), Path("data/refiner")


def run(config: Config) -> Path:
    """Train data/refiner on the human masks of all train sets; resumes from work/refine. Returns the folder."""
    require_valid(reader="refine")
    settings = config.refine
    manifest = read_manifest(MANIFEST, reader="refine").select(split="train")
    learn, measure = divide(manifest, share=settings.holdout_share)
    base_path = base_weights(config)
    base = load_segmenter(base_path, backbone=config.model.backbone).requires_grad_(False)
    base_hash = file_fingerprint(base_path)
    images = HumanImages(learn, side=base.side, loss_side=base.side, tasks=TASKS)
    if not len(images):
        raise DataError(
            "refine: no human mask in any data set of split 'train'; the refinement module learns from those"
        )
    work = Path("work/refine") / fingerprint(settings, config.seed, config.model, base_hash, learn.fingerprint)
    loop = Loop(Refiner(base), options=loop_options(settings.optim, config), folder=work)
    base.to(loop.accelerator.device)
    optim = settings.optim
    mixture = Mixture([images], [1], optim.images_per_batch, optim.masks_per_image, config.seed, loop.rank, loop.ranks)
    thresholds = (settings.min_iou, settings.pred_iou_thresh, settings.stability_thresh)

    def batches(start: int) -> Iterator[TrainBatch]:
        return mixture.batches(start=start, stop=optim.steps, workers=optim.workers)

    def step(state: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        return refine_step(state, batch, generator, base=base, thresholds=thresholds)

    loop.run(batches, step, title="refine")
    refiner = loop.finish()
    assert isinstance(refiner, Refiner)
    rows = measure_refiner(refiner.eval(), base, measure, thresholds=thresholds, seed=config.seed)
    if loop.rank == 0:
        with replace_folder(OUT) as folder:
            about = {"steps": str(optim.steps)}
            save_refiner(folder / "model.safetensors", refiner, origin=base_hash, about=about)
            write_json(folder / "report.json", summarise(rows, loop.history))
    return OUT


def divide(manifest: Manifest, *, share: float) -> tuple[Manifest, Manifest]:
    """Images to learn from and held-out images, with their masks."""
    out = {image.image_id: held_out(image.sha256, share=share) for image in manifest.images}  # a photo in two sets too

    def part(wanted: bool) -> Manifest:
        images = [image for image in manifest.images if out[image.image_id] == wanted]
        return Manifest(images, [mask for mask in manifest.masks if out[mask.image_id] == wanted])

    return part(False), part(True)


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
        embedding = base.encode(batch.image, batch.hw)
    pairs = pairs_of(base, embedding, batch, generator=generator, thresholds=thresholds)
    kept = pairs.good.nonzero().flatten()
    scalars = {"kept": pairs.good.float().mean(), "iou_sam": pairs.iou.mean(), "loss": torch.zeros(())}
    if not len(kept):
        return scalars
    with loop.autocast():
        refined = refiner(
            embedding,
            batch.image_index[kept],
            sam_logits=pairs.logits[kept],
            box=pairs.box[kept],
            point=pairs.point[kept],
        )
    side = batch.mask.shape[-1]
    fine = F.interpolate(refined.float(), (side, side), mode="bilinear", align_corners=False)
    loss = mask_losses(fine, batch.mask[kept], batch.certainty[kept], LossWeights()).mean()
    loop.backward(loss)
    return scalars | {"loss": loss.detach()}


def pairs_of(
    base: Segmenter,
    embedding: Tensor,
    batch: TrainBatch,
    *,
    generator: torch.Generator,
    thresholds: tuple[float, float, float],
) -> Pairs:
    """SAM's proposals for the masks of a batch, each from one point drawn uniformly over the mask."""
    xy, found = sample_points(batch.mask * batch.certainty, generator=generator)
    scale = base.side / batch.mask.shape[-1]
    point = torch.where(found[:, None], (xy + 0.5) * scale - 0.5, batch.point)
    return propose(
        base,
        embedding,
        batch.image_index,
        point=point,
        target=batch.mask,
        valid=valid_pixels(batch),
        thresholds=thresholds,
    )


@torch.inference_mode()
def measure_refiner(
    refiner: Refiner, base: Segmenter, manifest: Manifest, *, thresholds: tuple[float, float, float], seed: int
) -> pd.DataFrame:
    """One row a held-out mask whose proposal passes the filters; metrics in the model frame.

    Columns: task, iou_sam, iou_refined, boundary_sam, boundary_refined, and for c in (0.6, 0.8) all image
    pixels above c and not (certain_C, uncertain_C) and how many of each are right (certain_right_C,
    uncertain_right_C).
    """
    images = HumanImages(manifest, side=base.side, loss_side=base.side, tasks=TASKS)
    names = {number: name for name, number in TASKS.items()}
    device = base.task_prompt.device
    rows = []
    for index in track(range(len(images)), title="measure refinement", unit="image"):
        batch = collate([images.sample(index, masks=10**6, rng=np.random.default_rng([seed, index]))]).to(device)
        embedding = base.encode(batch.image, batch.hw)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        pairs = pairs_of(base, embedding, batch, generator=generator, thresholds=thresholds)
        kept = pairs.good.nonzero().flatten()
        if not len(kept):
            continue
        refined = refiner(
            embedding,
            batch.image_index[kept],
            sam_logits=pairs.logits[kept],
            box=pairs.box[kept],
            point=pairs.point[kept],
        )
        fine = F.interpolate(refined.float(), pairs.fine.shape[-2:], mode="bilinear", align_corners=False)
        certainty = 1 - refinement(pairs.fine[kept], fine)
        valid = valid_pixels(batch)[kept]
        for k, number in enumerate(kept.tolist()):
            parts = [
                t[k, 0].cpu().numpy()
                for t in (batch.mask[kept] > 0.5, pairs.fine[kept] > 0, fine > 0, certainty, valid)
            ]
            rows.append({"task": names[int(batch.task[number])], **compare(*parts)})
    return pd.DataFrame(rows)


def compare(
    truth: np.ndarray, sam: np.ndarray, refined: np.ndarray, certainty: np.ndarray, valid: np.ndarray
) -> dict[str, float]:
    """Figures of one mask; all `[T, T]`, bool but for certainty."""
    truth, sam, refined = truth & valid, sam & valid, refined & valid
    row = {
        "iou_sam": iou(sam, truth),
        "iou_refined": iou(refined, truth),
        "boundary_sam": boundary_iou(sam, truth),
        "boundary_refined": boundary_iou(refined, truth),
    }
    right = sam == truth
    for cut in (0.6, 0.8):
        sure = certainty > cut
        for name, part in (("certain", sure & valid), ("uncertain", ~sure & valid)):
            row[f"{name}_{cut}"] = float(part.sum())
            row[f"{name}_right_{cut}"] = float((part & right).sum())
    return row


def summarise(rows: pd.DataFrame, history: list[dict[str, float]]) -> dict[str, object]:
    """The report (Fig. 7, Fig. 9, Table 3 of the paper): means a task, share made worse, accuracy of certain and
    uncertain pixels.
    """
    last = pd.DataFrame(history).tail(20)
    report: dict[str, object] = {
        "steps": len(history),
        "pairs_kept_share": round(float(last["kept"].mean()), 4),
        "final_loss": round(float(last["loss"].mean()), 5),
        "held_out_masks": len(rows),
    }
    groups = {"all": rows, **dict(iter(rows.groupby("task")))} if len(rows) else {}
    for name, part in groups.items():
        figures = {
            column: float(part[column].mean())
            for column in ("iou_sam", "iou_refined", "boundary_sam", "boundary_refined")
        }
        figures["worse_share"] = float((part["iou_refined"] < part["iou_sam"]).mean())
        for cut in (0.6, 0.8):
            for kind in ("certain", "uncertain"):
                count = float(part[f"{kind}_{cut}"].sum())
                figures[f"{kind}_pixel_share_{cut}"] = count / float(
                    part[f"certain_{cut}"].sum() + part[f"uncertain_{cut}"].sum()
                )
                if count:
                    figures[f"{kind}_accuracy_{cut}"] = float(part[f"{kind}_right_{cut}"].sum()) / count
        report[str(name)] = {"masks": len(part), **{key: round(value, 5) for key, value in figures.items()}}
    return report
