"""Stage uncertainty: for every pseudo-label a map of how far it can be trusted -> data/uncertainty, shard by shard.

Finished shards stay in work/uncertainty/FINGERPRINT; a killed run goes on after the last one, with the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sum.core.geometry import boxes_to_model, points_to_model
from sum.core.uncertainty import UNCERTAINTY as METHODS
from sum.core.uncertainty import UncertaintyMethod, to_codes
from sum.data.frames import load_frame
from sum.data.labels import LabelStore, PseudoMask, map_rows
from sum.data.records import ImageRecord, read_manifest
from sum.data.shards import LABELS, SUMMARY, UNCERTAINTY, ShardInfo, ShardWriter, publish, read_info, write_shard
from sum.errors import DataError, MissingInput, choose
from sum.models.checkpoint import load_segmenter
from sum.models.generator import area_at_paper_side
from sum.models.interact import encode_frame
from sum.models.refiner import Refiner, load_refiner
from sum.models.segmenter import Segmenter
from sum.progress import track
from sum.settings import Config
from sum.stages.common import base_weights, fingerprint, pick_device
from sum.storage import sha256_file

MANIFEST = Path("data/manifest")
LABEL_FOLDER = Path("data/pseudo_labels")
REFINER = Path("data/refiner/model.safetensors")
OUT = Path("data/uncertainty")
WORK = Path("work/uncertainty")
WITHOUT_REFINER = frozenset({"none", "confidence"})  # methods that do not look at the refined logits
BATCH = 64  # masks refined at once
log = logging.getLogger(__name__)

Refine = Callable[[ImageRecord, Sequence[PseudoMask], Tensor], Tensor]


def run(config: Config) -> Path:
    """Write the uncertainty of every pseudo-label; returns the folder of the shards.

    Raises MissingInput before pseudo_label and refine, DataError when an image has gone since it was labelled.
    """
    method = choose(METHODS, config.uncertainty.method, key="uncertainty.method")
    images = {record.image_id: record for record in read_manifest(MANIFEST, reader=UNCERTAINTY).images}
    store = LabelStore(LABEL_FOLDER, reader=UNCERTAINTY)
    weights = base_weights(config)
    refines = config.uncertainty.method not in WITHOUT_REFINER
    needed = {LABEL_FOLDER / SUMMARY: LABELS} | ({REFINER: "refine"} if refines else {})
    for path, maker in needed.items():
        if not path.is_file():
            raise MissingInput(path, reader=UNCERTAINTY, maker=maker)
    inputs = {str(path): sha256_file(path) for path in needed} | (
        {"checkpoint": sha256_file(weights)} if refines else {}
    )
    work = WORK / fingerprint(config.uncertainty, config.model.backbone, inputs)
    waiting = [name for name in store.shards if not _is_done(work / name, store.info(name))]
    log.info("uncertainty: %d of %d shards are done in %s", len(store.shards) - len(waiting), len(store.shards), work)
    if waiting:
        refine = _load(config, weights) if refines else None
        mapper = _Mapper(method, config.uncertainty.min_refine_area, refine)
        _map(waiting, mapper, store=store, images=images, work=work)
    infos = [read_info(work / name, kind=UNCERTAINTY) for name in store.shards]
    about = {"settings": asdict(config.uncertainty), "backbone": config.model.backbone, "inputs": inputs}
    publish(work, OUT, names=store.shards, summary={**about, **_summary(infos)})
    return OUT


@dataclass(frozen=True, slots=True)
class _Refinery:
    """SAM's encoder and the refiner, asked about one image."""

    model: Segmenter
    refiner: Refiner

    @torch.inference_mode()
    def __call__(self, record: ImageRecord, masks: Sequence[PseudoMask], logits: Tensor) -> Tensor:
        """Refined logits `[K, 1, L, L]` on the cpu for SAM's of these masks, in model frame."""
        frame, inner = load_frame(record, side=self.model.side)
        hw = (record.height, record.width)
        embedding = encode_frame(self.model, frame, inner)
        device = embedding.device
        box = boxes_to_model(torch.tensor([mask.box for mask in masks]), hw=hw, side=self.model.side)
        point = points_to_model(torch.tensor([mask.point for mask in masks]), hw=hw, side=self.model.side)
        pieces = []
        for start in range(0, len(masks), BATCH):
            sam, corners, xy = (part[start : start + BATCH].to(device) for part in (logits, box, point))
            index = torch.zeros(len(sam), dtype=torch.int64, device=device)
            pieces.append(self.refiner(embedding, index, sam_logits=sam, box=corners, point=xy).float().cpu())
        return torch.cat(pieces)


@dataclass(frozen=True, slots=True)
class _Mapper:
    """From the masks of an image to rows of the uncertainty shard; refine: None for a method that needs no refiner."""

    method: UncertaintyMethod
    min_area: float  # px at a 1024 frame
    refine: Refine | None

    def write(self, shard: ShardWriter, record: ImageRecord, masks: Sequence[PseudoMask]) -> None:
        """Add the image to the shard. Masks under `min_area` get the map 0, and SAM's own mask for the refined one."""
        if not masks:
            shard.add(record.image_id, [])
            return
        hw = (record.height, record.width)
        logits = torch.from_numpy(np.stack([mask.logits for mask in masks])).float()[:, None]
        large = torch.tensor([area_at_paper_side(mask.area, hw) >= self.min_area for mask in masks])
        refined = logits.clone()
        if self.refine is not None and large.any():
            chosen = [mask for mask, is_large in zip(masks, large.tolist(), strict=True) if is_large]
            refined[large] = self.refine(record, chosen, logits[large])
        uncertainty = to_codes(self.method(logits, refined) * large[:, None, None, None])[:, 0]
        codes = to_codes(torch.sigmoid(refined))[:, 0]
        has_map = large.tolist()
        rows = map_rows(record.image_id, uncertainty.numpy(), refined=codes.numpy(), has_map=has_map)
        shard.add(record.image_id, rows)
        shard.count("maps", int(large.sum()))
        shard.count("codes", int(uncertainty.sum(dtype=torch.int64)))


def _load(config: Config, weights: Path) -> _Refinery:
    model = load_segmenter(weights, backbone=config.model.backbone).to(pick_device(config.device))
    return _Refinery(model, load_refiner(REFINER, base=model, origin=sha256_file(weights)))


def _map(
    names: Sequence[str], mapper: _Mapper, *, store: LabelStore, images: Mapping[str, ImageRecord], work: Path
) -> None:
    """Write the uncertainty shards of these label shards into `work`."""
    jobs = [(name, image_id) for name in names for image_id in store.info(name).images]
    for name, image_id in jobs:
        if image_id not in images:
            raise DataError(
                f"{LABEL_FOLDER / name}: image '{image_id}' is not in {MANIFEST}. Run `dvc repro {LABELS}`."
            )
    running = track(jobs, title=UNCERTAINTY, unit="images", total=len(jobs))
    for name, group in groupby(running, key=itemgetter(0)):
        with write_shard(work / name, kind=UNCERTAINTY, side=store.side, shards=len(store.shards)) as shard:
            for _, image_id in group:
                mapper.write(shard, images[image_id], store.masks(image_id))


def _is_done(path: Path, labels: ShardInfo) -> bool:
    """Whether a shard of an earlier run is whole and answers for all these labels."""
    if not path.exists():
        return False
    try:
        return read_info(path, kind=UNCERTAINTY).images == labels.images
    except DataError as error:
        log.warning("%s Making the shard again.", error)
        return False


def _summary(infos: Sequence[ShardInfo]) -> dict[str, object]:
    """Counts, and the mean uncertainty over all maps; the same for the same shards."""
    maps = sum(info.totals.get("maps", 0) for info in infos)
    pixels = sum(info.totals.get("maps", 0) * info.side**2 for info in infos)
    codes = sum(info.totals.get("codes", 0) for info in infos)
    return {
        "shards": len(infos),
        "images": sum(len(info.images) for info in infos),
        "masks": sum(sum(info.images.values()) for info in infos),
        "masks_with_map": maps,
        "mean_uncertainty": round(codes / (255 * pixels), 6) if pixels else None,
    }
