"""A step that is not finite names the image and the mask whose data or loss it was, and nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sum.accumulation import train_in_parts
from sum.culprits import Culprits, Found, look
from sum.data.batches import TrainBatch
from sum.engine import Loop, LoopOptions
from sum.errors import TrainingDiverged
from sum.models.backbones import build_tiny
from sum.models.segmenter import Segmenter
from sum.rounds import Rounds
from tests.test_engine import OPTIONS
from tests.test_rounds import square_batch

NAN = float("nan")
IMAGES, MASKS = ("set/a", "set/b"), tuple(f"set/{'ab'[k % 2]}#{k}" for k in range(6))


def healthy() -> TrainBatch:
    """Two images with three masks each, in turn."""
    plain = square_batch(loss_side=32)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255
    return replace(plain, image=image, hw=torch.tensor([[48, 64]] * 2), image_ids=IMAGES, mask_ids=MASKS)


def poisoned(what: str, row: int, value: float = NAN) -> TrainBatch:
    """The batch with a number that is not finite, in one pixel of an image or in what belongs to one mask."""
    batch = healthy()
    tensors = {name: getattr(batch, name).clone() for name in ("image", "certainty", "point")}
    if what == "point":  # it is asked for where no certain pixel is left
        tensors["certainty"][row] = 0
    tensors[what][row].view(-1)[0] = value
    return replace(batch, **tensors)


def loop_of(folder: Path, *, steps: int = 2, chunk: int | None = None, limit: int = 10) -> Loop:
    torch.manual_seed(0)
    model = Segmenter(build_tiny(side=64, channels=32), backbone="tiny")
    changes = {"warmup_steps": 0, "decay_steps": 0}
    changes |= {
        "steps": steps,
        "lr": 1e-4,
        "checkpoint_every": 1,
        "ema": 0.0,
        "max_skipped": limit,
        "mask_chunk": chunk,
    }
    return Loop(model, options=LoopOptions(**{**OPTIONS, **changes}), folder=folder)  # type: ignore[arg-type]


def train(loop: Loop, batches: dict[int, TrainBatch], *, parts: int = 1, spoil: int | None = None) -> None:
    """All steps over the healthy batch, or that of `batches`; in step `spoil` the gradient is infinite."""

    def step(state: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        assert isinstance(state.model, Segmenter)
        log = train_in_parts(
            state.model, batch, parts=parts, rounds=Rounds(count=4, box_odds=0.0), generator=generator,
            backward=state.backward, chunk=state.chunk,
        )  # fmt: skip
        if state.step == spoil:
            state.model.task_prompt.grad = torch.full_like(state.model.task_prompt, float("inf"))
        return log

    def stream(start: int) -> Iterator[TrainBatch]:
        return (batches.get(t, healthy()) for t in range(start, loop.options.steps))

    loop.run(stream, step, title="toy")


@pytest.mark.parametrize(
    ("what", "row", "named", "chunk", "parts"),
    [
        ("certainty", 3, "mask set/b#3 (its certainty is not finite)", None, 1),
        ("certainty", 3, "mask set/b#3 (its certainty is not finite)", 2, 1),
        ("certainty", 5, "mask set/b#5 (its certainty is not finite)", None, 1),
        ("point", 2, "mask set/a#2 (its point is not finite)", None, 2),
        ("image", 1, "image set/b (its pixels are not finite)", None, 2),
        ("image", 1, "image set/b (its pixels are not finite)", 4, 1),
    ],
)
def test_the_poisoned_one_is_named_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str, row: int, named: str, chunk: int | None, parts: int
) -> None:
    loop = loop_of(tmp_path, chunk=chunk)
    train(loop, {0: poisoned(what, row)}, parts=parts)
    assert [entry["skipped"] for entry in loop.history] == [1, 0]
    assert [message.partition("; ")[2] for message in caplog.messages if "left out" in message] == [
        f"not finite: {named}"
    ]
    assert all("mask_losses" not in entry for entry in loop.history)


def test_a_gradient_without_a_guilty_mask_names_the_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(loop_of(tmp_path), {}, spoil=1)
    (line,) = (message for message in caplog.messages if "left out" in message)
    assert line.endswith("the losses of all masks are finite, the gradient is not; images of the step: set/a, set/b")


def test_a_run_that_ends_says_who_it_was_and_what_to_do(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, steps=3, limit=2)
    batches = {1: poisoned("certainty", 3), 2: poisoned("certainty", 3, float("inf"))}
    with pytest.raises(TrainingDiverged) as caught:
        train(loop, batches)
    told = str(caught.value)
    assert "Not finite: mask set/b#3 (its certainty is not finite) in 2 of 2. " in told
    assert "datasets.set.exclude: ['b'] in params.yaml, then `dvc repro`" in told
    assert f"{tmp_path}/checkpoint-0000001.safetensors is the newest checkpoint from before" in told
    assert "Lower optim.lr: that begins" in told


def test_weights_that_are_not_finite_accuse_no_single_mask(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = loop_of(tmp_path, limit=1)
    with torch.no_grad():
        loop.model.task_prompt[1:] = NAN
    with pytest.raises(TrainingDiverged, match=r"diverged at step 0, before any update: .*Look at model\.checkpoint"):
        train(loop, {})
    assert f"not finite: every mask, so no single one stands out: mask {', mask '.join(MASKS)}" in caplog.text


@pytest.mark.parametrize(("clip", "every", "known"), [(1.0, 1, 1), (0.0, 2, None)])
def test_a_learning_rate_that_is_too_high_accuses_no_image_and_keeps_the_checkpoint(
    tmp_path: Path, clip: float, every: int, known: int | None
) -> None:
    loop = loop_of(tmp_path, steps=9, limit=3)
    loop.options = replace(loop.options, lr=1000.0, clip_norm=clip, checkpoint_every=every)
    names = {t: tuple(f"{t}#{k}" for k in range(6)) for t in range(9)}  # others in each step
    batches = {t: replace(healthy(), image_ids=(f"set/{t}a", f"set/{t}b"), mask_ids=names[t]) for t in range(9)}
    with pytest.raises(TrainingDiverged) as caught:
        train(loop, batches)
    told = str(caught.value)
    assert [row["skipped"] for row in loop.history] == [0, 1, 1, 1]
    assert told.startswith("steps 1 to 3: ")
    assert "The training diverged at step 1, after the update with learning rate 1000: every mask" in told
    path = tmp_path / f"checkpoint-{known:07d}.safetensors" if known else None
    assert (f"{path} is the newest checkpoint from before" if path else "There is no checkpoint yet") in told
    assert list(tmp_path.iterdir()) == ([path] if path else [])
    assert ("Lower optim.lr: that" if clip else "Lower optim.lr, or set optim.clip_norm: that") in told
    assert not any(word in told for word in ("exclude", "set/", "#"))


def test_nobody_looks_while_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a step that is finite was looked at")

    monkeypatch.setattr("sum.engine.look", refuse)
    train(loop_of(tmp_path), {})


def test_names_are_counted_over_steps_in_a_row_and_many_are_cut_short() -> None:
    culprits = Culprits()
    culprits.tell([Found((("mask x", "x"),), ("x",), known=True)])
    culprits.clear()
    culprits.tell([Found((("mask b", "s/b"),), ("s/b", "s/d"), known=True), Found((), ("s/c",), known=True)])
    culprits.tell([Found((("mask a", "s/[a]"),), ("s/[a]",), known=True)])
    culprits.tell([Found((("mask a", "s/[a]"),), ("s/[a]",), known=True)])
    said = culprits.summary()
    assert "Not finite: mask a in 2 of 3, mask b in 1 of 3." in said
    assert "datasets.s.exclude: ['[[]a]']" in said  # a pattern that fits this name only
    assert "There is no checkpoint yet" in culprits.ended((1, 3), limit=3, checkpoint=None, rate=0.1, clip_norm=1.0)
    many = Found(tuple((f"mask {k}", "s/a") for k in range(20)), ("s/a",), known=True)
    assert Culprits().tell([many]).endswith("mask 7 and 12 more")


def found(*guilty: str, seen: str, unfit: str = "", every: bool = False) -> Found:
    blamed = tuple((f"mask {name}", f"s/{name}") for name in guilty)
    return Found(blamed, tuple(f"s/{n}" for n in seen), known=True, every=every, unfit=tuple(f"s/{n}" for n in unfit))


@pytest.mark.parametrize(
    ("steps", "out"),
    [
        ([found("a", seen="ab"), found("a", seen="ac")], "a"),
        ([found("a", seen="ab"), found("c", seen="cd")], None),  # a tie
        ([found("a", "b", seen="abcd"), found("a", "b", seen="abcd")], None),
        ([found("a", "b", seen="ab"), found("a", "c", seen="acd"), found("a", "e", seen="ae")], None),  # nearly all
        ([found("a", seen="ab", unfit="a"), found("c", seen="cd")], "a"),  # its data says so
        ([found("a", seen="a", every=True), found("b", seen="b", every=True)], None),
    ],
)
def test_only_an_image_that_stands_out_is_to_be_excluded(steps: list[Found], out: str | None) -> None:
    culprits = Culprits()
    for step in steps:
        culprits.tell([step])
    told = culprits.ended((4, 5), limit=2, checkpoint=None, rate=0.1, clip_norm=1.0)
    assert (f"exclude: ['{out}']" in told) if out else ("exclude" not in told and "no image stands out" in told.lower())
    assert ("diverged at step 4" in told) == all(step.every for step in steps)


def test_names_are_not_needed() -> None:
    batch = replace(poisoned("certainty", 3), image_ids=(), mask_ids=())
    losses = torch.tensor([1.0, 1.0, 1.0, NAN, 1.0, 1.0])
    words = "mask number 3 of the step, of image number 1 of the step (its certainty is not finite)"
    assert look(batch, losses).guilty == ((words, "number 1 of the step"),)
    assert look(batch, None) == Found((), ("number 0 of the step", "number 1 of the step"))
    assert "exclude" not in Culprits().summary()


@pytest.mark.slow
def test_the_first_process_names_the_mask_of_another(tmp_path: Path) -> None:
    code = """
import logging, sys
from dataclasses import replace
from pathlib import Path
import tests.test_culprits as t
from sum.errors import TrainingDiverged

logging.basicConfig(level="WARNING", format="%(message)s")
loop = t.loop_of(Path(sys.argv[1]), limit=1)
bad = {1: t.poisoned("certainty", 3)} if loop.rank == 1 else {}
bad = {k: replace(v, mask_ids=tuple(f"other{n}" for n in range(6))) for k, v in bad.items()}
try:
    t.train(loop, bad)
except TrainingDiverged as error:
    Path(sys.argv[1], f"said-{loop.rank}.txt").write_text(str(error))
"""
    script = tmp_path / "two.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(script), str(tmp_path)], check=True, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": ".", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    for rank in range(2):
        said = (tmp_path / f"said-{rank}.txt").read_text()
        assert "Not finite: mask other3 (its certainty is not finite) in 1 of 1." in said
        assert "checkpoint-0000001.safetensors is the newest checkpoint from before" in said
    assert done.stderr.count("(1 in a row); not finite: mask other3 (its certainty is not finite)") == 2
