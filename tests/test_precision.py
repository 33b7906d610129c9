"""bfloat16: encoder, decoder and refinement module run in it; losses and gradients stay float32. `gpu`: on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from sum.data.batches import TrainBatch
from sum.engine import Loop, LoopOptions
from sum.models.backbones import BACKBONES
from sum.models.refiner import Refiner
from sum.models.segmenter import Prediction, Segmenter
from sum.rounds import Rounds, round_loss, train_rounds
from sum.stages.refine import refine_step
from tests.test_engine import OPTIONS
from tests.test_rounds import Recorder, square_batch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ROUNDS = Rounds(count=3)
MakeLoop = Callable[..., Loop]


@pytest.fixture
def make_loop(tmp_path: Path) -> Iterator[MakeLoop]:
    """A loop of one step. Accelerate keeps one precision a process, as a stage has; here it forgets that."""

    def make(model: nn.Module, *, device: str, precision: str) -> Loop:
        AcceleratorState._reset_state(reset_partial_state=True)
        changes = {"steps": 1, "warmup_steps": 0, "decay_steps": 0, "device": device, "precision": precision}
        options = LoopOptions(**{**OPTIONS, **changes})  # type: ignore[arg-type]
        return Loop(model, options=options, folder=tmp_path / precision)

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


def same_batch(start: int) -> Iterator[TrainBatch]:
    torch.manual_seed(7)  # of the picture
    return iter([square_batch()])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_sound(grads: dict[str, Tensor]) -> None:
    assert {grad.dtype for grad in grads.values()} == {torch.float32}
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    assert sum(bool(grad.abs().max() > 0) for grad in grads.values()) > len(grads) / 2


def fine_tune(loop: Loop) -> list[Tensor]:
    """One step of a Recorder, with its gradients looked at before the optimizer takes them; the loss of each round."""
    losses: list[Tensor] = []

    def step(state: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        model = state.model
        assert isinstance(model, Recorder)

        def backward(loss: Tensor) -> None:
            losses.append(loss.detach())
            state.backward(loss)

        scalars = train_rounds(
            model, batch, rounds=ROUNDS, generator=generator, backward=backward, autocast=state.autocast
        )
        assert_sound(gradients(model))
        for answer, found in zip(model.answers, losses, strict=True):
            wide = Prediction(answer.logits.detach().float(), answer.iou.detach().float())
            wanted = round_loss(wide, batch, rounds=ROUNDS).total
            assert torch.equal(wanted / ROUNDS.count, found)  # nothing of the loss is rounded to bfloat16
        return scalars

    loop.run(same_batch, step, title="finetune")
    return losses


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_of_fine_tuning(make_loop: MakeLoop, device: str) -> None:
    first_loss = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        torch.manual_seed(0)
        model = Recorder()
        losses = fine_tune(make_loop(model, device=device, precision=precision))
        assert {answer.logits.dtype for answer in model.answers} == {dtype}
        assert {loss.dtype for loss in losses} == {torch.float32}
        assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in model.parameters())
        first_loss[precision] = float(losses[0])
    assert first_loss["bf16"] == pytest.approx(first_loss["fp32"], rel=0.02)  # 8 bits a number: 0.4 % each
    assert first_loss["bf16"] != first_loss["fp32"]


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_of_the_refinement_module(make_loop: MakeLoop, device: str) -> None:
    torch.manual_seed(0)
    base = Segmenter(BACKBONES["tiny"].build(), backbone="tiny").requires_grad_(False)
    refiner, seen = Refiner(base), []
    refiner.register_forward_hook(lambda module, given, answer: seen.append(answer.dtype))
    loop = make_loop(refiner, device=device, precision="bf16")
    base.to(loop.accelerator.device)

    def step(state: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        scalars = refine_step(state, batch, generator, base=base, thresholds=(0.0, -1e9, -1e9))  # all good
        assert_sound(gradients(refiner))
        return scalars

    loop.run(same_batch, step, title="refine")
    assert seen == [torch.bfloat16]
    (row,) = loop.history
    assert row["kept"] == 1
    assert 0 < row["loss"] < float("inf")
    assert row["loss"] != torch.tensor(row["loss"]).bfloat16().float()
