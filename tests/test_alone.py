"""A folder has one training at a time; whoever is killed lets go, though readers of its own outlive it."""

from __future__ import annotations

import ast
import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from torch import nn

from sum.alone import alone
from sum.engine import Loop, LoopOptions
from sum.errors import InUse
from tests.forks import ended, fork

OPTIONS = LoopOptions(
    steps=1, lr=1e-3, layer_decay=1.0, weight_decay=0.0, warmup_steps=0, decay_steps=0, clip_norm=0.0, ema=0.0,
    precision="fp32", checkpoint_every=1, images_per_batch=1, seed=0, device="cpu",
)  # fmt: skip


def loop(folder: Path) -> Loop:
    return Loop(nn.Linear(1, 1), options=OPTIONS, folder=folder)


@contextmanager
def another(training: Loop) -> Iterator[int]:
    """A process that holds the folder of a training, and has started a reader that outlives it."""
    read, write = os.pipe()

    def hold() -> None:
        os.close(read)
        with alone(training):
            reader = os.fork()
            if reader:
                os.write(write, str(reader).encode())
            os.close(write)
            signal.pause()

    pid = fork(hold)
    os.close(write)
    reader = int(os.read(read, 20))  # nothing to read when it failed
    os.close(read)
    try:
        yield pid
    finally:
        os.kill(reader, signal.SIGKILL)
        with suppress(ProcessLookupError):  # the test has killed it
            os.kill(pid, signal.SIGKILL)
            ended(pid)


def test_a_second_start_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    training = loop(tmp_path / "work")
    with another(training) as holder:
        for _ in range(2):  # a refused one leaves the lock as it was
            with pytest.raises(InUse, match=f"the same training runs already: process {holder} on"), alone(training):
                raise AssertionError("it was let in")
        os.kill(holder, signal.SIGKILL)
        assert ended(holder) == -signal.SIGKILL
        with alone(training):  # at once, while the reader lives
            pass


def test_the_others_of_a_training_do_not_lock_one_another_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = loop(tmp_path)
    with another(first):
        member = loop(tmp_path)
        monkeypatch.setattr(Loop, "rank", property(lambda self: 1))
        with alone(member):
            pass
        monkeypatch.setattr(member, "told_by_first", lambda holder: "another")  # to the first one of this training
        with pytest.raises(InUse), alone(member):
            raise AssertionError("it was let in")


def test_a_disk_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", fail)
    with alone(loop(tmp_path)):
        pass
    assert "cannot be locked ([Errno 37] No locks available)" in caplog.text


@pytest.mark.parametrize(
    ("stage", "works"),
    [
        ("finetune", {"Watch", "start_record", "train", "publish"}),  # a second one would go on with the page of MLflow
        ("refine", {"loop.run"}),
        ("pretrain", {"loop.run"}),
    ],
)
def test_stages_train_alone(stage: str, works: set[str]) -> None:
    """Whatever reads or writes the folder of a training stands in the block that holds it, and nowhere else."""
    tree = ast.parse((Path(__file__).parents[1] / f"sum/stages/{stage}.py").read_text())
    blocks = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and any(ast.unparse(item) == "alone(loop)" for item in node.items)
    ]
    assert len(blocks) == 1
    inside, everywhere = called(blocks[0]), called(tree)
    for work in works:
        assert inside.count(work) == 1
        assert everywhere.count(work) == 1


def called(tree: ast.AST) -> list[str]:
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
