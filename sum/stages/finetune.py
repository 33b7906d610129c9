"""Fine-tune the base model for one budget (paper sections 3.2 and 4, Appendix B.1).

The methods of the paper's comparison are sets of options of this one path: sum/methods.py.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from sum import tracking
from sum.accumulation import train_in_parts
from sum.config import Config
from sum.data.augment import augmented
from sum.data.batches import ImageSource, Mixture, TrainBatch
from sum.data.labels import LabelStore
from sum.data.records import Manifest, read_manifest
from sum.data.samples import HumanImages, PseudoImages
from sum.data.verdicts import require_valid
from sum.engine import Loop, Row
from sum.errors import DataError, choose
from sum.licences import summarise
from sum.methods import METHODS, MethodOptions, doubt_of
from sum.models.checkpoint import describe, load_segmenter, save_segmenter
from sum.models.checkpoint import fingerprint as file_fingerprint
from sum.models.groups import group_table
from sum.models.parts import Lora, merge_adapters, select_parts
from sum.models.segmenter import TASKS, Segmenter
from sum.provenance import peak_memory
from sum.settings import BudgetConfig
from sum.stages.common import base_weights, fingerprint, folders_fingerprint, loop_options, round_options
from sum.storage import replace_folder, write_json
from sum.validation import Enough, Watch, hold_out

log = logging.getLogger(__name__)

CHECKED = Path("data/checks/labels.json")
MANIFEST, LABELS, MAPS, MODELS = (
    Path("data") / name for name in ("manifest", "pseudo_labels", "uncertainty", "models")
)


def run(config: Config, *, budget: str) -> Path:
    """Train data/models/BUDGET; a run that was killed goes on from work/finetune. Returns that folder.

    Raises MissingInput before the stages that it needs, ValidationFailed when stage check_labels refused the labels.
    """
    entry = choose(config.budgets, budget, key="budgets")
    method = choose(METHODS, config.finetune.method, key="finetune.method")
    manifest = read_manifest(MANIFEST, reader="finetune")
    stop = config.finetune.early_stop
    human, held = hold_out(manifest.select(datasets=entry.human), share=stop.held_out if stop.patience else 0.0)
    if method.pseudo_labels:
        require_valid(CHECKED, reader="finetune", maker="check_labels")
    doubt = doubt_of(method, name=config.finetune.method, maps=MAPS)
    base = base_weights(config)
    model = load_segmenter(base, backbone=config.model.backbone)
    facts = {
        "budget": budget,
        "method": config.finetune.method,
        "base": file_fingerprint(base),
        "data": manifest.select(datasets={*entry.human, *entry.unlabelled}).fingerprint,
        "labels": folders_fingerprint(*label_folders(method)) if method.pseudo_labels else "none",
        "doubt": doubt,
    }
    work = Path("work/finetune") / f"{budget}-{fingerprint(config.finetune, entry, config.seed, config.model, facts)}"
    unlabelled = manifest.select(datasets=entry.unlabelled)
    sources = image_sources(config, entry, method=method, images=(human, unlabelled), model=model)
    watch = Watch(held, patience=stop.patience, folder=work) if stop.patience else None
    choose_parts(config, model, method=method)
    loop = Loop(model, options=loop_options(config.finetune.optim, config), folder=work)
    if loop.rank == 0:
        log.info("%s trains:\n%s", budget, "\n".join(group_table(loop.optimizer.param_groups)))
    record = start_record(config, facts=facts, work=work) if loop.rank == 0 else None
    began = time.perf_counter()
    with record or nullcontext():
        train(config, loop, sources, entry=entry, method=method, on_rows=log_rows(record), watch=watch)
        if record is not None:
            seconds = time.perf_counter() - began
            publish(config, loop, budget=budget, facts=facts, record=record, seconds=seconds, watch=watch)
    return MODELS / budget


def image_sources(
    config: Config, entry: BudgetConfig, *, method: MethodOptions, images: tuple[Manifest, Manifest], model: Segmenter
) -> list[ImageSource]:
    """The human images and, unless the method does without, the pseudo-labelled ones; images: of both kinds."""
    side, loss_side = model.side, config.finetune.rounds.loss_side or model.side
    human = HumanImages(images[0], side=side, loss_side=loss_side, tasks=TASKS)
    if not len(human):
        raise DataError(f"budgets: {', '.join(entry.human)} hold no image with a human mask. See `dvc repro ingest`.")
    if not method.pseudo_labels:
        return [human]
    pseudo = PseudoImages(
        images[1],
        LabelStore(*label_folders(method), reader="finetune"),
        side=side,
        loss_side=loss_side,
        labels=method.labels,
        doubt=method.doubt,
    )
    if not len(pseudo):
        raise DataError(
            f"{LABELS}: no pseudo-label for any image of {', '.join(entry.unlabelled)}. "
            "Lower pseudo_label.pred_iou_thresh or stability_thresh, or use finetune.method=human_only."
        )
    log.info(
        "%d images with human masks, %d with pseudo-labels (%d without any)", len(human), len(pseudo), pseudo.empty
    )
    return [human, pseudo]


def choose_parts(config: Config, model: Segmenter, *, method: MethodOptions) -> None:
    """Freeze what `finetune.train` and `finetune.lora` leave out, and task vectors that the method never adds.

    And whatever else decides how the model trains; `python -m sum plan` makes its model here too.
    """
    model.recompute_encoder = config.finetune.recompute_encoder
    lora = Lora(**asdict(config.finetune.lora))
    select_parts(
        model, train=config.finetune.train, lora=lora, task_prompt=method.task_prompt != "off", seed=config.seed
    )


def label_folders(method: MethodOptions) -> list[Path]:
    """The folders that a method with pseudo-labels reads."""
    return [LABELS, MAPS] if method.reads_maps else [LABELS]


def train(
    config: Config,
    loop: Loop,
    sources: list[ImageSource],
    *,
    entry: BudgetConfig,
    method: MethodOptions,
    on_rows: Callable[[Sequence[Row]], None],
    watch: Watch | None = None,
) -> None:
    """Bring the loop to its last step, or to the checkpoint at which `watch` has seen enough."""
    optim, change = config.finetune.optim, config.finetune.augment
    shares = [entry.human_per_unlabelled, 1][: len(sources)]
    changed = augmented(sources, flip=change.flip, scale=(change.scale[0], change.scale[1]))
    mixture = Mixture(
        changed, shares, optim.images_per_batch, optim.masks_per_image, config.seed, loop.rank, loop.ranks
    )
    rounds = round_options(
        config.finetune.rounds,
        task_prompt=method.task_prompt,
        weigh_points=method.weigh_points,
        weigh_loss=method.weigh_loss,
    )

    def batches(start: int) -> Iterator[TrainBatch]:
        return mixture.batches(start=start, stop=optim.steps, workers=optim.workers)

    def step(state: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        assert isinstance(state.model, Segmenter)
        return train_in_parts(
            state.model,
            batch,
            parts=config.finetune.accumulate,
            rounds=rounds,
            generator=generator,
            backward=state.backward,
            autocast=state.autocast,
            chunk=state.chunk,
        )

    def told(rows: Sequence[Row]) -> None:
        on_rows(rows)
        if watch is not None:
            watch.look(loop)

    with suppress(Enough):
        loop.run(batches, step, title="finetune", on_rows=told)


def start_record(config: Config, *, facts: dict[str, str], work: Path) -> tracking.Run:
    """The MLflow run of this training: the one begun before a kill, or a new one."""
    note = work / "mlflow.json"
    if note.is_file():
        found = tracking.resume_run(config.tracking.uri, json.loads(note.read_text())["run_id"])
        if found is not None:
            return found
        log.warning("the MLflow run of %s is gone: its metrics go to a new run", note)
    licences = {name: config.datasets[name].licence for name in used_sets(config, facts["budget"])}
    skipped = skipped_items(licences)
    record = tracking.start_run(
        uri=config.tracking.uri,
        experiment=config.tracking.experiment,
        name=f"ft-{facts['budget']}",
        params=asdict(config) | facts,
        tags={
            **facts,
            "licences": "; ".join(sorted({*licences.values()})),
            "licence_terms": summarise(licences),
            "skipped": "; ".join(f"{name}: {count}" for name, count in skipped.items() if count) or "none",
        },
    )
    record.log_metrics({"skipped": sum(skipped.values())}, step=0)
    write_json(note, {"run_id": record.id})
    return record


def used_sets(config: Config, budget: str) -> list[str]:
    """Names of the data sets of a budget."""
    entry = config.budgets[budget]
    return [*entry.human, *entry.unlabelled]


def skipped_items(names: Iterable[str]) -> dict[str, int]:
    """Data set -> files and annotations that stage ingest could not use."""
    path = MANIFEST / "summary.json"
    found = json.loads(path.read_text(encoding="utf-8"))["datasets"] if path.is_file() else {}
    return {name: int(found.get(name, {}).get("skipped", 0)) for name in names}


def log_rows(record: tracking.Run | None) -> Callable[[Sequence[Row]], None]:
    """Where rows of the history go: to MLflow at once, from the first process only."""

    def send(rows: Sequence[Row]) -> None:
        if record is None:
            return
        for row in rows:
            record.log_metrics({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))
        record.offer()

    return send


def publish(
    config: Config,
    loop: Loop,
    *,
    budget: str,
    facts: dict[str, str],
    record: tracking.Run,
    seconds: float,
    watch: Watch | None = None,
) -> None:
    """Write data/models/BUDGET whole: weights, history, summary, and where MLflow has them."""
    model = loop.finish()
    assert isinstance(model, Segmenter)
    history = pd.DataFrame(loop.history)
    about = {**facts, "steps": str(loop.step), "seed": str(config.seed)}
    skipped = int(history["skipped"].sum())
    summary = {
        **facts,
        "steps": loop.step,
        "steps_skipped": skipped,
        "trained": sum_parameters(model),
        "final": tail_means(history),
    }
    if watch is not None:
        watch.take_best(model)
        summary["early_stop"] = {"best_step": watch.best, "held_out_iou": round(watch.figures[watch.best], 6)}
        for step, figure in watch.figures.items():
            record.log_metrics({"held_out_iou": figure}, step=step)
    merge_adapters(model)
    cost = {
        "seconds_this_session": seconds,
        "seconds": float(history["seconds"].sum()),
        "peak_memory_mb": peak_memory(),
    }
    with replace_folder(MODELS / budget) as folder:
        weights = folder / "model.safetensors"
        digest = save_segmenter(weights, model, about=about)
        history.drop(columns="seconds").to_csv(folder / "history.csv", index=False)
        write_json(folder / "summary.json", summary)
        entry = config.budgets[budget]
        origin = {**about, "human": entry.human, "unlabelled": entry.unlabelled}
        write_json(folder / tracking.CARD, describe(weights.name, model, fingerprint=digest, about=origin))
        record.log_metrics(cost, step=loop.step)
        for name in ("history.csv", "summary.json"):
            record.log_file(folder / name)
        model_id = record.log_model(
            weights, name=f"ft-{budget}", fingerprint=digest, params=about, tags={"budget": budget}
        )
        write_json(folder / "run.json", {"run_id": record.id, "model_id": model_id, "fingerprint": digest, **cost})


def tail_means(history: pd.DataFrame, *, rows: int = 20) -> dict[str, float]:
    """Means of the last steps of what was logged: deterministic, so DVC can compare them."""
    last = history.tail(rows).drop(columns=["step", "seconds", "lr"])
    return {str(name): round(float(value), 6) for name, value in last.mean().items()}


def sum_parameters(model: Segmenter) -> int:
    """How many numbers were trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
