"""`python -m sum plan`: memory and time of fine-tuning before it is begun, and settings that fit; `plan evaluate`."""

from __future__ import annotations

import argparse
import importlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sum.commands.plan_devices import Device
    from sum.config import Config
    from sum.models.segmenter import Segmenter
    from sum.planner import StepShape

Changes = dict[str, Any]  # key of params.yaml -> value
ANOTHER = "another training"
LIMIT = 60.0  # s: what measuring may take on a device
BUSY = 0.5  # processes beside this one


@dataclass(frozen=True, slots=True)
class Case:
    """What stage finetune would train: how its model is made, trainable parts and all, and the shape of its step."""

    build: Callable[[], Segmenter]
    shape: StepShape


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind the command's name."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="finetune | evaluate | key=value",
        help="the stage, finetune if none is named; numbers of params.yaml, as finetune.optim.images_per_batch=2",
    )
    parser.add_argument("--no-time", action="store_true", help="nothing is computed: memory, of evaluate counts")
    parser.add_argument(
        "--limit", type=float, default=LIMIT, metavar="SECONDS", help=f"for measuring on a device ({LIMIT:g})"
    )
    parser.add_argument(
        "--card", type=_size, action="append", default=[], metavar="GB", help="also a CUDA card of so many GB: memory"
    )
    for name, what in (("--side", "px of the drawn images"), ("--masks", "masks an image where `expect` has none")):
        parser.add_argument(name, type=int, metavar="N", help=f"evaluate without a manifest: {what}")


def run(options: argparse.Namespace) -> str:
    """The plan of a stage for params.yaml. Raises ConfigError as the stage would."""
    from sum.config import load_config
    from sum.errors import ConfigError

    stages = [word for word in options.words if "=" not in word]
    config = load_config([word for word in options.words if "=" in word])
    if stages == ["evaluate"]:
        lines = importlib.import_module("sum.commands.plan_evaluation").run(config, options)
    elif stages in ([], ["finetune"]):
        lines = _finetune(config, options)
    else:
        raise ConfigError(f"plan: wants finetune, evaluate or none of them, and key=value; got '{' '.join(stages)}'")
    return "\n".join(lines) + "\n"


def _finetune(whole: Config, options: argparse.Namespace) -> list[str]:
    """A paragraph a device; of one process, where SUM_PROCESSES says how many there are."""
    from sum.commands.plan_devices import find_devices
    from sum.launch import VARIABLE, processes

    count = processes(os.environ)
    config = part_of(whole, count=count)
    case_of(config, count=count)  # imports what the stage imports: it is part of the program's size
    lines = [describe(config)]
    for device in find_devices(options.card, count=count):
        said, case = plan(config, device, count=count)
        lines += [f"{device.name}, {_gb(device.free)} free", *said]
        if case is not None and device.here and not options.no_time:
            lines += time_lines(case, device, steps=config.finetune.optim.steps, limit=options.limit)
    missing = "Not in it: reading images, checkpoints, labelling and evaluation"
    lines.append(
        f"One process. {missing}."
        if count == 1
        else f"One of {count} processes ({VARIABLE}) with its share "
        f"of {whole.finetune.optim.images_per_batch} images a step. {missing}, and the time that the processes take "
        "from each other."
    )
    return lines


def part_of(config: Config, *, count: int) -> Config:
    """The settings with one process's images of a batch. Raises ConfigError where they cannot be shared out."""
    from sum.launch import images_each

    images = images_each(config.finetune.optim.images_per_batch, count=count)
    pieces = min(config.finetune.accumulate, images)
    return changed(config, {"finetune.accumulate": pieces, "finetune.optim.images_per_batch": images})


def case_of(config: Config, *, count: int = 1) -> Case:
    """What one of `count` processes of stage finetune would run, with random weights; config: as `part_of`.

    Whatever makes the model smaller or its parts train belongs in `choose_parts`, and is planned. Raises ConfigError
    for an unknown backbone.
    """
    from sum.errors import choose
    from sum.methods import METHODS
    from sum.models.backbones import BACKBONES
    from sum.models.segmenter import Segmenter
    from sum.planner import StepShape
    from sum.stages.common import round_options
    from sum.stages.finetune import choose_parts

    name, settings = config.model.backbone, config.finetune
    backbone = choose(BACKBONES, name, key="model.backbone")
    method = METHODS[settings.method]
    if settings.arch == "lora":
        importlib.import_module("sum.models.lora")  # now: `build` is called where tensors have no values

    def build() -> Segmenter:
        model = Segmenter(backbone.build(), backbone=name)
        return choose_parts(config, model, method=method)

    shape = StepShape(
        images=settings.optim.images_per_batch,
        masks=settings.optim.masks_per_image,
        rounds=round_options(settings.rounds, task_prompt=method.task_prompt, arch=settings.arch),
        loss_side=settings.rounds.loss_side or backbone.side,
        chunk=settings.optim.mask_chunk,
        pieces=settings.accumulate,
        precision=settings.optim.precision,
        ema=settings.optim.ema > 0,
        averaged=count > 1,
    )
    return Case(build, shape)


def describe(config: Config) -> str:
    """The settings that the plan depends on, in a line."""
    from sum.methods import METHODS
    from sum.models.archs import ARCHS
    from sum.models.backbones import BACKBONES

    settings, optim, side = config.finetune, config.finetune.optim, BACKBONES[config.model.backbone].side
    rounds = "one-shot prompts" if ARCHS[settings.arch].one_shot else f"{settings.rounds.rounds} rounds"
    adapted = [name for name, on in (("encoder", settings.lora.encoder), ("decoder", settings.lora.decoder)) if on]
    adapters = f" of rank {settings.lora.rank} in the {' and '.join(adapted)}" if settings.arch == "lora" else ""
    return (
        f"finetune: {config.model.backbone} at {side} px, method {settings.method}, trains {settings.arch}"
        f"{adapters}, {optim.images_per_batch} images x {optim.masks_per_image} masks a step, "
        f"{rounds}, losses at {settings.rounds.loss_side or side} px, {optim.precision}, "
        f"recompute_encoder {str(settings.recompute_encoder).lower()}, "
        f"mask_chunk {optim.mask_chunk or 'null'}, accumulate {settings.accumulate}, {optim.steps} steps"
        f"{METHODS[settings.method].unplanned}"
    )


def plan(config: Config, device: Device, *, count: int = 1) -> tuple[list[str], Case | None]:
    """Memory of the step on a device and, where it does not fit, the first change that makes it fit; and what fits.

    config, count: as `case_of`.
    """
    from sum.planner import trace_memory

    case = case_of(config, count=count)
    memory = trace_memory(case.build, case.shape, grouped=device.grouped)
    rest = memory.peak - memory.weights - memory.training
    lines = [
        (
            f"  memory: {_gb(device.whole(memory.peak))} at the peak, "
            f"{'fits' if device.fits(memory.peak) else 'does NOT fit'}: tensors {_gb(memory.peak)} (weights "
            f"{_gb(memory.weights)}, gradients, AdamW and average {_gb(memory.training)}, the rest of a step "
            f"{_gb(rest)}), program {_gb(device.base)}"
        )
    ]
    if device.fits(memory.peak):
        return lines, case
    stays = device.fits(memory.weights + memory.training)  # else only what trains less can help
    for words, family in proposals(config):
        found = _mildest(config, family, device, count=count) if stays or words.startswith(ANOTHER) else None
        if found is not None:
            changes, smaller, peak = found
            said = f"  proposal ({words}): {' '.join(words_of(changes))}; {_gb(device.whole(peak))}"
            return [*lines, said], smaller
    return [*lines, "  proposal: none; not even the decoder alone with one mask at a time fits here"], None


def _mildest(
    config: Config, family: Sequence[Changes], device: Device, *, count: int
) -> tuple[Changes, Case, float] | None:
    """The first of a family that fits, with its tensors' bytes; None where its last, which needs least, does not."""
    from sum.planner import trace_memory

    least = None
    for changes in (family[-1], *family[:-1]):
        case = case_of(changed(config, changes), count=count)
        peak = float(trace_memory(case.build, case.shape, grouped=device.grouped).peak)
        fits = device.fits(peak)
        if fits and least is not None:
            return changes, case, peak
        if least is None and not fits:
            return None
        least = least or (changes, case, peak)
    return least


def proposals(config: Config) -> Iterator[tuple[str, list[Changes]]]:
    """Families of changes in the order in which they should be tried: first those that train the same.

    A family goes from the mildest to the one that needs least memory, and holds what the families before ended with.
    """
    from sum.stages.common import arch_of

    settings, optim = config.finetune, config.finetune.optim
    tried = optim.mask_chunk or optim.images_per_batch * optim.masks_per_image
    chunks = sorted({max(1, tried // part) for part in (2, 4, 8, 32, tried)} - {tried}, reverse=True)
    kept: Changes = {}
    if chunks:
        yield "the same gradients", [{"finetune.optim.mask_chunk": chunk} for chunk in chunks]
        kept = {"finetune.optim.mask_chunk": 1}
    encoder_learns = arch_of(settings).encoder_learns
    if not settings.recompute_encoder and encoder_learns:
        kept = {**kept, "finetune.recompute_encoder": True}
        yield "the same gradients, more time", [kept]
    pieces = [size for size in _doubled(settings.accumulate, optim.images_per_batch) if size > settings.accumulate]
    if pieces:
        family = [{**kept, "finetune.accumulate": size} for size in pieces]
        yield "the same gradients, the images in pieces", family
        kept = family[-1]
    if optim.precision == "fp32":
        kept = {**kept, "finetune.optim.precision": "bf16"}
        yield "rounded otherwise", [kept]
    if settings.arch == "full" and settings.lora.encoder:
        yield f"{ANOTHER}: adapters in the encoder", [{**kept, "finetune.arch": "lora"}]
    if encoder_learns:
        yield f"{ANOTHER}: of the decoder alone", [{**kept, "finetune.arch": "decoder"}]


def changed(config: Config, changes: Changes) -> Config:
    """The settings with other values of some keys. Raises ValueError as the settings do."""
    for key, value in changes.items():
        config = _changed(config, key.split("."), value)
    return config


def words_of(changes: Changes) -> list[str]:
    """The changes as `key=value`, as the command line takes them."""
    return [f"{key}={str(value).lower()}" for key, value in changes.items()]


def _changed(node: Any, path: Sequence[str], value: object) -> Any:
    name, *rest = path
    return replace(node, **{name: _changed(getattr(node, name), rest, value) if rest else value})


def _doubled(first: int, last: int) -> list[int]:
    """first, twice as many, and so on; then last."""
    found = []
    while first < last:
        found.append(first)
        first *= 2
    return [*found, last]


def time_lines(case: Case, device: Device, *, steps: int, limit: float) -> list[str]:
    """Time of a step that fits and of the run, measured within about `limit` seconds."""
    from sum.step_time import least_time, probe_time

    others = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # before this process adds to it
    least = least_time(case.build, case.shape, device=device.device)
    if least > limit * case.shape.images / 10:  # the parts take ten images' time
        return [
            (
                f"  time: not measured, it would take more than --limit {limit:g} s; a step takes at least "
                f"{least:.0f} s, {least * steps / 3600:.1f} h for {steps} steps (operations of the image encoder at "
                "the speed of a product of matrices)"
            )
        ]
    found = probe_time(case.build, case.shape, device=device.device, limit=limit)
    how = "a whole step was run" if found.whole else "put together from parts that were run"
    parts = f"one image more {found.image:.3f}, one mask more {found.mask:.4f}, update {found.update:.3f}"
    told = f"  time: {found.step:.2f} s a step ({how}; {parts}), {found.step * steps / 3600:.2f} h for {steps} steps"
    return [told + (f"; others are at work here (load {others:.1f}), alone it is faster" if others > BUSY else "")]


def _size(text: str) -> float:
    """GB of a card."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < math.inf:
        raise argparse.ArgumentTypeError(f"wants GB above 0, got {text}")
    return size


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
