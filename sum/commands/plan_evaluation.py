"""`python -m sum plan evaluate`: how long the benchmark takes here, and what bounds it."""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from sum.data.demo import LEAST_SIDE, Scene, make_scene
from sum.data.records import ImageRecord, MaskRecord, encode_mask, read_manifest
from sum.errors import ConfigError, choose
from sum.evaluation import Bench, Pair
from sum.evaluation_time import MODEL, Crew, Estimate, estimate, mask_rounds, measure, well_spread
from sum.evaluation_time import workers_wanted as wanted
from sum.launch import processes
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import load_segmenter
from sum.models.rehearsal import Rehearsal
from sum.models.segmenter import Segmenter
from sum.models.stopwatch import Clock
from sum.settings import Config
from sum.stages.common import pick_device
from sum.stages.evaluate import MANIFEST, suite_of
from sum.storage import sha256_file

BUSY = 0.5  # processes beside this one
CROWDED, MANY = 1.05, 10**6  # times the time with so many cores: worth saying
SIDE, MASKS = 1500, 10  # px of a drawn image; masks an image where `expect` does not say
TINY_TASK = 1e-6  # makes the task prompt of SAM's own weights speak, so that the game without it is played, too


@dataclass(frozen=True, slots=True)
class Work:
    """What is evaluated: how many test images and masks, and some images to measure."""

    images: int
    masks: int
    source: str
    pairs: Iterator[Pair]


def run(config: Config, options: argparse.Namespace) -> list[str]:
    """All lines; options: of `python -m sum plan`. Raises ConfigError as `plan`, and for what only fine-tuning has."""
    if options.card:
        raise ConfigError("--card is of fine-tuning's memory; an evaluation's time is measured on what is here")
    limit = 0.0 if options.no_time else options.limit
    sizes = {name: given for name in ("side", "masks") if (given := getattr(options, name)) is not None}
    return [*plan(config, limit=limit, **sizes), NOT_IN_IT]


def plan(
    config: Config, *, side: int = SIDE, masks: int = MASKS, limit: float, clock: Clock = time.perf_counter
) -> list[str]:
    """The lines of the plan; limit: seconds for measuring, 0: nothing is computed.

    side, masks: of drawn images, where there is no manifest. Raises ConfigError where nobody says how many images.
    """
    suite, settings = suite_of(config), config.evaluate
    with ExitStack() as stack:
        work = listed() or expected(config, stack, side=side, masks=masks)
        games = [f"{protocol.first_prompt} ({prompt})" for protocol, prompt in suite.games("TASK")]
        asked = mask_rounds(suite, masks=work.masks)
        more = [name for name, on in (("everything", suite.everything), ("fidelity", suite.fidelity)) if on]
        told = (
            f"evaluate: {config.model.backbone} at {BACKBONES[config.model.backbone].side} px, {work.images:,} images "
            f"with {work.masks:,} masks ({work.source}), games {', '.join(games)} of {settings.rounds} rounds: at most "
            f"{asked:,} mask-rounds{''.join(f', {name}' for name in more)}"
        )
        if not limit:
            return [told]
        device = pick_device(config.device)
        model, weights = any_weights(config)
        others = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # before this process adds to it
        bench = Bench("plan", model.to(device).eval(), suite, keep=settings.report_rounds, clock=clock)
        samples = measure(bench, work.pairs, limit=limit)
    found = estimate(samples, images=work.images, masks=work.masks)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    how = (
        f"{name} ({torch.get_num_threads()} threads), {weights}; measured: "
        f"{math.fsum(sample.masks for sample in samples):.0f} masks of {len(samples)} image{'s'[: len(samples) - 1]}"
    )
    crew = Crew(
        workers=settings.workers,
        processes=processes(os.environ),
        cores=_cores(),
        threads=torch.get_num_threads() if device.type == "cpu" else 1,
    )
    lines = [told, how, *parts_of(found, images=work.images, masks=work.masks, asked=asked), *verdict(found, crew)]
    if others > BUSY:
        lines.append(f"  others are at work here (load {others:.1f}), alone it is faster")
    return lines


def listed() -> Work | None:
    """The test images of the manifest; None where there is none."""
    if not MANIFEST.is_dir():
        return None
    manifest = read_manifest(MANIFEST, reader="plan").select(split="test")
    masks = manifest.masks_of()
    images = [image for image in manifest.images if masks[image.image_id]]
    if not images:
        return None
    images.sort(key=lambda image: image.height * image.width * len(masks[image.image_id]))
    pairs = ((images[at], masks[images[at].image_id]) for at in well_spread(len(images)))
    return Work(len(images), len(manifest.masks), str(MANIFEST), pairs)


def expected(config: Config, stack: ExitStack, *, side: int, masks: int) -> Work:
    """What `expect` says of the test sets, and drawn images of this side, px; stack: ends with their folder.

    masks: an image's, of sets of which nobody says it.
    """
    if side < LEAST_SIDE or masks < 1:
        raise ConfigError(f"--side wants at least {LEAST_SIDE} px and --masks at least 1, got {side} and {masks}")
    tests = {name: entry.expect for name, entry in config.datasets.items() if entry.split == "test"}
    told = {name: expect for name, expect in tests.items() if expect.images}
    if not told:
        raise ConfigError(
            f"there is no {MANIFEST}, and no test set of params.yaml has `expect: {{images: ...}}`: nobody knows how "
            "many images are to be evaluated. Run `dvc repro ingest`."
        )
    images = {name: int(expect.images or 0) for name, expect in told.items()}
    silent = [name for name in told if told[name].masks is None]
    total = math.fsum(told[name].masks or images[name] * masks for name in told)
    source = f"`expect` of {len(told)} of {len(tests)} test sets"
    if silent:
        source += f"; {masks} masks an image supposed for {len(silent)} of them, --masks"
    each = max(1, round(total / math.fsum(images.values())))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    drawn = (draw(folder, seed, side=side, masks=each) for seed in range(sum(images.values())))
    return Work(sum(images.values()), int(total), f"{source}; drawn at {side} px, --side", drawn)


def draw(folder: Path, seed: int, *, side: int, masks: int) -> Pair:
    """A drawn scene as a photo on disk, side x side px, and so many of its masks; small ones come again."""
    scene = make_scene(seed, side=side)
    path = folder / f"{seed}.jpg"
    cv2.imwrite(str(path), scene.image[..., ::-1])
    place = {"image_id": f"drawn/{seed}", "dataset": "drawn", "task": "part", "split": "test"}
    photo = ImageRecord(path=str(path), sha256=sha256_file(path), height=side, width=side, licence="CC0-1.0", **place)
    return photo, [_record(scene, number, place) for number in range(masks)]


def _record(scene: Scene, number: int, place: dict[str, str]) -> MaskRecord:
    found = [*scene.entities, *scene.parts]
    mask = found[number % len(found)]
    y, x = np.nonzero(mask)
    return MaskRecord(
        mask_id=f"{place['image_id']}#{number}",
        area=len(x),
        x0=int(x.min()),
        y0=int(y.min()),
        x1=int(x.max()),
        y1=int(y.max()),
        rle=encode_mask(mask),
        category="",
        source="",
        **place,
    )


def any_weights(config: Config) -> tuple[Segmenter, str]:
    """The base's weights if they lie here, else random ones; as a tuned model, which plays every game."""
    name = config.model.backbone
    backbone = choose(BACKBONES, name, key="model.backbone")
    path = Path(config.model.checkpoint)
    if path.is_file():
        model, words = load_segmenter(path, backbone=name), f"weights {path}"
    else:
        torch.manual_seed(0)
        model, words = Rehearsal(backbone.build(), backbone=name), f"random weights ({path} is not here)"
    model.task_prompt.data += TINY_TASK
    return model, words


def parts_of(found: Estimate, *, images: int, masks: int, asked: int) -> list[str]:
    """What the parts take, of one process."""
    each = {"encode": images, "everything": images, "read": images, "fidelity": masks, "decode": asked, "scores": asked}
    units = {"encode": "an image", "everything": "an image", "read": "an image", "fidelity": "a mask"}
    words = {"read": "reading", "scores": "clicks and scores"}

    def told(part: str) -> str:
        one, unit = found.seconds[part] / each[part], units.get(part, "a mask-round")
        return f"{words.get(part, part)} {span(one)} {unit} ({span(found.seconds[part])})"

    model = ", ".join(told(part) for part in MODEL if found.seconds[part])
    return [
        f"  the model, drawing its masks included: {model}; together {span(found.model)}",
        f"  beside it: {told('read')}, {told('scores')}; together {span(found.beside)}",
    ]


def verdict(found: Estimate, crew: Crew) -> list[str]:
    """What bounds the evaluation, and its time."""
    enough, here = wanted(found), crew.workers
    share = found.beside / found.model
    if here >= enough:
        bound = f"bound by the model: clicks and scores take {share:.0%} of its time, workers {here} do them beside it"
    else:
        bound = (
            f"bound by clicks and scores: they take {share:.0%} of the model's time, evaluate.workers={enough} would do"
        )
    least, most = crew.span(found)
    if least > CROWDED * replace(crew, cores=MANY).span(found)[0]:
        bound += f"; {crew.cores} cores are too few for that"
    spread = "of one image, so nobody knows how far others differ" if found.error is None else f"± {found.error:.0%}"
    who = f"evaluate.workers={here}" + (f" in each of {crew.processes} processes" if crew.processes > 1 else "")
    time_ = span(most) if most - least < 0.01 * most else f"{span(least)} to {span(most)}"
    return [f"  {bound}", f"  time: {time_} with {who}, {spread}"]


def span(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


NOT_IN_IT = (
    "Not in it: the start, tables and summary at the end, the base's maps of uncertainty, and what processes take from "
    "each other. Planned is a tuned model: the base's game without task prompt is a copy and takes no time."
)
