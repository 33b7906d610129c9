"""A folder has one training at a time; whoever is killed lets go, though readers of its own outlive it."""

from __future__ import annotations

import errno
import fcntl
import inspect
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from torch import nn

from sum.alone import alone
from sum.engine import Loop, LoopOptions
from sum.errors import Refused
from sum.stages import finetune
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
            with pytest.raises(Refused, match="the same training runs already"), alone(training):
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
        monkeypatch.setattr(member, "told_by_first", lambda mine: False)  # the first one of this training was refused
        with pytest.raises(Refused), alone(member):
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


def test_finetuning_holds_its_folder_before_it_has_a_page_of_mlflow() -> None:
    """Else the second one would go on with the first one's page."""
    text = inspect.getsource(finetune.run)
    assert 0 < text.index("with alone(loop)") < text.index("start_record(")
