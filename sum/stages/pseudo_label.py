"""Stage pseudo_label: SAM's automatic mask generation over every unlabelled image -> data/pseudo_labels.

Finished shards stay in work/pseudo_label/FINGERPRINT; a killed run goes on after the last one, with the same bytes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import median

from sum.data.frames import load_photo
from sum.data.labels import PseudoMask, label_rows
from sum.data.records import ImageRecord, read_manifest
from sum.data.shards import LABELS, ShardInfo, publish, read_info, shard_name, write_shard
from sum.errors import DataError
from sum.models.checkpoint import fingerprint as weights_fingerprint
from sum.models.checkpoint import load_segmenter
from sum.models.generator import GeneratorSettings, generate
from sum.models.segmenter import Segmenter
from sum.progress import track
from sum.settings import Config
from sum.stages.common import base_weights, fingerprint, pick_device, require_valid
from sum.storage import sha256_file

MANIFEST = Path("data/manifest")
OUT = Path("data/pseudo_labels")
WORK = Path("work/pseudo_label")
log = logging.getLogger(__name__)

Shards = Mapping[str, Sequence[ImageRecord]]  # file name -> its images


def run(config: Config) -> Path:
    """Label every image of split 'unlabelled'; returns the folder of the shards.

    Raises MissingInput before ingest and validate, ValidationFailed, CheckpointError for weights of another model,
    DataError when no image at all can be read.
    """
    images = read_manifest(MANIFEST, reader=LABELS).select(split="unlabelled").images
    require_valid(reader=LABELS)
    size = config.pseudo_label.shard_images
    shards = {shard_name(start // size): images[start : start + size] for start in range(0, len(images), size)}
    weights = base_weights(config)
    model = load_segmenter(weights, backbone=config.model.backbone).to(pick_device(config.device))
    digest = weights_fingerprint(weights)
    inputs = [[record.image_id, record.sha256] for record in images]
    work = WORK / fingerprint(config.pseudo_label, config.model.backbone, digest, inputs)
    open_shards = {name: part for name, part in shards.items() if not _is_done(work / name, part)}
    log.info("pseudo_label: %d of %d shards are done in %s", len(shards) - len(open_shards), len(shards), work)
    if open_shards:
        settings = {part.name: getattr(config.pseudo_label, part.name) for part in fields(GeneratorSettings)}
        _label(open_shards, model, work=work, settings=GeneratorSettings(**settings), total=len(shards))
    infos = [read_info(work / name, kind=LABELS) for name in shards]
    if images and not any(info.images for info in infos):
        unreadable = next(iter(infos[0].unreadable.values()))
        raise DataError(f"none of {len(images)} unlabelled images can be read. The first: {unreadable}")
    about = {"backbone": config.model.backbone, "checkpoint": digest, "settings": asdict(config.pseudo_label)}
    content = hashlib.sha256("".join(sha256_file(work / name) for name in shards).encode()).hexdigest()
    publish(work, OUT, names=list(shards), summary={**about, "content": content, **_summary(infos, config)})
    return OUT


def _label(shards: Shards, model: Segmenter, *, work: Path, settings: GeneratorSettings, total: int) -> None:
    """Write every one of these shards into `work`; total: the shards of the whole set."""
    jobs = [(name, record) for name, part in shards.items() for record in part]
    running = track(jobs, title=LABELS, unit="images", total=len(jobs))
    for name, group in groupby(running, key=itemgetter(0)):
        with write_shard(work / name, kind=LABELS, side=model.low_side, shards=total) as shard:
            for _, record in group:
                try:
                    image = load_photo(record)
                except DataError as error:
                    log.warning("pseudo_label: %s", error)
                    shard.skip(record.image_id, str(error))
                    continue
                found = generate(model, image, settings=settings)
                masks = [
                    PseudoMask(record.image_id, n, *(getattr(mask, part.name) for part in fields(mask)))
                    for n, mask in enumerate(found)
                ]
                shard.add(record.image_id, label_rows(masks, side=model.low_side))


def _is_done(path: Path, images: Sequence[ImageRecord]) -> bool:
    """Whether a shard of an earlier run is whole, and what it could not read still cannot be read."""
    if not path.exists():
        return False
    try:
        info = read_info(path, kind=LABELS)
    except DataError as error:
        log.warning("%s Making the shard again.", error)
        return False
    for record in images:
        if record.image_id in info.unreadable:
            try:
                load_photo(record)
            except DataError:
                continue
            return False
    return True


def _summary(infos: Sequence[ShardInfo], config: Config) -> dict[str, object]:
    """What was found, the same for the same shards: counts, and how much the prompts yielded."""
    counts = [count for info in infos for count in info.images.values()]
    unreadable = {image_id: why for info in infos for image_id, why in info.unreadable.items()}
    prompts = len(counts) * config.pseudo_label.points_per_side**2
    return {
        "shards": len(infos),
        "images": len(counts),
        "images_unreadable": len(unreadable),
        "unreadable": unreadable,
        "images_without_masks": counts.count(0),
        "masks": sum(counts),
        "masks_per_image": {"median": median(counts), "min": min(counts), "max": max(counts)} if counts else None,
        "masks_per_prompt": round(sum(counts) / prompts, 6) if prompts else None,
    }
