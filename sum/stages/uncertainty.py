"""Stage uncertainty: for every pseudo-label a map of how far it can be trusted -> data/uncertainty, shard by shard.

Finished shards stay in work/uncertainty/FINGERPRINT under the digest of their labels: those that stage pseudo_label
made in passing are found there, and a killed run goes on after the last one, with the same bytes. `torchrun` shares the
work as in stage pseudo_label.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from sum.core.uncertainty import OF_SAM_ALONE, UNCERTAINTY
from sum.data.ahead import AHEAD, Photo, in_groups, read_ahead
from sum.data.labels import LabelStore
from sum.data.lost import is_lost, judge_lost
from sum.data.records import ImageRecord, read_manifest
from sum.data.shards import LABELS, SUMMARY, ShardInfo, publish, read_info, read_whole
from sum.data.shards import UNCERTAINTY as MAPS
from sum.errors import DataError, MissingInput, SumError, choose
from sum.labelling import embeddings_of
from sum.map_shards import MapShards, map_name
from sum.mapping import MapMaker, ToMap
from sum.models.checkpoint import load_base
from sum.models.halving import Halving
from sum.models.refiner import load_other, load_refiner
from sum.models.segmenter import Segmenter
from sum.models.sieve import Precision
from sum.progress import counting
from sum.settings import Config
from sum.shard_work import open_shards, own_device, process_rank, unfinished
from sum.shares import is_shared, open_share
from sum.stages.common import REFINER, base_weights, maps_work, pick_device
from sum.storage import sha256_file

MANIFEST = Path("data/manifest")
LABEL_FOLDER = Path("data/pseudo_labels")
OUT = Path("data/uncertainty")
log = logging.getLogger(__name__)


def run(config: Config) -> Path:
    """Write the uncertainty of every pseudo-label; returns the folder of the shards.

    Raises MissingInput before pseudo_label and refine, DataError when an image has gone since it was labelled.
    """
    name = config.uncertainty.method
    method = choose(UNCERTAINTY, name, key="uncertainty.method")
    images = {record.image_id: record for record in read_manifest(MANIFEST, reader=MAPS).images}
    store = LabelStore(LABEL_FOLDER, reader=MAPS)
    weights = base_weights(config)
    needed = {LABEL_FOLDER / SUMMARY: LABELS} | ({} if name in OF_SAM_ALONE else {REFINER: "refine"})
    for path, maker in needed.items():
        if not path.is_file():
            raise MissingInput(path, reader=MAPS, maker=maker)
    _require_known(store, images)
    asked, backbone = config.pseudo_label, config.model.backbone
    share = open_share(maps_work(config.uncertainty, asked, backbone=backbone, weights=weights))
    labels = {map_name(store.info(shard)): store.info(shard) for shard in store.shards}

    def is_done(file: str, path: Path) -> bool:
        return _is_done(path, labels[file], images)

    waiting = unfinished(list(labels), share=share, is_done=is_done)
    log.info("uncertainty: %d of %d shards are done in %s", len(labels) - len(waiting), len(labels), share.folder)
    if waiting:
        refines = name not in OF_SAM_ALONE
        encoder = _load(config, weights) if refines else None
        refiner = other = None
        if encoder:
            base, origin = encoder.model, sha256_file(weights)
            refiner = load_refiner(REFINER, base=base, origin=origin)
            other = load_other(REFINER.parent, method=name, base=base, origin=origin)
        shards = MapShards(MapMaker(method, config.uncertainty.min_refine_area, refiner, other), share)
        waited = {file: labels[file] for file in waiting}
        work = _Work(store=store, images=images, together=asked.images_per_batch, is_done=is_done)
        _map(waited, shards, encoder, work)
    if process_rank()[0]:
        return OUT
    files = {shard: share.folder / map_name(store.info(shard)) for shard in store.shards}
    infos = [read_info(path, kind=MAPS) for path in files.values()]
    lost = {image_id: why for info in infos for image_id, why in info.unreadable.items()}
    judge_lost(lost, on_bad=asked.on_bad)
    about = {"settings": asdict(config.uncertainty), "backbone": backbone, "photos_lost": lost}
    publish(files, OUT, summary={**about, **_summary(infos)}, shared=is_shared())
    return OUT


def _require_known(store: LabelStore, images: Mapping[str, ImageRecord]) -> None:
    """Raises DataError when a labelled image has left the manifest."""
    for image_id in store.image_ids:
        if image_id not in images:
            raise DataError(f"{LABEL_FOLDER}: image '{image_id}' is not in {MANIFEST}. Run `dvc repro {LABELS}`.")


@dataclass(frozen=True, slots=True)
class _Encoder:
    """SAM, and how stage pseudo_label encodes: the embeddings are to be the same."""

    model: Segmenter
    precision: Precision
    together: int  # images an encoder call
    batch: Halving


def _load(config: Config, weights: Path) -> _Encoder:
    model = load_base(weights, backbone=config.model.backbone).to(own_device(pick_device(config.device)))
    together = config.pseudo_label.images_per_batch
    return _Encoder(model, config.pseudo_label.precision, together, Halving(together, "images"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What maps are made of, how many images share the refiner's batches, and which shards are whole."""

    store: LabelStore
    images: Mapping[str, ImageRecord]
    together: int
    is_done: Callable[[str, Path], bool]


def _map(labels: Mapping[str, ShardInfo], shards: MapShards, encoder: _Encoder | None, work: _Work) -> None:
    """Make the maps of these shards of labels, by file name; what other processes make is waited for."""
    total = sum(len(info.images) for info in labels.values())
    with counting(title=MAPS, unit="images", total=total) as tick:
        for name in open_shards(list(labels), share=shards.share, is_done=work.is_done):
            records = [work.images[image_id] for image_id in labels[name].images]
            with (
                shards.write(labels[name]) as add,
                closing(_entries(records, shards.maker, encoder, work.store)) as entries,
            ):
                for group in in_groups(entries, work.together):
                    add(group)
                    for _ in group:
                        tick()


def _entries(
    records: Sequence[ImageRecord], maker: MapMaker, encoder: _Encoder | None, store: LabelStore
) -> Generator[ToMap]:
    """The images in their order; a photo that cannot be looked at any more is told."""

    def wants(record: ImageRecord) -> bool:
        return any(maker.large(store.areas(record.image_id), hw=(record.height, record.width)))

    asked = {record.image_id: record for record in records if encoder and wants(record)}
    with closing(_embeddings(list(asked.values()), encoder)) as embeddings:
        for record in records:
            name, hw = record.image_id, (record.height, record.width)
            found = next(embeddings) if name in asked else None
            lost = str(found) if isinstance(found, SumError) else ""
            if lost:
                log.warning("uncertainty: %s", lost)
            yield ToMap(name, hw, store.masks(name), store.sam(name), partial(_embedding, found), lost)


def _embedding(found: Tensor | SumError | None) -> Tensor:
    assert isinstance(found, Tensor)
    return found


def _embeddings(records: Sequence[ImageRecord], encoder: _Encoder | None) -> Generator[Tensor | SumError]:
    """Those of the images, in their order, as stage pseudo_label has them; or what is wrong with a photo."""
    if encoder is None:
        return
    model = encoder.model
    reading = read_ahead(
        records, side=model.side, device=model.task_prompt.device, ahead=max(AHEAD, 2 * encoder.together)
    )
    with closing(reading) as photos:
        for group in in_groups((photo for _, photo in photos), encoder.together):
            good = [photo for photo in group if isinstance(photo, Photo)]
            made = iter(embeddings_of(model, good, precision=encoder.precision, batch=encoder.batch))
            for photo in group:
                yield next(made) if isinstance(photo, Photo) else photo


def _is_done(path: Path, labels: ShardInfo, images: Mapping[str, ImageRecord]) -> bool:
    """Whether a shard of an earlier run is whole and about these labels, and lost photos are still lost."""
    try:
        info = read_whole(path, kind=MAPS)
    except DataError as error:
        log.warning("%s Making the shard again.", error)
        return False
    return info.source == labels.digest and all(is_lost(images[image_id]) for image_id in info.unreadable)


def _summary(infos: Sequence[ShardInfo]) -> dict[str, object]:
    """Counts, and the mean uncertainty over all maps; the same for the same shards."""
    maps = sum(info.totals.get("maps", 0) for info in infos)
    pixels = sum(info.totals.get("maps", 0) * info.side**2 for info in infos)
    codes = sum(info.totals.get("codes", 0) for info in infos)
    return {
        "shards": len(infos),
        "images": sum(len(info.images) for info in infos),
        "masks": sum(sum(info.counts.values()) for info in infos),
        "masks_with_map": maps,
        "mean_uncertainty": round(codes / (255 * pixels), 6) if pixels else None,
    }
