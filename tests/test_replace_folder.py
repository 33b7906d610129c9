"""Folders that appear whole or not at all: errors, kills, and two processes at one folder."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sum.errors import MissingInput, StorageError
from sum.storage import replace_folder

ROOT = Path(__file__).parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replace_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with replace_folder(tmp_path / "deep" / "out") as folder:
            assert names(folder) == []
            (folder / text).write_text(text)
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["two"]


@pytest.mark.parametrize(
    ("error", "want"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (RuntimeError("a bug"), RuntimeError),
        (MissingInput("x", reader="a", maker="b"), MissingInput),
    ],
)
def test_replace_folder_keeps_the_old_one_on_an_error(tmp_path: Path, error: Exception, want: type[Exception]) -> None:
    out = tmp_path / "out"
    with replace_folder(out) as folder:
        (folder / "old").touch()
    with pytest.raises(want), replace_folder(out) as folder:  # noqa: PT012 -- the block is what is tested
        (folder / "new").touch()
        raise error
    assert names(tmp_path) == ["out"]
    assert names(out) == ["old"]


def test_a_kill_in_the_middle_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with replace_folder(out) as folder:
        (folder / "old").write_text("old")
    code = (
        "import sys, time; from pathlib import Path; from sum.storage import replace_folder\n"
        "with replace_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'new').write_text('half'); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert (out / "old").read_text() == "old"
    with replace_folder(out) as folder:  # and the next run is not disturbed by what lies there
        assert names(folder) == []
        (folder / "new").write_text("whole")
    assert names(tmp_path) == ["out"]
    assert names(out) == ["new"]


def test_two_processes_do_not_touch_each_others_parts(tmp_path: Path) -> None:
    """A stage started by hand while a flow runs it: each ends with a whole folder, the last one stays."""
    out = tmp_path / "out"
    code = (
        "import sys; from pathlib import Path; from sum.storage import replace_folder\n"
        "with replace_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'slow').touch(); print('ready', flush=True); sys.stdin.read(); assert (folder / 'slow').exists()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, str(out)], cwd=ROOT, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with replace_folder(out) as folder:
            (folder / "quick").touch()
        assert names(out) == ["quick"]
        other.communicate()
    assert other.returncode == 0
    assert names(out) == ["slow"]
    assert names(tmp_path) == ["out"]
