"""Stage evaluate: one model through the benchmark, a row a mask, game, round and output. A killed run resumes.

Processes and machines share the images as in pseudo_label: torchrun, SUM_PROCESSES, SUM_SHARE (docs/labelling.md).
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sum.core.figures import tracked_figures
from sum.data.records import ImageRecord, Manifest, MaskRecord, read_manifest
from sum.data.score_shards import is_whole, read_shards, write_shard
from sum.data.score_tables import (
    EVERYTHING_SCHEMA,
    FIDELITY,
    FIDELITY_SCHEMA,
    GENERATED,
    MAP_SCHEMA,
    MAPS,
    PREDICTION_SCHEMA,
    PREDICTIONS,
    ROW_SCHEMA,
    ROWS,
    games_of,
    join_tables,
)
from sum.data.scores import AVERAGES
from sum.data.summaries import write_summaries
from sum.data.timings import TIME_SCHEMA, TIMES, time_figures
from sum.errors import DataError, MissingInput
from sum.evaluation import Bench
from sum.models import checkpoint
from sum.models.checkpoint import load_segmenter
from sum.models.interact import Protocol
from sum.models.refiner import load_refiner
from sum.models.segmenter import Segmenter
from sum.models.sieve import GeneratorSettings
from sum.progress import counting
from sum.registry import run_of_weights
from sum.settings import Config
from sum.shard_work import open_shards, own_device, process_rank, unfinished
from sum.shares import Share, open_share
from sum.stages.common import base_weights, code_hash, fingerprint, pick_device
from sum.storage import replace_folder, write_json
from sum.suite import Suite

log = logging.getLogger(__name__)
MANIFEST = Path("data/manifest")
REFINER = Path("data/refiner/model.safetensors")
OUT = Path("data/evaluation")
TIMING = Path("data/timing")  # apart: no later stage waits for it, and every run measures another
WORK = Path("work/evaluate")
BASE = "base"
SHARD = 16  # images a shard: what a kill can cost
TABLES = {
    ROWS: ROW_SCHEMA,
    PREDICTIONS: PREDICTION_SCHEMA,
    MAPS: MAP_SCHEMA,
    FIDELITY: FIDELITY_SCHEMA,
    GENERATED: EVERYTHING_SCHEMA,
    TIMES: TIME_SCHEMA,
}
Parts = Mapping[str, Sequence[ImageRecord]]  # shard name -> its images


def run(config: Config, *, model: str) -> Path:
    """Evaluate `model` (base or a budget) on every data set of split test; returns data/evaluation/MODEL.

    What the model took goes to data/timing/MODEL.json.

    Raises MissingInput, CheckpointError, DataError; TrackingError when MLflow does not take the figures written.
    """
    refiner = REFINER if model == BASE and REFINER.is_file() else None
    subject = Subject(model, _weights(config, model), config.model.backbone, refiner)
    benchmark = read_benchmark()
    done = examine(config, subject, benchmark, out=OUT / model)
    if done is None:
        return OUT / model
    write_json(TIMING / f"{model}.json", done.times)
    figures = tracked_figures(done.summary)
    figures["all"] |= {key: value for key, value in done.times.items() if "_ms_" in key}
    _log_to_mlflow(config, subject, sha256=done.sha256, figures=figures, digest=benchmark.fingerprint)
    return OUT / model


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose answers are looked at."""

    name: str
    weights: Path
    backbone: str
    refiner: Path | None = None  # for the uncertainty of its first answers
    loader: Callable[[], Segmenter] | None = None  # of weights that are no whole model

    def load(self) -> Segmenter:
        """The model, on the CPU. Raises CheckpointError."""
        return self.loader() if self.loader else load_segmenter(self.weights, backbone=self.backbone)


@dataclass(frozen=True, slots=True)
class Examined:
    """What came of it. Its shards stay in work/evaluate: other processes may still look for them."""

    sha256: str  # of the weights
    summary: dict[str, Any]
    times: dict[str, Any]


def examine(config: Config, subject: Subject, benchmark: Manifest, *, out: Path) -> Examined | None:
    """Put a model through the suite and write the folder `out`; None in a process that only helps to.

    Raises CheckpointError, DataError.
    """
    settings, suite = config.evaluate, suite_of(config)
    device = own_device(pick_device(config.device))
    segmenter = subject.load().to(device).eval()
    protocol = protocol_of(config, subject, benchmark)
    origin = str(protocol["weights_sha256"])
    refiner = load_refiner(subject.refiner, base=segmenter, origin=origin) if subject.refiner else None
    share = open_share(
        WORK / fingerprint(protocol, checkpoint.fingerprint(subject.refiner) if subject.refiner else None)
    )
    bench = Bench(subject.name, segmenter, suite, keep=settings.report_rounds, refiner=refiner)
    parts = _divide(benchmark)
    _play(bench, parts, benchmark.masks_of(), share=share, workers=settings.workers)
    if process_rank()[0]:
        return None
    shards = [share.folder / name for name in parts]
    absent = {MAPS: refiner is None, FIDELITY: not suite.fidelity, GENERATED: suite.everything is None, TIMES: True}
    with replace_folder(out) as folder:
        for name in (name for name in TABLES if not absent.get(name)):
            join_tables(read_shards(shards, name, TABLES[name]), folder / name, TABLES[name])
        write_json(folder / "protocol.json", protocol)
        rounds, draws = sorted(settings.report_rounds), {"resamples": settings.resamples, "seed": config.seed}
        summary = write_summaries(folder, games=games_of(protocol), rounds=rounds, **draws)
    times = time_figures(read_shards(shards, TIMES, TIME_SCHEMA))
    return Examined(origin, summary, {**_computer(device), "workers": settings.workers, **times})


def protocol_of(config: Config, subject: Subject, benchmark: Manifest) -> dict[str, object]:
    """Every choice that a number depends on, in words and numbers: protocol.json."""
    settings, told = config.evaluate, suite_of(config).describe()
    packages = ("torch", "segment-anything", "opencv-python-headless", "numpy")
    return {
        "model": subject.name,
        "weights_sha256": checkpoint.fingerprint(subject.weights),
        "backbone": subject.backbone,
        "benchmark": benchmark.fingerprint,
        **told,
        "report_rounds": sorted(settings.report_rounds),
        "resamples": settings.resamples,
        "seed": config.seed,  # of the bootstrap
        "code": code_hash(),  # of this project
        "choices": {**told["choices"], **AVERAGES},  # type: ignore[dict-item]
        "device": pick_device(config.device).type,
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),  # what models are built in
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def suite_of(config: Config) -> Suite:
    """What params.yaml asks of every model."""
    settings = config.evaluate
    picked = {part.name: getattr(config.pseudo_label, part.name) for part in fields(GeneratorSettings)}
    protocol = Protocol(
        rounds=settings.rounds,
        first_prompt=settings.prompts[0],
        boundary_ratio=settings.boundary_ratio,
        batch_masks=settings.batch_masks,
        prompt_seed=settings.prompt_seed,
    )
    return Suite(
        protocol,
        others=tuple(settings.prompts[1:]),
        unspecified=settings.unspecified,
        everything=GeneratorSettings(**picked) if settings.everything else None,
        fidelity=settings.fidelity,
    )


def _divide(benchmark: Manifest) -> dict[str, list[ImageRecord]]:
    """The images that have masks, in their order, as shards."""
    masks = benchmark.masks_of()
    images = [image for image in benchmark.images if masks[image.image_id]]
    starts = range(0, len(images), SHARD)
    return {f"{number:05d}.zip": images[start : start + SHARD] for number, start in enumerate(starts)}


def _play(bench: Bench, parts: Parts, masks: Mapping[str, Sequence[MaskRecord]], *, share: Share, workers: int) -> None:
    """Make every shard that is not there; what other processes make is waited for (open_shards)."""

    def is_done(_: str, path: Path) -> bool:
        return is_whole(path, TABLES)

    rest = unfinished(list(parts), share=share, is_done=is_done)
    if len(rest) < len(parts):
        log.info("evaluate: %d of %d shards are done in %s", len(parts) - len(rest), len(parts), share.folder)
    total = sum(len(parts[name]) for name in rest)
    with counting(title=f"evaluate {bench.name}", unit="images", total=total) as tick:
        for name in open_shards(rest, share=share, is_done=is_done):
            found = {table: list[dict[str, object]]() for table in TABLES}
            pairs = [(image, masks[image.image_id]) for image in parts[name]]
            for records in bench.images(pairs, workers=workers):
                for table, rows in records.items():
                    found[table] += rows
                tick()
            write_shard(share.folder / name, found, TABLES)


def read_benchmark() -> Manifest:
    """What is evaluated on: split test. Raises MissingInput, and DataError without a mask or with an empty one."""
    benchmark = read_manifest(MANIFEST, reader="evaluate").select(split="test")
    if not benchmark.masks:
        raise DataError(
            f"{MANIFEST} has no mask of split 'test': there is nothing to evaluate on. Add a data set with "
            "`split: test` to `datasets` in params.yaml and run `dvc repro ingest`."
        )
    empty = [mask.mask_id for mask in benchmark.masks if not mask.area]
    if empty:
        raise DataError(
            f"{len(empty)} test masks are empty, such as {empty[0]}. Run `dvc repro validate` for all of them."
        )
    return benchmark


def _weights(config: Config, model: str) -> Path:
    """The local weights file of `model`."""
    if model == BASE:
        return base_weights(config)
    path = Path("data/models") / model / "model.safetensors"
    if not path.is_file():
        raise MissingInput(path, reader=f"evaluate@{model}", maker=f"finetune@{model}")
    return path


def _computer(device: torch.device) -> dict[str, str | int]:
    """What the times are of."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads()}


def _log_to_mlflow(
    config: Config, subject: Subject, *, sha256: str, figures: Mapping[str, Mapping[str, float]], digest: str
) -> None:
    """Put the figures on the logged model of these weights, the benchmark as its data set."""
    settings, model = config.tracking, subject.name
    logged = run_of_weights(
        subject.weights,
        uri=settings.uri,
        experiment=settings.experiment,
        name=f"{settings.model}-base" if model == BASE else f"{settings.model}-ft-{model}",
        fingerprint=sha256,
        run_id=_run_id(model),
    )
    logged.log_evaluation(figures, digest=digest)


def _run_id(model: str) -> str | None:
    """The MLflow run that finetune wrote down; none for the base."""
    note = Path("data/models") / model / "run.json"
    return str(json.loads(note.read_text())["run_id"]) if model != BASE and note.is_file() else None
