"""Checkpoints: their bytes, damage, kills at every call to the disk, and what several processes go on from."""

from __future__ import annotations

import hashlib
import logging
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sum.checkpoints import Checkpoint, newest
from sum.engine import Loop
from sum.errors import CheckpointError, Refused, StorageError
from sum.tensor_files import check, read_facts, read_tensors, write_tensors
from tests.forks import Forked, ended, fork, fork_beside_threads, gang
from tests.test_engine import OPTIONS, STEPS, LoopOptions, same_run, train

LAST = f"checkpoint-{STEPS:07d}.safetensors"
pytestmark = fork_beside_threads


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    return train(tmp_path_factory.mktemp("whole"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def copied(whole: Loop, folder: Path) -> Path:
    shutil.copytree(whole.folder, folder)
    return folder


def test_a_file_is_what_the_library_reads_and_ends_with_the_hash_of_the_rest(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "b": torch.randn(3, 5, generator=generator).to(torch.bfloat16),
        "a": torch.randn(4, 6, generator=generator).t(),  # its numbers do not lie in order
        "one": torch.tensor(7.5),
        "none": torch.empty(0, 4),
        "flags": torch.tensor([True, False, True]),
        "large": torch.arange(5),
        "wide": torch.randn(2, generator=generator, dtype=torch.float64),
    }
    path = tmp_path / "deep" / "x.safetensors"
    digest = write_tensors(path, tensors, facts={"step": "3"})
    found = load_file(path)
    assert bytes(found.pop("sha256").tolist()).hex() == digest == check(path)
    assert found.keys() == tensors.keys() == dict(read_tensors(path)).keys()
    for name, value in tensors.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype
    assert hashlib.sha256(path.read_bytes()[:-32]).hexdigest() == digest
    assert read_facts(path) == {"step": "3"}
    assert names(path.parent) == ["x.safetensors"]


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.arange(9.0)}, facts={"step": "3"})
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match=r"x\.safetensors: its content does not match the SHA-256"):
            check(path)
    for size in range(0, len(data), 9):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            check(path)
    path.write_bytes(data + b"0")
    with pytest.raises(CheckpointError):
        check(path)


def test_a_write_holds_no_copy_of_the_state(tmp_path: Path) -> None:
    """Peak resident memory over what there was before, of a state of 100 MB; `save_file` of bytes took two more."""
    state = {str(number): torch.ones(5_000_000) for number in range(5)}

    def memory(key: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    def work() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory("VmRSS")
        write_tensors(tmp_path / "x.safetensors", state, facts={})
        assert memory("VmHWM") - before < 20e6

    assert ended(fork(work)) == 0
    assert (tmp_path / "x.safetensors").stat().st_size > 100e6


def test_what_a_checkpoint_holds_and_that_only_two_are_kept(whole: Loop) -> None:
    assert names(whole.folder) == ["checkpoint-0000009.safetensors", LAST]
    found = load_file(whole.folder / LAST)
    moments = {f"adam.{key}.{name}" for key in ("exp_avg", "exp_avg_sq", "step") for name in ("weight", "bias")}
    values = {f"{kind}.{name}" for kind in ("model", "average") for name in ("weight", "bias")}
    assert found.keys() == moments | values | {"history", "sha256"}
    assert torch.equal(found["model.weight"], whole.model.weight)
    assert torch.equal(found["average.bias"], whole.average["bias"])
    assert torch.equal(found["adam.exp_avg_sq.weight"], whole.optimizer.state[whole.model.weight]["exp_avg_sq"])
    assert read_facts(whole.folder / LAST)["step"] == str(STEPS)


@pytest.mark.parametrize("damage", ["cut", "bit", "history", "empty", "folder"])
def test_a_damaged_checkpoint_is_named_and_passed_over(
    whole: Loop, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    folder = copied(whole, tmp_path / "run")
    path, data = folder / LAST, (folder / LAST).read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
        path = path.rename(folder / "checkpoint-0000099.safetensors")
    elif damage == "history":
        path.write_bytes(data.replace(b'"grad_norm"', b'"grad_warm"'))
    else:
        path.write_bytes(
            {"cut": data[:-100], "bit": data[:-70] + bytes([data[-70] ^ 1]) + data[-69:], "empty": b""}[damage]
        )
    with caplog.at_level(logging.INFO):
        again = train(folder)
    assert f"{path} cannot be read" in caplog.text
    assert "resumed at step 9 from" in caplog.text
    assert same_run(again, whole)
    assert check(folder / LAST)


def test_where_all_are_damaged_the_new_ones_are_not_taken_for_old(
    whole: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(whole, tmp_path / "run")
    for path in folder.iterdir():
        path.write_bytes(b"damaged")
    seen = []
    real = Loop.save

    def save(loop: Loop) -> None:
        real(loop)
        seen.append(newest(folder))

    monkeypatch.setattr(Loop, "save", save)
    assert same_run(train(folder), whole)
    assert [found and found.name for found in seen] == [f"checkpoint-{step:07d}.safetensors" for step in (3, 6, 9, 12)]
    assert names(folder) == ["checkpoint-0000009.safetensors", LAST]


def test_a_checkpoint_of_another_model_is_refused(whole: Loop, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "run")
    for model in (nn.Conv2d(3, 1, 5), nn.Sequential(nn.Conv2d(3, 1, 3)), nn.Conv2d(3, 1, 3, bias=False)):
        loop = Loop(model, options=LoopOptions(**OPTIONS), folder=folder)  # type: ignore[arg-type]
        with pytest.raises(CheckpointError, match=rf"{LAST}: '.*' is not as this model has it"):
            loop.resume()
    options = LoopOptions(**{**OPTIONS, "ema": 0.0})  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"'average\.(weight|bias)' is not as this model has it"):
        Loop(nn.Conv2d(3, 1, 3, padding=1), options=options, folder=folder).resume()
    options = LoopOptions(**OPTIONS)  # type: ignore[arg-type]
    larger = nn.Sequential()
    larger.weight, larger.bias, larger.more = whole.model.weight, whole.model.bias, nn.Parameter(torch.ones(1))  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=r"'(model|average)\.more' is not as this model has it"):
        Loop(larger, options=options, folder=folder).resume()


def test_a_full_disk_leaves_what_was_there(whole: Loop, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a write beyond fails, as Python ignores the signal
        with pytest.raises(StorageError, match=r"x\.safetensors: .*"):
            write_tensors(folder / "x.safetensors", {"a": torch.ones(1000)}, facts={})

    assert ended(fork(work)) == 0
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def die_at(folder: Path, call: int) -> None:
    """Let this process get SIGKILL at call number `call` that opens, renames or removes something in `folder`."""
    seen = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(str(folder)):
            seen.append(event)
            if len(seen) == call:
                signal.raise_signal(signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.slow
def test_a_run_killed_at_any_call_to_the_disk_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path: Path) -> None:
    """kill -9 of a copy of this process, then the rest of the run here; until a copy lives to the end."""
    short = {"steps": 3, "checkpoint_every": 1}
    whole = train(tmp_path / "whole", **short)
    steps = []
    for call in range(1, 100):
        folder = tmp_path / str(call)

        def work(folder: Path = folder, call: int = call) -> None:
            die_at(folder, call)
            train(folder, **short)

        code = ended(fork(work))
        found = newest(folder)
        steps.append(int(found.name[11:18]) if found else 0)
        assert same_run(train(folder, **short), whole)
        assert not list(folder.glob(".*"))  # nothing is left of the killed one
        shutil.rmtree(folder)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert steps == sorted(steps)  # what was there once is not lost again
    assert set(steps) == {0, 1, 2, 3}
    assert len(steps) > 3 * 4


@pytest.mark.parametrize("size", [0, 700, 1500])
def test_a_run_killed_within_a_write_ends_the_same(whole: Loop, tmp_path: Path, size: int) -> None:
    """The system itself kills a copy of this process at byte `size` of the first file."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        train(tmp_path)

    assert ended(fork(work)) == -signal.SIGXFSZ
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    assert same_run(train(tmp_path), whole)
    assert names(tmp_path) == ["checkpoint-0000009.safetensors", LAST]


def test_all_processes_go_on_from_what_the_first_finds_or_none_does(whole: Loop, tmp_path: Path) -> None:
    """Two gloo processes, each with a folder of its own, as on machines that do not share a disk."""
    cases = {
        "same": {},
        "missing": {1: lambda path: path.unlink()},
        "damaged": {1: lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")},
        "another": {1: lambda path: write_tensors(path, {"a": torch.ones(1)}, facts={})},
        "newer": {0: lambda path: path.unlink()},  # the second has one more
        "damaged both": {rank: lambda path: path.write_bytes(b"damaged") for rank in (0, 1)},
        "none": {0: lambda path: shutil.rmtree(path.parent)},
    }
    for case, changes in cases.items():
        for rank in (0, 1):
            folder = copied(whole, tmp_path / case / str(rank))
            changes.get(rank, lambda path: None)(folder / LAST)

    def work(rank: int) -> list[str]:
        told = []
        for case in cases:
            torch.manual_seed(0)
            options = LoopOptions(**OPTIONS)  # type: ignore[arg-type]
            loop = Loop(nn.Conv2d(3, 1, 3, padding=1), options=options, folder=tmp_path / case / str(rank))
            try:
                loop.resume()
            except Refused as error:
                told.append(str(error))
            else:
                told.append(f"{loop.step} {len(loop.history)} {loop.model.weight.sum():.6f}")
        return told

    first, second = gang(2, work, tmp_path)
    assert first == second
    found = dict(zip(cases, first, strict=True))
    assert found["same"] == f"{STEPS} {STEPS} {whole.model.weight.sum():.6f}"
    assert found["newer"] == found["damaged both"]
    assert found["newer"].startswith("9 9 ")
    assert found["none"].startswith("0 0 ")
    place = tmp_path / "missing/1" / LAST
    words = f"process 1 of 2 cannot go on from the checkpoint: {place} does not exist"
    assert found["missing"].startswith(words)
    assert "all processes need the same work/" in found["missing"]
    assert "its content does not match the SHA-256" in found["damaged"]
    assert "another file than that of process 0" in found["another"]


def test_a_folder_that_refuses_is_told_as_it_is(whole: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> Checkpoint:
        raise StorageError(f"{folder}: Permission denied.")

    monkeypatch.setattr("sum.engine.newest", refuse)
    with pytest.raises(Refused, match=r"process 0 of 1 .*Permission denied"):
        train(tmp_path)


def test_a_copy_of_this_process_ends_with_its_error_in_its_log(tmp_path: Path) -> None:
    def work() -> None:
        raise ValueError("as it should")

    assert Forked(work, tmp_path / "log").wait(30) == 1
    assert "ValueError: as it should" in (tmp_path / "log").read_text()
