"""Masks that take turns: the same gradients as all at once, also after out of memory and after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sum.data.batches import TrainBatch
from sum.engine import Loop, LoopOptions
from sum.errors import OutOfMemory
from sum.models.mask_chunk import MaskChunk
from sum.models.segmenter import Prediction, Prompts, Segmenter
from sum.rounds import Rounds, train_rounds
from tests.test_engine import OPTIONS, same_run
from tests.test_rounds import Recorder, square_batch

ROUNDS = Rounds(count=3, idle_last=False)


class Narrow(Recorder):
    """A Segmenter that has memory for a few masks only; the others fail in the forward or in the backward pass."""

    def __init__(self, room: int, *, fails: str, after: int = 0, side: int = 128) -> None:
        """after: how many calls of the decoder work before."""
        super().__init__(side=side)
        self.room, self.fails, self.after = room, fails, after

    def decode(
        self, embedding: Tensor, image_index: Tensor, prompts: Prompts, *, multimask: bool, task: Tensor | None = None
    ) -> Prediction:
        full = len(image_index) > self.room and len(self.asked) >= self.after
        answer = super().decode(embedding, image_index, prompts, multimask=multimask, task=task)
        if full and self.fails == "forward":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if full:  # where the gradient reaches the image embedding, those of the decoder's last layers are made
            embedding.register_hook(_no_memory)
        return answer


def _no_memory(gradient: Tensor) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def uneven_batch() -> TrainBatch:
    """Six masks, five of them of the first image: turns of any size mix images, and masks count differently."""
    torch.manual_seed(7)  # of the picture
    return replace(square_batch(), image_index=torch.tensor([0, 0, 1, 0, 0, 0]), task=torch.tensor([1, 2, 3, 0, 1, 2]))


def train(model: Segmenter, chunk: MaskChunk | None) -> dict[str, Tensor]:
    """One step, without the optimizer's part."""
    generator = torch.Generator().manual_seed(3)
    return train_rounds(
        model, uneven_batch(), rounds=ROUNDS, generator=generator, backward=lambda loss: loss.backward(), chunk=chunk
    )


def grads(model: Segmenter) -> dict[str, Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def recorder() -> Recorder:
    torch.manual_seed(0)
    return Recorder()


@pytest.fixture(scope="module")
def whole() -> tuple[Recorder, dict[str, Tensor]]:
    model = recorder()
    return model, train(model, None)


@pytest.mark.parametrize("size", [1, 4, 6, 100])
def test_masks_in_turns_give_the_gradients_of_all_at_once(whole: tuple[Recorder, dict[str, Tensor]], size: int) -> None:
    model, (wanted, logged) = recorder(), whole
    log = train(model, MaskChunk(size))
    assert {len(prompts.xy) for prompts, _, _ in model.asked} == {1: {1}, 4: {4, 2}}.get(size, {6})
    first = torch.cat([prompts.xy for prompts, multimask, _ in model.asked if multimask])
    assert torch.equal(first, wanted.asked[0][0].xy)  # chance does not depend on the turns
    points = [prompts.xy for prompts, _, _ in model.asked if prompts.xy.shape[1] == 4]
    assert torch.equal(torch.cat(points), wanted.asked[-1][0].xy)
    found, sought = grads(model), grads(wanted)
    assert found.keys() == sought.keys()
    assert any("image_encoder" in name for name in found)
    for name, value in sought.items():
        scale = float(value.abs().max())
        assert float((found[name] - value).abs().max()) <= 2e-5 * scale + 5e-9, (
            name
        )  # of key biases: 0 but for rounding
    for name in ("loss", "iou_first", "iou_last"):
        torch.testing.assert_close(log[name], logged[name], rtol=1e-5, atol=0)
    assert (int(log["mask_chunk"]), int(log["out_of_memory"])) == (min(size, 6), 0)


@pytest.mark.parametrize(("fails", "after"), [("forward", 2), ("backward", 0), ("backward", 1)])
def test_out_of_memory_halves_and_leaves_nothing_of_the_failed_try(
    fails: str, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    narrow, plain = Narrow(1, fails=fails, after=after), recorder()
    for model in (narrow, plain):  # gradients from before the step, as of accumulation, stay
        model.task_prompt.grad = torch.full_like(model.task_prompt, 0.5)
    chunk = MaskChunk()
    with caplog.at_level("WARNING"):
        log = train(narrow, chunk)
    train(plain, MaskChunk(1))
    assert grads(narrow).keys() == grads(plain).keys()
    assert all(torch.equal(value, grads(plain)[name]) for name, value in grads(narrow).items())
    assert (chunk.size, int(log["mask_chunk"]), int(log["out_of_memory"])) == (1, 1, 2)
    lines = [f"Out of memory with {a} masks at once: going on with {b}." for a, b in ((6, 3), (3, 1))]
    assert caplog.messages == lines
    failed = sum(len(prompts.xy) > 1 for prompts, _, _ in narrow.asked)
    train(narrow, chunk)
    assert sum(len(prompts.xy) > 1 for prompts, _, _ in narrow.asked) == failed  # what fitted is remembered


def test_one_mask_that_does_not_fit_says_what_to_change() -> None:
    with pytest.raises(OutOfMemory, match=r"one mask at a time \(CUDA out of memory.*optim.images_per_batch.*sum plan"):
        train(Narrow(0, fails="forward"), MaskChunk())


def test_an_encoder_that_does_not_fit_is_not_tried_with_fewer_masks() -> None:
    model = recorder()
    calls: list[int] = []

    def refuse(*_: object) -> None:
        calls.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model.sam.image_encoder.register_forward_hook(refuse)
    with pytest.raises(OutOfMemory, match=r"with the image encoder.*finetune\.recompute_encoder.*finetune\.accumulate"):
        train(model, MaskChunk())
    assert len(calls) == 1


def test_other_errors_are_not_taken_for_a_full_memory() -> None:
    model = recorder()
    model.sam.mask_decoder.iou_prediction_head.register_forward_hook(lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match=r"inconsistent tensor size|size mismatch"):
        train(model, MaskChunk())


def loop_of(folder: Path, *, room: int, stop: int | None = None) -> Loop:
    """Three steps of training: memory gets scarce at step 1; the run dies before step `stop`."""
    torch.manual_seed(0)
    model = Narrow(room, fails="forward", after=2, side=64)
    changes = {"steps": 3, "lr": 1e-3, "checkpoint_every": 2, "warmup_steps": 0, "decay_steps": 0}
    batch = replace(
        uneven_batch(), **{name: getattr(square_batch(loss_side=32), name) for name in ("mask", "certainty")}
    )
    batch = replace(batch, image=batch.image[..., :64, :64], hw=torch.tensor([[48, 64], [48, 64]]))
    loop = Loop(model, options=LoopOptions(**{**OPTIONS, **changes}), folder=folder)  # type: ignore[arg-type]

    def batches(start: int) -> Iterator[TrainBatch]:
        for step in range(start, 3):
            if step == stop:
                raise KeyboardInterrupt
            yield batch

    def step(state: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        return train_rounds(
            model, batch, rounds=Rounds(count=2), generator=generator, backward=state.backward, chunk=state.chunk
        )

    loop.run(batches, step, title="turns")
    return loop


@pytest.mark.slow
def test_a_resumed_run_has_the_turns_of_the_run_before(tmp_path: Path) -> None:
    straight = loop_of(tmp_path / "straight", room=2)
    with pytest.raises(KeyboardInterrupt):
        loop_of(tmp_path / "killed", room=2, stop=2)
    resumed = loop_of(tmp_path / "killed", room=100)  # memory that was free again must not change the rounding
    assert [row["mask_chunk"] for row in straight.history] == [6, 1, 1]
    assert [row["out_of_memory"] for row in straight.history] == [0, 2, 0]
    assert same_run(resumed, straight)
