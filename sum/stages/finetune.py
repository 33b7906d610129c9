"""Fine-tune the base model for one budget (paper sections 3.2 and 4, Appendix B.1).

The methods of the paper's comparison are sets of options of this one path: sum/methods.py.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from sum import tracking
from sum.accumulation import train_in_parts
from sum.alone import alone
from sum.config import Config
from sum.data.augment import augmented
from sum.data.batches import ImageSource, Mixture, TrainBatch
from sum.data.labels import LabelStore
from sum.data.records import Manifest, read_manifest
from sum.data.samples import HumanImages, PseudoImages
from sum.data.verdicts import require_valid
from sum.engine import MACHINE, Loop, Row
from sum.errors import DataError, choose
from sum.methods import METHODS, MethodOptions, doubt_of
from sum.models.checkpoint import describe, load_base
from sum.models.checkpoint import fingerprint as file_fingerprint
from sum.models.deltas import WEIGHTS, save_both
from sum.models.groups import group_table, rate_curves
from sum.models.parts import select_parts
from sum.models.segmenter import TASKS, Segmenter
from sum.provenance import peak_memory
from sum.run_page import circumstances, home_of
from sum.semi_supervised import rounds_of, sources_of
from sum.settings import BudgetConfig
from sum.stages.common import (
    arch_of,
    base_weights,
    code_hash,
    file_hashes,
    files_fingerprint,
    fingerprint,
    loop_options,
    round_options,
    unused_options,
)
from sum.storage import replace_folder, write_json
from sum.training_record import begin, log_rows, skipped_items, tell_replaced
from sum.validation import Enough, Watch, hold_out

log = logging.getLogger(__name__)

CHECKED = Path("data/checks/labels.json")
MANIFEST, LABELS, MAPS = (Path("data") / name for name in ("manifest", "pseudo_labels", "uncertainty"))


def run(config: Config, *, budget: str, reproduces: str | None = None) -> Path:
    """Train data/models/BUDGET; a run that was killed goes on from work/finetune. Returns that folder.

    reproduces: the MLflow run that is trained again, all below work/reproduce/ID (see `home_of`). Raises MissingInput
    before the stages that it needs, ValidationFailed when stage check_labels refused the labels, InUse while the same
    training runs elsewhere.
    """
    entry = choose(config.budgets, budget, key="budgets")
    method = choose(METHODS, config.finetune.method, key="finetune.method")
    manifest = read_manifest(MANIFEST, reader="finetune")
    stop = config.finetune.early_stop
    human, held = hold_out(manifest.select(datasets=entry.human), share=stop.held_out if stop.patience else 0.0)
    if method.pseudo_labels:
        require_valid(CHECKED, reader="finetune", maker="check_labels")
    files = label_files(method)
    facts = facts_of(config, budget=budget, manifest=manifest, files=files)
    model = load_base(base_weights(config), backbone=config.model.backbone)
    name = f"{budget}-{fingerprint(config.finetune.of_weights(), entry, config.seed, config.model, facts)}"
    work = home_of(reproduces).work / name
    unlabelled = manifest.select(datasets=entry.unlabelled)
    sources = image_sources(config, entry, method=method, images=(human, unlabelled), model=model)
    model = choose_parts(config, model, method=method)
    loop = Loop(model, options=loop_options(config.finetune.optim, config), folder=work)
    if loop.rank == 0:
        log.info("%s trains:\n%s", budget, "\n".join(group_table(loop.optimizer.param_groups)))
    with alone(loop):
        watch = Watch(held, patience=stop.patience, folder=work) if stop.patience else None
        record = start_record(config, loop, facts=facts, files=files, reproduces=reproduces) if loop.rank == 0 else None
        if record is not None:
            log.info("MLflow run %s", record.id)
        rates = rate_curves(loop.optimizer.param_groups)
        on_rows = log_rows(record, images=config.finetune.optim.images_per_batch, rates=rates)
        began = time.perf_counter()
        with record or nullcontext():
            train(config, loop, sources, entry=entry, method=method, on_rows=on_rows, watch=watch)
            if record is not None:
                seconds = time.perf_counter() - began
                publish(config, loop, facts=facts, record=record, seconds=seconds, watch=watch, reproduces=reproduces)
    return home_of(reproduces).models / budget


def label_files(method: MethodOptions) -> dict[str, str]:
    """Path -> sha256 of the labels and maps that a method reads."""
    return file_hashes(*label_folders(method)) if method.pseudo_labels else {}


def facts_of(config: Config, *, budget: str, manifest: Manifest, files: Mapping[str, str]) -> dict[str, str]:
    """What a training reads, by fingerprint. files: of `label_files`. Raises as `doubt_of`; CheckpointError without
    base weights.
    """
    entry, name = config.budgets[budget], config.finetune.method
    return {
        "budget": budget,
        "method": name,
        "base": file_fingerprint(base_weights(config)),
        "data": manifest.select(datasets={*entry.human, *entry.unlabelled}).fingerprint,
        "labels": files_fingerprint(files) if METHODS[name].pseudo_labels else "none",
        "doubt": doubt_of(METHODS[name], name=name, maps=MAPS),
    }


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


def choose_parts(config: Config, model: Segmenter, *, method: MethodOptions) -> Segmenter:
    """The model that trains: what `finetune.arch` leaves out is frozen, and task vectors that the method never adds.

    And whatever else decides how the model trains; `python -m sum plan` makes its model here too.
    """
    for name in unused_options(config.finetune):
        log.warning("finetune.%s has no effect: finetune.arch is '%s'", name, config.finetune.arch)
    tasks = method.task_prompt != "off"
    found = select_parts(model, spec=arch_of(config.finetune), task_prompt=tasks, seed=config.seed)
    found.recompute_encoder = config.finetune.recompute_encoder
    return found


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
    changed = sources_of(method, augmented(sources, flip=change.flip, scale=(change.scale[0], change.scale[1])))
    mixture = Mixture(
        changed, shares, optim.images_per_batch, optim.masks_per_image, config.seed, loop.rank, loop.ranks
    )
    options = round_options(config.finetune.rounds, task_prompt=method.task_prompt, arch=config.finetune.arch)
    rounds = rounds_of(method, options, loop)

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

    def look() -> None:
        if watch is not None:
            watch.look(loop)

    with suppress(Enough):
        loop.run(batches, step, title="finetune", on_rows=on_rows, on_checkpoint=look)


def start_record(
    config: Config, loop: Loop, *, facts: Mapping[str, str], files: Mapping[str, str], reproduces: str | None
) -> tracking.Run:
    """The MLflow run of this training; files: path -> sha256 of labels and maps."""
    entry, precision = config.budgets[facts["budget"]], config.finetune.optim.precision
    return begin(
        loop.folder / "mlflow.json",
        params=asdict(config),
        facts=facts,
        files=files,
        licences={name: config.datasets[name].licence for name in (*entry.human, *entry.unlabelled)},
        skipped=skipped_items(MANIFEST),
        machine=circumstances(
            code=code_hash(), device=loop.accelerator.device, processes=loop.ranks, precision=precision
        ),
        reproduces=reproduces,
    )


def publish(
    config: Config,
    loop: Loop,
    *,
    facts: dict[str, str],
    record: tracking.Run,
    seconds: float,
    watch: Watch | None = None,
    reproduces: str | None = None,
) -> None:
    """Write data/models/BUDGET whole: weights, history, summary, and where MLflow has them.

    The weights of a run that reproduces another are compared with the other's, they are no logged model of their own.
    """
    model, budget = loop.finish(), facts["budget"]
    assert isinstance(model, Segmenter)
    history = pd.DataFrame(loop.history)
    about = {**facts, "steps": str(loop.step), "seed": str(config.seed)}
    summary = {
        **facts,
        "steps": loop.step,
        "steps_skipped": int(history["skipped"].sum()),
        "trained": sum_parameters(model),
        "final": tail_means(history),
    }
    if watch is not None:
        watch.take_best(model)
        summary["early_stop"] = {"best_step": watch.best, "held_out_iou": round(watch.figures[watch.best], 6)}
        for step, figure in watch.figures.items():
            record.log_metrics({"held_out_iou": figure}, step=step)
    total = float(history["seconds"].sum())
    cost = {"seconds_this_session": seconds, "seconds": total, "peak_memory_mb": peak_memory()}
    out = home_of(reproduces).models / budget
    tell_replaced(out, by=record.id)
    with replace_folder(out) as folder:
        weights = folder / WEIGHTS
        digest = save_both(folder, model, base=facts["base"], about=about)
        history.drop(columns=list(MACHINE), errors="ignore").to_csv(folder / "history.csv", index=False)
        write_json(folder / "summary.json", summary)
        entry = config.budgets[budget]
        origin = {**about, "human": entry.human, "unlabelled": entry.unlabelled}
        write_json(folder / tracking.CARD, describe(weights.name, model, fingerprint=digest, about=origin))
        record.log_metrics({"total_seconds": total}, step=loop.step)
        for name in ("history.csv", "summary.json"):
            record.log_file(folder / name)
        if reproduces is None:
            tags = {"budget": budget}
            record.log_model(weights, name=f"ft-{budget}", fingerprint=digest, params=about, tags=tags)
        note = {"run_id": record.id, "model_id": record.model_id, "fingerprint": digest}
        write_json(folder / "run.json", note | cost)


def tail_means(history: pd.DataFrame, *, rows: int = 20) -> dict[str, float]:
    """Means of the last steps of what was logged: deterministic, so DVC can compare them."""
    last = history.tail(rows).drop(columns=["step", "lr", "masks", *MACHINE], errors="ignore")
    return {str(name): round(float(value), 6) for name, value in last.mean().items()}


def sum_parameters(model: Segmenter) -> int:
    """How many numbers were trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
