"""What a power cut may find: bytes reach the disk before their name does, and the name before anyone is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sum.files import replace_folder, write_atomic
from sum.tensor_files import write_tensors


def a_file(folder: Path) -> None:
    write_atomic(folder / "it", b"new")


def a_checkpoint(folder: Path) -> None:
    write_tensors(folder / "it", {"x": torch.ones(3)}, facts={})


def a_folder(folder: Path) -> None:
    with replace_folder(folder / "it") as partial:
        (partial / "one").write_bytes(b"new")


@pytest.mark.parametrize(
    ("write", "synced"),
    [
        (a_file, [".it.partial"]),
        (a_checkpoint, [".it.partial"]),
        (a_folder, [".it.partial/one", ".it.partial"]),
    ],
)
def test_what_is_written_reaches_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None], synced: list[str]
) -> None:
    calls: list[tuple[str, str]] = []
    own, move = f".{os.getpid()}.", Path.replace
    sync, rename = os.fsync, Path.rename

    def told(path: object) -> str:
        return os.path.relpath(str(path), tmp_path).replace(own, ".")

    def fsync(handle: int) -> None:
        calls.append(("sync", told(Path(f"/proc/self/fd/{handle}").readlink())))
        sync(handle)

    def moved(how: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def call(self: Path, target: Path) -> Path:
            calls.append((told(self), told(target)))
            return how(self, target)

        return call

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", moved(move))
    monkeypatch.setattr(Path, "rename", moved(rename))
    write(tmp_path)
    assert calls == [*(("sync", name) for name in synced), (".it.partial", "it"), ("sync", ".")]
    if write is not a_folder:
        return
    calls.clear()
    write(tmp_path)  # the old folder goes out of the way last of all
    assert calls == [*(("sync", n) for n in synced), ("it", ".it.old"), (".it.partial", "it"), ("sync", ".")]
