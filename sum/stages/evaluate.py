"""Stage evaluate: one model through the benchmark, a row a mask, round and output. A killed run resumes."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import torch

from sum.bench import play_image
from sum.core.figures import tracked_figures
from sum.data.records import ImageRecord, Manifest, MaskRecord, encode_mask, read_manifest
from sum.data.scores import (
    AVERAGES,
    MAP_SCHEMA,
    MAPS,
    PREDICTION_SCHEMA,
    PREDICTIONS,
    ROW_SCHEMA,
    ROWS,
    effort_estimates,
    estimates,
    join_tables,
    read_rows,
    write_table,
)
from sum.data.timings import TIME_SCHEMA, TIMES, summarise
from sum.errors import DataError, MissingInput
from sum.models import checkpoint
from sum.models.checkpoint import load_segmenter
from sum.models.doubts import doubts
from sum.models.interact import Answer, Protocol, choices
from sum.models.refiner import Refiner, load_refiner
from sum.models.segmenter import Segmenter
from sum.progress import track
from sum.registry import run_of_weights
from sum.settings import Config, EvaluateConfig
from sum.stages.common import base_weights, fingerprint, pick_device
from sum.storage import replace_file, replace_folder, write_json

MANIFEST = Path("data/manifest")
REFINER = Path("data/refiner/model.safetensors")
OUT = Path("data/evaluation")
TIMING = Path("data/timing")  # apart: no later stage waits for it, and every run measures another
WORK = Path("work/evaluate")
BASE = "base"
SHARD = 16  # images a shard: what a kill can cost
TABLES = {  # rows first: see `_finish_shard`
    ROWS: ROW_SCHEMA,
    PREDICTIONS: PREDICTION_SCHEMA,
    MAPS: MAP_SCHEMA,
    TIMES: TIME_SCHEMA,
}
Records = dict[str, list[dict[str, object]]]  # file name -> rows


def run(config: Config, *, model: str) -> Path:
    """Evaluate `model` (base or a budget) on every data set of split test; returns data/evaluation/MODEL.

    What the model took goes to data/timing/MODEL.json.

    Raises MissingInput, CheckpointError, DataError; TrackingError when MLflow does not take the figures written.
    """
    settings = config.evaluate
    protocol = _protocol(settings)
    benchmark = _benchmark()
    weights = _weights(config, model)
    device = pick_device(config.device)
    segmenter = load_segmenter(weights, backbone=config.model.backbone).to(device).eval()
    sha256 = checkpoint.fingerprint(weights)
    with_maps = model == BASE and REFINER.is_file()
    refiner = load_refiner(REFINER, base=segmenter, origin=sha256) if with_maps else None
    inputs = (model, sha256, benchmark.fingerprint, checkpoint.fingerprint(REFINER) if with_maps else None)
    work = WORK / fingerprint(protocol, sorted(settings.report_rounds), config.model.backbone, *inputs)
    bench = Bench(model, segmenter, refiner, protocol, frozenset(settings.report_rounds))
    shards = _play_all(bench, benchmark, work=work)
    with replace_folder(OUT / model) as folder:
        for name in (ROWS, PREDICTIONS, MAPS) if with_maps else (ROWS, PREDICTIONS):
            join_tables([shard / name for shard in shards], folder / name, TABLES[name])
        summary = _summary(folder, settings, seed=config.seed)
        write_json(folder / "summary.json", summary)
        facts = {"model": model, "weights_sha256": sha256, "benchmark": benchmark.fingerprint, "device": str(device)}
        write_json(folder / "protocol.json", {**facts, **_describe(config, protocol)})
    times = summarise([shard / TIMES for shard in shards])
    write_json(TIMING / f"{model}.json", {**_computer(device), **times})
    figures = tracked_figures(summary)
    figures["all"] |= {key: value for key, value in times.items() if "_ms_" in key}
    _log_to_mlflow(config, model, weights=weights, sha256=sha256, figures=figures, digest=benchmark.fingerprint)
    shutil.rmtree(work, ignore_errors=True)  # the same evaluation started twice: both write the same, one is first
    return OUT / model


@dataclass(frozen=True, slots=True)
class Bench:
    """A model on the bench, and what is kept of its answers."""

    name: str
    model: Segmenter
    refiner: Refiner | None  # for the uncertainty of the base's first answers
    protocol: Protocol
    keep: frozenset[int]  # rounds whose oracle predictions are stored

    def image(self, image: ImageRecord, masks: Sequence[MaskRecord]) -> Records:
        """All rows of one image, in the order of its masks."""
        played = play_image(self.model, image, masks, protocol=self.protocol)
        found: Records = {name: [] for name in TABLES}
        firsts: list[Answer] = []
        for answer in played.answers:
            mask = masks[answer.mask]
            found[ROWS].append(_row(self.name, mask, answer))
            if answer.output == "oracle" and answer.round in self.keep:
                place = {"mask_id": mask.mask_id, "round": answer.round, "output": answer.output}
                found[PREDICTIONS].append({**place, "rle": encode_mask(answer.prediction)})
            if answer.output == "oracle" and answer.round == 1:
                firsts.append(answer)
        if self.refiner is not None:
            codes = doubts(self.refiner, played.embedding, firsts, played.truths, step=self.protocol.batch_masks)
            found[MAPS] += [
                {"mask_id": mask.mask_id, "png": cv2.imencode(".png", code)[1].tobytes()}
                for mask, code in zip(masks, codes, strict=True)
            ]
        found[TIMES] += [lap._asdict() for lap in played.watch.laps]
        order = {mask.mask_id: number for number, mask in enumerate(masks)}
        for name in (ROWS, PREDICTIONS):
            found[name].sort(key=lambda row: (order[str(row["mask_id"])], row["round"], row["output"]))
        return found


def _row(model: str, mask: MaskRecord, answer: Answer) -> dict[str, object]:
    x, y, label = answer.click or (None, None, None)
    return {
        "model": model,
        "dataset": mask.dataset,
        "task": mask.task,
        "image_id": mask.image_id,
        "mask_id": mask.mask_id,
        "round": answer.round,
        "output": answer.output,
        "iou": answer.iou,
        "boundary_iou": answer.boundary_iou,
        "predicted_iou": answer.predicted_iou,
        "click_x": x,
        "click_y": y,
        "click_label": label,
    }


def _play_all(bench: Bench, benchmark: Manifest, *, work: Path) -> list[Path]:
    """The folders of all shards below `work`, in the order of the images; finished ones are not played again."""
    masks = benchmark.masks_of()
    images = [image for image in benchmark.images if masks[image.image_id]]
    shards = [images[start : start + SHARD] for start in range(0, len(images), SHARD)]
    folders = [work / f"{number:05d}" for number in range(len(shards))]
    todo = [number for number, folder in enumerate(folders) if not (folder / ROWS).is_file()]
    pending = ((number, image) for number in todo for image in shards[number])
    done = len(images) - sum(len(shards[number]) for number in todo)
    found: Records = {name: [] for name in TABLES}
    left = {number: len(shards[number]) for number in todo}
    for number, image in track(pending, title=f"evaluate {bench.name}", unit="images", total=len(images) - done):
        for name, rows in bench.image(image, masks[image.image_id]).items():
            found[name] += rows
        left[number] -= 1
        if not left[number]:
            _finish_shard(folders[number], found)
            found = {name: [] for name in TABLES}
    return folders


def _finish_shard(folder: Path, found: Records) -> None:
    """Write a shard's tables; rows last, because their presence says that the shard is whole."""
    for name in reversed(TABLES):
        with replace_file(folder / name) as partial:
            write_table(partial, found[name], TABLES[name])


def _protocol(settings: EvaluateConfig) -> Protocol:
    return Protocol(
        rounds=settings.rounds,
        first_prompt=settings.first_prompt,
        boundary_ratio=settings.boundary_ratio,
        batch_masks=settings.batch_masks,
        prompt_seed=settings.prompt_seed,
    )


def _benchmark() -> Manifest:
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


def _summary(folder: Path, settings: EvaluateConfig, *, seed: int) -> dict[str, Any]:
    """scope -> name -> metric@round -> mean, low, high, oracle output; and how much was evaluated.

    IoUs in 0..1; noc@LEVEL is a number of rounds, nof@LEVEL has a count of masks in place of a mean.
    """
    rows = read_rows(folder, reader="evaluate")
    table = estimates(rows, rounds=sorted(settings.report_rounds), resamples=settings.resamples, seed=seed)
    found: dict[str, Any] = {"masks": int(rows["mask_id"].nunique()), "images": int(rows["image_id"].nunique())}
    clicks = effort_estimates(rows, resamples=settings.resamples, seed=seed)
    for row in [*table.to_dict("records"), *clicks.to_dict("records")]:
        place = found.setdefault(row["scope"], {})
        place = place if row["scope"] == "overall" else place.setdefault(row["name"], {})
        values = {key: round(row[key], 6) for key in ("mean", "low", "high")}
        if row["metric"] == "nof":
            values = {"count": round(values.pop("mean")), **values}
        place[f"{row['metric']}@{row['round']}"] = values
    return found


def _describe(config: Config, protocol: Protocol) -> dict[str, object]:
    """Every choice that a number depends on, in words and numbers."""
    settings = config.evaluate
    packages = ("torch", "segment-anything", "opencv-python-headless", "numpy")
    return {
        **asdict(protocol),
        "backbone": config.model.backbone,
        "report_rounds": sorted(settings.report_rounds),
        "resamples": settings.resamples,
        "choices": {**choices(protocol), **AVERAGES},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }


def _computer(device: torch.device) -> dict[str, str | int]:
    """What the times are of."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads()}


def _log_to_mlflow(
    config: Config,
    model: str,
    *,
    weights: Path,
    sha256: str,
    figures: Mapping[str, Mapping[str, float]],
    digest: str,
) -> None:
    """Put the figures on the logged model of these weights, the benchmark as its data set."""
    settings = config.tracking
    logged = run_of_weights(
        weights,
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
