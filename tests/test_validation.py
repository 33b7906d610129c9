"""Early stopping: what is measured, when it ends, whose weights are published, and the same after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamPredictor
from torch import Tensor

from sum.core.clicks import farthest_point
from sum.core.metrics import iou
from sum.data.batches import TrainBatch
from sum.data.records import ImageRecord, Manifest, MaskRecord, encode_mask
from sum.engine import Loop, LoopOptions
from sum.errors import CheckpointError, DataError
from sum.models.segmenter import Segmenter
from sum.rounds import Rounds, train_rounds
from sum.storage import sha256_file
from sum.validation import Enough, Watch, hold_out
from tests.models.test_parts import batch, small
from tests.test_engine import OPTIONS

STEPS = 8


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Three photos with 1, 2 and 3 masks."""
    folder = tmp_path_factory.mktemp("photos")
    images, masks = [], []
    for number in range(3):
        path = folder / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
        name = f"h/{number}"
        images.append(ImageRecord(name, "h", str(path), sha256_file(path), 48, 64, "part", "train", "MIT"))
        for k in range(number + 1):
            mask = np.zeros((48, 64), dtype=bool)
            mask[5 + 9 * k : 17 + 9 * k, 10 : 20 + 9 * number] = True
            area, box = int(mask.sum()), (10, 5 + 9 * k, 19 + 9 * number, 16 + 9 * k)
            masks.append(MaskRecord(f"{name}#{k}", name, "h", "part", "train", area, *box, encode_mask(mask), "", ""))
    return Manifest(images, masks)


def run(
    held: Manifest, folder: Path, *, patience: int = 99, stop: int | None = None, watched: bool = True, **changes: float
) -> tuple[Loop, Watch]:
    options = {**OPTIONS, "steps": STEPS, "checkpoint_every": 2, "warmup_steps": 0, "decay_steps": 0, "lr": 0.002}
    model = small()
    loop = Loop(model, options=LoopOptions(**{**options, **changes}), folder=folder)  # type: ignore[arg-type]
    watch = Watch(held, patience=patience, folder=folder)

    def step(state: Loop, part: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        if state.step == stop:
            raise InterruptedError
        return train_rounds(model, part, rounds=Rounds(count=1), generator=generator, backward=state.backward)

    try:
        look = (lambda: watch.look(loop)) if watched else (lambda: None)
        loop.run(lambda start: (batch(t) for t in range(start, STEPS)), step, title="watched", on_checkpoint=look)
    except (Enough, InterruptedError):
        pass
    return loop, watch


def by_hand(model: Segmenter, held: Manifest) -> float:
    """Mean over masks of the best of three outputs after the deepest click, by segment_anything's own predictor."""
    predictor, found = SamPredictor(model.for_task("part")), []
    for image in held.images:
        predictor.set_image(np.asarray(Image.open(image.path)))
        for mask in held.masks_of()[image.image_id]:
            truth = np.zeros((48, 64), dtype=bool)
            truth[mask.y0 : mask.y1 + 1, mask.x0 : mask.x1 + 1] = True
            click = np.array([farthest_point(truth)], dtype=float)
            three, _, _ = predictor.predict(click, np.array([1]), multimask_output=True)
            found.append(max(iou(guess, truth) for guess in three))
    return float(np.mean(found))


def test_a_figure_is_the_mean_over_masks_of_the_weights_that_would_be_published(held: Manifest, tmp_path: Path) -> None:
    loop, watch = run(held, tmp_path, ema=0.5)
    assert sorted(watch.figures) == [0, 2, 4, 6, 8]
    assert json.loads((tmp_path / "validation.json").read_text()) == {str(s): f for s, f in watch.figures.items()}
    assert watch.figures[0] == pytest.approx(by_hand(small(), held), abs=1e-4)
    last = loop.finish()  # the averaged weights
    assert isinstance(last, Segmenter)
    assert watch.figures[8] == pytest.approx(by_hand(last, held), abs=1e-4)
    assert len(set(watch.figures.values())) > 1


@pytest.mark.slow
def test_measuring_changes_nothing_of_the_training(held: Manifest, tmp_path: Path) -> None:
    watched, plain = (run(held, tmp_path / str(on), watched=on)[0] for on in (True, False))
    for mine, theirs in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert all(torch.equal(watched.average[name], plain.average[name]) for name in plain.average)


def test_training_ends_when_the_best_figure_is_old_and_gives_its_weights(held: Manifest, tmp_path: Path) -> None:
    loop, watch = run(held, tmp_path, patience=2, lr=0.0)  # nothing is learnt: no figure is above the first
    assert (loop.step, watch.best, sorted(watch.figures)) == (4, 0, [0, 2, 4])
    loop, watch = run(held, tmp_path / "moving", ema=0.0, lr=0.0005)  # best at step 6 where this was written
    best = watch.best
    assert watch.figures[best] == max(watch.figures.values())
    model = small()
    watch.take_best(model)
    assert by_hand(model, held) == pytest.approx(watch.figures[best], abs=1e-4)
    again, _ = run(
        held, tmp_path / "again", ema=0.0, lr=0.0005, watched=False, stop=best
    )  # the same training up to there
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 5, 7])
@pytest.mark.parametrize("lost", [False, True])
def test_a_stopped_run_ends_as_an_uninterrupted_one(held: Manifest, tmp_path: Path, stop: int, lost: bool) -> None:
    """Also when it died between a checkpoint and the figure of it."""
    options = {"patience": 3, "ema": 0.0, "lr": 0.0005}
    whole, wanted = run(held, tmp_path / "whole", **options)
    run(held, tmp_path / "stopped", stop=stop, **options)
    note = tmp_path / "stopped/validation.json"
    if lost:
        known = json.loads(note.read_text())
        known.pop(max(known, key=int))
        note.write_text(json.dumps(known))
    loop, watch = run(held, tmp_path / "stopped", **options)
    assert (loop.step, watch.best, watch.figures) == (whole.step, wanted.best, wanted.figures)
    mine, theirs = small(), small()
    watch.take_best(mine)
    wanted.take_best(theirs)
    assert all(torch.equal(p, q) for p, q in zip(mine.parameters(), theirs.parameters(), strict=True))


def test_what_is_held_out_is_not_learnt_and_an_empty_share_is_refused(held: Manifest) -> None:
    learn, measured = hold_out(held, share=0.5)
    assert {image.image_id for image in learn.images} | {image.image_id for image in measured.images} == {
        image.image_id for image in held.images
    }
    assert not {mask.image_id for mask in learn.masks} & {mask.image_id for mask in measured.masks}
    assert learn.masks
    assert measured.masks
    assert hold_out(held, share=0.0)[0].masks == held.masks
    with pytest.raises(DataError, match=r"early_stop\.held_out: 1e-09 of 3 human images holds out no mask"):
        hold_out(held, share=1e-9)


def test_a_run_taken_back_keeps_the_best_weights_that_it_writes(held: Manifest, tmp_path: Path) -> None:
    """Later ones are left by the run before, whose checkpoints were all damaged."""
    model = small()
    loop = Loop(model, options=LoopOptions(**OPTIONS), folder=tmp_path)  # type: ignore[arg-type]
    for step in (4, 6):
        (tmp_path / f"best-{step:07d}.safetensors").touch()
    watch = Watch(held, patience=9, folder=tmp_path)
    for step, figure in enumerate((0.1, 0.2, 0.3)):
        loop.step, watch.figures[step] = step, figure
        watch.look(loop)
    assert [path.name[11:12] for path in sorted(tmp_path.glob("best-*"))] == ["1", "2", "4", "6"]
    other = small()
    with torch.no_grad():
        other.task_prompt.fill_(9)
    watch.take_best(other)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    path = tmp_path / "best-0000002.safetensors"
    path.write_bytes(path.read_bytes()[:-40] + bytes(40))
    with pytest.raises(CheckpointError, match="its content does not match the SHA-256"):
        watch.take_best(other)
