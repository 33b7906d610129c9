"""Stage pseudo_label: SAM's automatic mask generation over every unlabelled image -> data/pseudo_labels.

An image belongs to the shard that its content hash names. Finished shards stay in work/pseudo_label/FINGERPRINT: a
killed run goes on after them, with the same bytes, and new images only change the shards they fall into, until there
are twice as many shards. Processes of
`torchrun -m sum pseudo_label` share the work (docs/platform.md). Where the refinement module is there already, this
pass makes the uncertainty maps too, while it has an image's embedding; stage uncertainty then finds them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from torch import Tensor

from sum.core.uncertainty import OF_SAM_ALONE, UNCERTAINTY
from sum.data.ahead import AHEAD, Photo, Read, in_groups, read_ahead
from sum.data.labels import label_rows
from sum.data.lost import is_lost, judge_lost
from sum.data.records import ImageRecord, read_manifest
from sum.data.shards import LABELS, ShardInfo, ShardWriter, publish, read_info, read_whole, shard_name, write_shard
from sum.data.splits import bucket
from sum.errors import CheckpointError, DataError
from sum.labelling import Labelled, label
from sum.map_shards import MapShards
from sum.mapping import MapMaker, ToMap
from sum.models.checkpoint import fingerprint as weights_fingerprint
from sum.models.checkpoint import load_base
from sum.models.generator import Batches
from sum.models.halving import is_out_of_memory
from sum.models.refiner import load_other, load_refiner
from sum.models.segmenter import Segmenter
from sum.models.sieve import GeneratorSettings
from sum.progress import counting
from sum.settings import Config
from sum.shard_work import open_shards, own_device, process_rank, unfinished
from sum.shares import Share, is_shared, open_share
from sum.stages.common import REFINER, base_weights, fingerprint, maps_work, pick_device, require_valid
from sum.storage import sha256_file

MANIFEST = Path("data/manifest")
OUT = Path("data/pseudo_labels")
WORK = Path("work/pseudo_label")
log = logging.getLogger(__name__)

Parts = Mapping[str, Sequence[ImageRecord]]  # file name in the work folder -> the images of that shard


def run(config: Config) -> Path:
    """Label every image of split 'unlabelled'; returns the folder of the shards.

    Raises MissingInput before ingest and validate, ValidationFailed, CheckpointError for weights of another model,
    DataError when no image at all can be read, or one cannot and `pseudo_label.on_bad` is 'fail'.
    """
    images = read_manifest(MANIFEST, reader=LABELS).select(split="unlabelled").images
    require_valid(reader=LABELS)
    parts = divide(images, size=config.pseudo_label.shard_images)
    weights = base_weights(config)
    model = load_base(weights, backbone=config.model.backbone).to(own_device(pick_device(config.device)))
    digest = weights_fingerprint(weights)
    share = open_share(WORK / fingerprint(_asked(config), config.model.backbone, digest))
    _label(parts, model, config, share=share, maps=_open_maps(config, model, weights))
    if process_rank()[0]:
        return OUT
    infos = [read_info(share.folder / name, kind=LABELS) for name in parts]
    summary = _summary(infos, config)
    _judge(summary, images=len(images), on_bad=config.pseudo_label.on_bad)
    about = {"backbone": config.model.backbone, "checkpoint": digest, "settings": _asked(config)}
    content = hashlib.sha256("".join(info.digest for info in infos).encode()).hexdigest()
    files = {shard_name(number): share.folder / name for number, name in enumerate(parts)}
    publish(files, OUT, summary={**about, "content": content, **summary}, shared=is_shared())
    return OUT


def divide(images: Sequence[ImageRecord], *, size: int) -> Parts:
    """Images to shards by content hash: the fewest powers of two of shards of at most `size` images on average.

    A shard's name in the work folder is the hash of its images, so that one already made is known again.
    """
    bits = max(0, (-(-len(images) // size) - 1).bit_length()) if images else -1
    groups = [list[ImageRecord]() for _ in range(1 << bits if images else 0)]
    for record in images:
        groups[bucket(record.sha256, bits=bits)].append(record)
    parts = dict[str, Sequence[ImageRecord]]()
    for number, group in enumerate(groups):
        names = [number, len(groups), [[record.image_id, record.sha256] for record in group]]
        parts[hashlib.sha256(json.dumps(names).encode()).hexdigest()[:24] + ".arrow"] = group
    return parts


def _asked(config: Config) -> dict[str, object]:
    """The settings that the labels of an image depend on, and how many images share a shard."""
    return {name: value for name, value in asdict(config.pseudo_label).items() if name != "on_bad"}


def _open_maps(config: Config, model: Segmenter, weights: Path) -> MapShards | None:
    """What is needed to make maps in the same pass; None when there is no refiner of these weights (yet)."""
    method = UNCERTAINTY.get(config.uncertainty.method)
    if method is None or config.uncertainty.method in OF_SAM_ALONE or not REFINER.is_file():
        return None
    origin, name = sha256_file(weights), config.uncertainty.method
    try:
        refiner = load_refiner(REFINER, base=model, origin=origin)
        other = load_other(REFINER.parent, method=name, base=model, origin=origin)
    except CheckpointError as error:
        log.info("pseudo_label: no uncertainty maps on the side: %s", error)
        return None
    maker = MapMaker(method, config.uncertainty.min_refine_area, refiner, other)
    asked, backbone = config.pseudo_label, config.model.backbone
    return MapShards(maker, open_share(maps_work(config.uncertainty, asked, backbone=backbone, weights=weights)))


def _label(parts: Parts, model: Segmenter, config: Config, *, share: Share, maps: MapShards | None) -> None:
    """Make every shard that is not there; what other processes make is waited for (open_shards)."""
    picked = {part.name: getattr(config.pseudo_label, part.name) for part in fields(GeneratorSettings)}
    settings = GeneratorSettings(**picked)
    batches, device = Batches.of(settings), model.task_prompt.device

    def is_done(name: str, path: Path) -> bool:
        return _is_done(path, parts[name])

    rest = unfinished(list(parts), share=share, is_done=is_done)
    log.info("pseudo_label: %d of %d shards are done in %s", len(parts) - len(rest), len(parts), share.folder)
    total = sum(len(parts[name]) for name in rest)
    with counting(title=LABELS, unit="images", total=total) as tick:
        for name in open_shards(rest, share=share, is_done=is_done):
            with ExitStack() as stack:
                path = share.folder / name
                shard = stack.enter_context(write_shard(path, kind=LABELS, side=model.low_side, shards=len(parts)))
                add_maps = stack.enter_context(maps.beside(shard, name=name)) if maps else None
                ahead = max(AHEAD, 2 * settings.images_per_batch)
                reading = read_ahead(parts[name], side=model.side, device=device, ahead=ahead)
                photos = stack.enter_context(closing(reading))
                for group in in_groups(_readable(photos, shard, tick), settings.images_per_batch):
                    found = _label_group(group, model, settings=settings, batches=batches)
                    for record, labelled in found:
                        if isinstance(labelled, str):
                            log.warning("pseudo_label: %s", labelled)
                            shard.skip(record.image_id, labelled)
                        else:
                            shard.add(record.image_id, label_rows(labelled.masks, labelled.codes))
                        tick()
                    if add_maps:
                        add_maps([_to_map(record, done) for record, done in found if isinstance(done, Labelled)])


def _label_group(
    group: Sequence[tuple[ImageRecord, Photo]], model: Segmenter, *, settings: GeneratorSettings, batches: Batches
) -> list[tuple[ImageRecord, Labelled | str]]:
    """Every image with its masks, or with why the memory does not suffice for it even alone."""
    records = [record for record, _ in group]
    try:
        ids = [record.image_id for record in records]
        found = label(model, [photo for _, photo in group], ids, settings=settings, batches=batches)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = f"{error}"
    else:
        return list(zip(records, found, strict=True))
    if len(group) > 1:  # which of them it is
        return [one for pair in group for one in _label_group([pair], model, settings=settings, batches=batches)]
    height, width = records[0].height, records[0].width
    return [(records[0], f"{records[0].path}: {height} x {width} px do not fit into the memory ({reason[:120]})")]


def _readable(
    photos: Iterable[tuple[ImageRecord, Read]], shard: ShardWriter, tick: Callable[[], None]
) -> Iterator[tuple[ImageRecord, Photo]]:
    """The photos that could be read; the others are told, and listed in the shard."""
    for record, photo in photos:
        if not isinstance(photo, Photo):
            log.warning("pseudo_label: %s", photo)
            shard.skip(record.image_id, str(photo))
            tick()
        else:
            yield record, photo


def _to_map(record: ImageRecord, found: Labelled) -> ToMap:
    hw = record.height, record.width
    return ToMap(record.image_id, hw, found.masks, found.codes, partial(_same, found.embedding))


def _same(embedding: Tensor) -> Tensor:
    return embedding


def _is_done(path: Path, images: Sequence[ImageRecord]) -> bool:
    """Whether a shard of an earlier run is whole, and what it could not read still cannot be read."""
    try:
        info = read_whole(path, kind=LABELS)
    except DataError as error:
        log.warning("%s Making the shard again.", error)
        return False
    return all(is_lost(record) for record in images if record.image_id in info.unreadable)


def _judge(summary: Mapping[str, Any], *, images: int, on_bad: str) -> None:
    """Raise DataError when no image could be read, or one could not and the policy is to fail."""
    unreadable = summary["unreadable"]
    if images and not summary["images"]:
        raise DataError(f"none of {images} unlabelled images can be read. The first: {next(iter(unreadable.values()))}")
    judge_lost(unreadable, on_bad=on_bad)


def _summary(infos: Sequence[ShardInfo], config: Config) -> dict[str, Any]:
    """What was found, the same for the same shards: counts, and how much the prompts yielded."""
    counts = [count for info in infos for count in info.counts.values()]
    unreadable = {image_id: why for info in infos for image_id, why in info.unreadable.items()}
    asked = config.pseudo_label
    views = [
        (4**layer, asked.points_per_side // asked.crop_n_points_downscale_factor**layer)
        for layer in range(asked.crop_n_layers + 1)
    ]
    prompts = len(counts) * sum(crops * side**2 for crops, side in views)
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
