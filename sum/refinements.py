"""The refinement module on held-out human masks: what SAM says of them, what becomes of it, how far it is doubted.

An image is asked in chunks of masks, so that memory does not grow with the masks of an image or with the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sum.core.evidence import count_codes
from sum.core.metrics import boundary_iou, iou
from sum.core.prompts import sample_points
from sum.core.uncertainty import OTHERS, UNCERTAINTY, from_codes, map_codes, to_codes
from sum.data.batches import TrainBatch, collate
from sum.data.frames import load_frame
from sum.data.pictures import Window, compared, heat, prompted, strip
from sum.data.records import ImageRecord, Manifest, MaskRecord
from sum.data.samples import target_sample
from sum.data.targets import rles_to_frame
from sum.models.pairs import Pairs, propose
from sum.models.refiner import Refiner
from sum.models.segmenter import Segmenter
from sum.progress import track
from sum.rounds import valid_pixels

CHUNK = 16  # masks asked at once
MARGIN = 0.1  # of the longer side: what the region `box` has around mask and truth
Row = dict[str, object]
Flags = NDArray[np.bool_]
Codes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One held-out mask that SAM's own filters let pass; planes `[S, S]` in the model frame."""

    mask: MaskRecord
    image: NDArray[np.uint8]  # [S, S, 3], padded
    valid: Flags  # False on padding, as are the three masks
    truth: Flags
    sam: Flags
    refined: Flags
    point: list[int]  # x, y: what SAM was asked
    uncertainty: Mapping[str, Codes]  # method -> codes, brought from SAM's low resolution as training reads them
    probability: Mapping[str, Codes]  # sam, refined


def trials(
    refiner: Refiner,
    base: Segmenter,
    manifest: Manifest,
    *,
    others: Mapping[str, Refiner],
    filters: tuple[float, float],
    seed: int,
) -> Iterator[Trial]:
    """Ask SAM and the refiners about every mask of the manifest, by one point drawn from it.

    others: OTHERS' names of the further refiners that are there; filters: SAM's lowest predicted IoU and stability.
    What is drawn for an image hangs on its content and the seed alone, so that some images give again what all gave.
    """
    masks = manifest.masks_of()
    images = [image for image in manifest.images if masks[image.image_id]]
    for image in track(images, title="measure refinement", unit="image"):
        frame, inner = load_frame(image, side=base.side)
        rng = np.random.default_rng([seed, int(image.sha256[:12], 16)])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        embedding = None
        rows = masks[image.image_id]
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            target = rles_to_frame([row.rle for row in part], hw=(image.height, image.width), loss_side=base.side)
            sample = target_sample(frame, target, hw=inner, task=0, rng=rng)
            batch = collate([sample]).to(base.task_prompt.device)
            if embedding is None:
                with torch.inference_mode():
                    embedding = base.encode_fast(batch.image, batch.hw)
            yield from _answers(
                part, frame, batch, embedding, models=(base, refiner, others), filters=filters, generator=generator
            )


@torch.inference_mode()
def _answers(
    part: Sequence[MaskRecord],
    frame: NDArray[np.uint8],
    batch: TrainBatch,
    embedding: Tensor,
    *,
    models: tuple[Segmenter, Refiner, Mapping[str, Refiner]],
    filters: tuple[float, float],
    generator: torch.Generator,
) -> list[Trial]:
    """The trials of one chunk."""
    base, refiner, others = models
    pairs = pairs_of(base, embedding, batch, generator=generator, thresholds=(0.0, *filters))
    kept = pairs.good.nonzero().flatten()
    if not len(kept):
        return []
    index, prompts = batch.image_index[kept], prompts_of(pairs, kept)
    refined = refiner(embedding, index, **prompts).float()
    sam, first_codes = (to_codes(torch.sigmoid(logits)) for logits in (prompts["sam_logits"], refined))
    further = {
        name: to_codes(torch.sigmoid(other(embedding, index, **prompts).float())) for name, other in others.items()
    }
    side = batch.mask.shape[-1]
    doubts = {
        name: _as_read(map_codes(method, sam, first_codes, further.get(OTHERS.get(name, ""))), side=side)
        for name, method in UNCERTAINTY.items()
        if name not in OTHERS or OTHERS[name] in further
    }
    fine = F.interpolate(refined, (side, side), mode="bilinear", align_corners=False)
    valid = valid_pixels(batch)[kept]
    truth, first, second = (t & valid for t in (batch.mask[kept] > 0.5, pairs.fine[kept] > 0, fine > 0))
    chances = {"sam": to_codes(torch.sigmoid(pairs.fine[kept])), "refined": to_codes(torch.sigmoid(fine))}
    points = pairs.point[kept].round().int().tolist()
    return [
        Trial(
            part[number],
            frame,
            _plane(valid, k),
            _plane(truth, k),
            _plane(first, k),
            _plane(second, k),
            points[k],
            {name: _plane(codes, k) for name, codes in doubts.items()},
            {name: _plane(codes, k) for name, codes in chances.items()},
        )
        for k, number in enumerate(kept.tolist())
    ]


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


def prompts_of(pairs: Pairs, kept: Tensor) -> dict[str, Tensor]:
    """What a refiner is asked of the pairs `kept`, by the names of its arguments."""
    return {"sam_logits": pairs.logits[kept], "box": pairs.box[kept], "point": pairs.point[kept]}


def mask_row(trial: Trial) -> Row:
    """One row of the table of masks: how good SAM's mask and the refined one are, in the model frame."""
    return {
        **_place(trial),
        "iou_sam": iou(trial.sam, trial.truth),
        "iou_refined": iou(trial.refined, trial.truth),
        "boundary_sam": boundary_iou(trial.sam, trial.truth),
        "boundary_refined": boundary_iou(trial.refined, trial.truth),
    }


def pixel_rows(trial: Trial) -> Iterator[Row]:
    """Rows of the table of pixels: counts of codes, of every method in every region.

    Of an uncertainty a pixel is right where SAM's mask is as the truth; of a probability it is `right` where the truth
    is set.
    """
    right = trial.sam == trial.truth
    regions = {"image": trial.valid, "box": trial.valid & _around(trial.sam | trial.truth)}
    for region, where in regions.items():
        for kind, planes, good in (
            ("uncertainty", trial.uncertainty, right),
            ("probability", trial.probability, trial.truth),
        ):
            for method, codes in planes.items():
                counts = count_codes(codes, good, where)
                about = {"region": region, "kind": kind, "method": method}
                yield {**_place(trial), **about, "wrong": counts[:, 0].tolist(), "right": counts[:, 1].tolist()}


def picture(trial: Trial, *, method: str) -> NDArray[np.uint8]:
    """Photo with the click, truth, SAM's mask, the refined one, and the uncertainty of `method`, side by side."""
    rows, columns = np.nonzero(trial.truth | trial.sam)
    box = (int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max()))
    inner = int(trial.valid.any(1).sum()), int(trial.valid.any(0).sum())
    window = Window.around(box, hw=inner)
    part = np.s_[: inner[0], : inner[1]]
    image, truth = trial.image[part], trial.truth[part]
    tiles = [prompted(window, image, click=(trial.point[0], trial.point[1]), box=box)]
    tiles += [compared(window, image, prediction=mask[part], truth=truth) for mask in (truth, trial.sam, trial.refined)]
    values = (trial.uncertainty[method][part] / np.float32(255)).astype(np.float32)
    return strip([*tiles, heat(window, image, values=values)])


def images_of(manifest: Manifest, names: set[str]) -> Manifest:
    """The part of a manifest that is about the images of these ids."""
    images: list[ImageRecord] = [image for image in manifest.images if image.image_id in names]
    return Manifest(images, [mask for mask in manifest.masks if mask.image_id in names])


def _place(trial: Trial) -> Row:
    mask = trial.mask
    return {"dataset": mask.dataset, "task": mask.task, "image_id": mask.image_id, "mask_id": mask.mask_id}


def _as_read(codes: Tensor, *, side: int) -> Tensor:
    """Uncertainty as the store keeps it, enlarged as training reads it, in bytes again."""
    return to_codes(F.interpolate(from_codes(codes), (side, side), mode="bilinear", align_corners=False))


def _plane(stack: Tensor, k: int) -> NDArray[Any]:
    found: NDArray[Any] = stack[k, 0].cpu().numpy()
    return found


def _around(mask: Flags) -> Flags:
    """The box around a mask with a margin; all False for an empty one."""
    found = np.zeros_like(mask)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if len(rows):
        gap = int(np.ceil(MARGIN * max(np.ptp(rows), np.ptp(columns))))
        top, left = max(0, rows[0] - gap), max(0, columns[0] - gap)
        found[top : rows[-1] + gap + 1, left : columns[-1] + gap + 1] = True
    return found
