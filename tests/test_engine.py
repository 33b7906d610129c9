"""The loop: schedule, groups, average, steps that are left out, several processes; checkpoints: test_checkpoints.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sum.data.batches import TrainBatch
from sum.engine import MACHINE, Loop, LoopOptions, learning_rate
from sum.errors import ConfigError, TrainingDiverged
from sum.models.backbones import BACKBONES
from sum.models.groups import layer_of, parameter_groups, rate_curves

STEPS = 12
OPTIONS = {
    "steps": STEPS, "lr": 0.05, "layer_decay": 1.0, "weight_decay": 0.01, "warmup_steps": 2, "decay_steps": 4,
    "clip_norm": 1.0,
    "ema": 0.9, "precision": "fp32", "checkpoint_every": 3, "images_per_batch": 2, "seed": 4, "device": "cpu",
}  # fmt: skip


def toy_batch(step: int) -> TrainBatch:
    g = torch.Generator().manual_seed(step)
    return TrainBatch(
        image=torch.randint(0, 255, (2, 3, 4, 4), generator=g, dtype=torch.uint8),
        hw=torch.full((2, 2), 4),
        image_index=torch.arange(2),
        mask=torch.rand(2, 1, 4, 4, generator=g).round(),
        certainty=torch.ones(2, 1, 4, 4),
        point=torch.zeros(2, 2),
        task=torch.zeros(2, dtype=torch.int64),
    )


def toy_step(loop: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
    noise = torch.randn(batch.image.shape, generator=generator)
    loss = (loop.model(batch.image.float() / 255 + 0.1 * noise) - batch.mask).square().mean()
    loop.backward(loss)
    return {"loss": loss.detach()}


def toy_batches(start: int) -> Iterator[TrainBatch]:
    return (toy_batch(t) for t in range(start, STEPS))


def train(folder: Path, **changes: object) -> Loop:
    torch.manual_seed(0)
    loop = Loop(nn.Conv2d(3, 1, 3, padding=1), options=LoopOptions(**{**OPTIONS, **changes}), folder=folder)  # type: ignore[arg-type]
    loop.run(toy_batches, toy_step, title="toy")
    return loop


def same_run(a: Loop, b: Loop) -> bool:
    weights = all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))
    averages = all(torch.equal(a.average[name], b.average[name]) for name in a.average)
    rows = [[{k: v for k, v in row.items() if k not in MACHINE} for row in loop.history] for loop in (a, b)]
    return weights and averages and rows[0] == rows[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    return train(tmp_path_factory.mktemp("whole"))


def test_a_finished_run_does_nothing(whole: Loop) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.folder.iterdir()}
    assert same_run(train(whole.folder), whole)
    assert before == {p: p.stat().st_mtime_ns for p in whole.folder.iterdir()}


def test_rows_are_reported_at_each_checkpoint_also_those_of_the_run_before(tmp_path: Path) -> None:
    def told() -> list[list[float]]:
        rows: list[list[float]] = []
        loop = Loop(nn.Conv2d(3, 1, 3, padding=1), options=LoopOptions(**OPTIONS), folder=tmp_path)  # type: ignore[arg-type]
        loop.run(toy_batches, toy_step, title="toy", on_rows=lambda new: rows.append([row["step"] for row in new]))
        return rows

    assert told() == [[], [0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert told() == [list(range(STEPS))]  # at its end already
    max(tmp_path.glob("checkpoint-*")).unlink()
    assert told() == [list(range(9)), [9, 10, 11]]


def test_the_average_is_what_finish_returns(tmp_path: Path) -> None:
    loop = train(tmp_path)
    wanted = {name: value.clone() for name, value in loop.average.items()}
    finished = dict(loop.finish().named_parameters())
    assert all(torch.equal(finished[name], wanted[name]) for name in wanted)


def test_learning_rate_rises_stays_and_falls() -> None:
    options = LoopOptions(**{**OPTIONS, "steps": 10, "lr": 1.0, "warmup_steps": 3, "decay_steps": 4})  # type: ignore[arg-type]
    assert [round(learning_rate(t, options), 3) for t in range(10)] == [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]


def test_learning_rate_drops_to_a_tenth_for_the_last_steps() -> None:
    changes = {"steps": 6, "lr": 1.0, "warmup_steps": 1, "decay_steps": 0, "drop_last": 2}
    options = LoopOptions(**{**OPTIONS, **changes})  # type: ignore[arg-type]
    assert [learning_rate(t, options) for t in range(6)] == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1])


@pytest.mark.parametrize("backbone", ["tiny", "vit_b"])
def test_layer_decay_groups(backbone: str) -> None:
    with torch.device("meta"):
        model = BACKBONES[backbone].build()
    blocks = len(model.image_encoder.blocks)
    groups = parameter_groups(model, layer_decay=0.8, weight_decay=0.1)
    scale = {name: group["scale"] for group in groups for name in group["names"]}
    assert sorted(scale) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    for name, value in scale.items():
        block = name.split(".")[2] if name.startswith("image_encoder.blocks.") else None
        early = name.startswith(("image_encoder.patch_embed", "image_encoder.pos_embed"))
        layer = 0 if early else int(block) + 1 if block is not None else blocks + 1
        assert value == pytest.approx(0.8 ** (blocks + 1 - layer)), name
    spared = {name for group in groups for name in group["names"] if not group["weight_decay"]}
    tables = {name for name in spared if dict(model.named_parameters())[name].ndim > 1}
    assert tables == {
        *(f"prompt_encoder.point_embeddings.{i}.weight" for i in range(4)),
        "prompt_encoder.not_a_point_embed.weight",
        "prompt_encoder.no_mask_embed.weight",
        "mask_decoder.iou_token.weight",
        "mask_decoder.mask_tokens.weight",
        *(name for name in scale if name.endswith((".position", "pos_embed", "rel_pos_h", "rel_pos_w"))),
    }
    assert all(name in spared for name in scale if name.endswith("bias"))


def test_a_curve_of_the_learning_rate_for_each_layer() -> None:
    with torch.device("meta"):
        model = BACKBONES["tiny"].build()
    groups = parameter_groups(model, layer_decay=0.5, weight_decay=0.1)
    blocks = {f"lr/encoder_{n:02d}": 0.5 ** (4 - n) for n in range(4)}
    assert rate_curves(groups) == {"lr/patch_embed": 0.5**5, **blocks, "lr/decoder": 1.0}
    assert rate_curves(parameter_groups(model, layer_decay=1.0, weight_decay=0.1)) == {}
    model.image_encoder.requires_grad_(False)
    assert rate_curves(parameter_groups(model, layer_decay=0.5, weight_decay=0.1)) == {}


def test_layer_of_the_task_prompt_is_the_last() -> None:
    assert layer_of("task_prompt", blocks=12) == 13
    assert layer_of("sam.image_encoder.blocks.11.attn.qkv.weight", blocks=12) == 12
    assert layer_of("sam.image_encoder.pos_embed", blocks=12) == 0


@pytest.mark.slow
def test_two_processes_give_the_mean_gradient_and_one_history(tmp_path: Path) -> None:
    code = """
import json, sys
from pathlib import Path
import torch
import tests.test_engine as t
from sum.engine import Loop, LoopOptions

torch.manual_seed(0)
options = LoopOptions(**{**t.OPTIONS, "steps": 1, "checkpoint_every": 1})
loop = Loop(torch.nn.Conv2d(3, 1, 3, padding=1), options=options, folder=Path(sys.argv[1]))

def step(loop, batch, generator):
    loss = (loop.model(batch.image.float() / 255) * (1 + loop.rank)).mean()
    loop.backward(loss)
    return {"loss": loss.detach()} | ({"own": torch.tensor(7.0)} if loop.rank else {})

loop.run(t.toy_batches, step, title="toy")
Path(f"{sys.argv[1]}-{loop.rank}.json").write_text(json.dumps(loop.history))
"""
    script = tmp_path / "two.py"
    script.write_text(code)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        str(tmp_path / "two"),
    ]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ".", "CUDA_VISIBLE_DEVICES": ""}, timeout=300)
    found = load_file(next((tmp_path / "two").glob("*.safetensors")))["adam.exp_avg.weight"]
    torch.manual_seed(0)
    model = nn.Conv2d(3, 1, 3, padding=1)
    (model(toy_batch(0).image.float() / 255) * 1.5).mean().backward()
    assert model.weight.grad is not None
    gradient = model.weight.grad * min(
        1.0, 1.0 / float(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm())
    )
    torch.testing.assert_close(found, 0.1 * gradient, rtol=1e-4, atol=1e-6)
    (row,), (other,) = (json.loads((tmp_path / f"two-{rank}.json").read_text()) for rank in range(2))
    assert row | {"seconds": 0} == other | {"seconds": 0}
    torch.manual_seed(0)
    loss = float(nn.Conv2d(3, 1, 3, padding=1)(toy_batch(0).image.float() / 255).mean().detach())
    assert (row["loss"], row["own"], row["masks"]) == (pytest.approx(1.5 * loss, rel=1e-5), 7.0, 4.0)


def test_fewer_images_than_processes_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "ranks", 3)  # stands for torchrun's three processes
    with pytest.raises(ConfigError, match=r"optim\.images_per_batch is 2, no multiple of the 3 processes"):
        Loop(nn.Conv2d(3, 1, 3), options=LoopOptions(**OPTIONS), folder=tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_left_out(tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """Weights, moments and average are untouched by it, it is counted, and the run ends as if nothing had been."""
    seen = list[dict[str, torch.Tensor]]()

    def state(loop: Loop) -> dict[str, torch.Tensor]:
        found = {name: value.detach().clone() for name, value in loop.model.named_parameters()}
        found |= {f"average {name}": value.clone() for name, value in loop.average.items()}
        for number, moments in enumerate(loop.optimizer.state.values()):
            found |= {f"{key} {number}": value.clone() for key, value in moments.items()}
        return found

    def step(loop: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        seen.append(state(loop))
        scalars = toy_step(loop, batch, generator)
        if loop.step == 4 and what == "gradient":
            next(loop.model.parameters()).grad[0] = float("inf")  # type: ignore[index]
        return scalars | ({"loss": torch.tensor(float("nan"))} if loop.step == 4 and what == "loss" else {})

    torch.manual_seed(0)
    options = LoopOptions(**{**OPTIONS, "ema": 0.9})  # type: ignore[arg-type]
    loop = Loop(nn.Conv2d(3, 1, 3, padding=1), options=options, folder=tmp_path)
    with caplog.at_level("WARNING"):
        loop.run(toy_batches, step, title="toy")
    assert loop.step == STEPS
    assert "step 4 is left out" in caplog.text
    assert [row["skipped"] for row in loop.history] == [float(n == 4) for n in range(STEPS)]
    assert seen[4].keys() == seen[5].keys()
    assert all(torch.equal(seen[4][name], seen[5][name]) for name in seen[4])
    assert not any(torch.equal(seen[5][name], seen[6][name]) for name in ("weight", "average weight", "exp_avg 0"))
    assert all(torch.isfinite(value).all() for value in loop.model.parameters())


def test_too_many_such_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    def diverge(loop: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        loss = loop.model(batch.image.float()).mean() * (float("nan") if loop.step in (1, 4, 5, 6) else 1.0)
        loop.backward(loss)
        return {"loss": loss.detach()}

    options = LoopOptions(**{**OPTIONS, "max_skipped": 3})  # type: ignore[arg-type]
    loop = Loop(nn.Conv2d(3, 1, 3, padding=1), options=options, folder=tmp_path)
    with pytest.raises(TrainingDiverged, match=r"steps 4 to 6: no loss or gradient was finite.*max_skipped is 3"):
        loop.run(toy_batches, diverge, title="toy")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert loop.good == tmp_path / names[-1]
    assert names == ["checkpoint-0000003.safetensors"]  # none of the row
    assert all(torch.isfinite(p).all() for p in loop.model.parameters())


@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_run_with_steps_left_out_ends_the_same_wherever_it_was_stopped(tmp_path: Path, every: int) -> None:
    """Saves come in no row of such steps, after it, and at the last step, though that is left out."""
    bad, options = (1, 4, 5, 6, 9, STEPS - 1), LoopOptions(**{**OPTIONS, "checkpoint_every": every, "max_skipped": 4})  # type: ignore[arg-type]

    def run(folder: Path, stop: int | None = None) -> tuple[Loop, list[int]]:
        saved = list[int]()

        def step(loop: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
            if loop.step == stop:
                raise InterruptedError
            scalars = toy_step(loop, batch, generator)
            return {"loss": scalars["loss"] * (float("nan") if loop.step in bad else 1.0)}

        torch.manual_seed(0)
        loop = Loop(nn.Conv2d(3, 1, 3, padding=1), options=options, folder=folder)
        with suppress(InterruptedError):
            loop.run(toy_batches, step, title="toy", on_checkpoint=lambda: saved.append(loop.step))
        return loop, saved

    whole, saved = run(tmp_path / "whole")
    assert saved == {1: [0, 1, 3, 4, 8, 9, 11, 12], 2: [0, 3, 4, 8, 11, 12], 5: [0, 8, 11, 12]}[every]
    for stop in range(STEPS):
        _, before = run(tmp_path / str(stop), stop)
        again, after = run(tmp_path / str(stop))
        assert before + after[1:] == saved
        assert after[0] == before[-1]
        assert same_run(again, whole)


@pytest.mark.parametrize(("every", "good"), [(2, "checkpoint-0000002.safetensors"), (9, None)])
def test_a_damaged_file_is_not_called_the_newest_checkpoint(tmp_path: Path, every: int, good: str | None) -> None:
    def diverge(loop: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        scalars = toy_step(loop, batch, generator)
        return {"loss": scalars["loss"] * (float("nan") if loop.step > 1 else 1.0)}

    (tmp_path / "checkpoint-0000008.safetensors").write_bytes(b"damaged")
    options = LoopOptions(**{**OPTIONS, "max_skipped": 1, "checkpoint_every": every})  # type: ignore[arg-type]
    words = f"{tmp_path / good} is the newest checkpoint from before" if good else "There is no checkpoint yet"
    for _ in range(2):  # the second run takes it up
        loop = Loop(nn.Conv2d(3, 1, 3, padding=1), options=options, folder=tmp_path)
        with pytest.raises(TrainingDiverged, match=re.escape(words)):
            loop.run(toy_batches, diverge, title="toy")


@pytest.mark.parametrize("error", [TrainingDiverged, KeyboardInterrupt])
def test_the_steps_that_led_to_an_error_are_reported_before_it(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(loop: Loop, batch: TrainBatch, generator: torch.Generator) -> dict[str, Tensor]:
        scalars = toy_step(loop, batch, generator)
        if loop.step == 6 and error is KeyboardInterrupt:
            raise error
        return {"loss": scalars["loss"] * (float("nan") if loop.step > 3 else 1.0)}

    rows, checkpoints = list[dict[str, float]](), list[int]()
    options = LoopOptions(**{**OPTIONS, "max_skipped": 2 if error is TrainingDiverged else 9, "checkpoint_every": 3})  # type: ignore[arg-type]
    loop = Loop(nn.Conv2d(3, 1, 3, padding=1), options=options, folder=tmp_path)
    with pytest.raises(error):
        loop.run(
            toy_batches, fail, title="toy", on_rows=rows.extend, on_checkpoint=lambda: checkpoints.append(loop.step)
        )
    skipped = [0, 0, 0, 0, 1, 1]
    assert [(row["step"], row["skipped"]) for row in rows] == list(enumerate(skipped))
    assert checkpoints == [0, 3]  # none in the row
