"""Where a result comes from: settings, commit, DVC's lock, versions, machine.

Facts that cannot be had read 'unknown'; nothing raises.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sum.errors import ConfigError

UNKNOWN = "unknown"
TAGS = "SUM_TAGS"  # of the environment: a JSON object of further tags for the MLflow runs that begin
LARGEST = 2_000_000  # characters kept of a difference
LONGEST = 6000  # characters MLflow keeps of a parameter
COMPUTING = ("torch", "torchvision", "segment-anything", "peft", "accelerate", "safetensors")
READING = ("numpy", "scipy", "opencv-python-headless", "pillow", "pycocotools")  # photos and masks into tensors
SHOWN = (*COMPUTING, *READING, "mlflow", "dvc")


def provenance(root: Path | None = None) -> dict[str, str]:
    """Short facts for the tags of a run; root: the project (default: the working directory)."""
    folder = root or Path.cwd()
    commit, changed = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    lock = folder / "dvc.lock"
    return {
        "git.commit": commit or UNKNOWN,
        "git.dirty": UNKNOWN if changed is None else str(bool(changed)).lower(),
        "dvc.lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else UNKNOWN,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": _device(),
        **{f"version.{name}": _version(name) for name in SHOWN},
        "prefect.flow_run": os.environ.get("PREFECT__FLOW_RUN_ID", "none"),
    }


def tags_asked(environment: Mapping[str, str]) -> dict[str, str]:
    """The tags that TAGS asks for; {} without it. Raises ConfigError when it is no JSON object."""
    text = environment.get(TAGS) or "{}"
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f'{TAGS} is \'{text}\', wants a JSON object of tags such as {{"why": "a test"}}')
    return {str(key): str(value) for key, value in found.items()}


def environment() -> str:
    """Every installed distribution with its version, one a line, as `pip freeze` writes them."""
    folders = (path for place in sys.path for path in Path(place).glob("*.dist-info"))
    found = sorted(path.stem.replace("-", "==", 1) for path in folders)  # names in dist-info have no hyphen
    return "\n".join([f"# Python {platform.python_version()}, {platform.platform()}", *found]) + "\n"


def command_line() -> str:
    """How this process was started; of the interpreter the name only."""
    return shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])


def uncommitted(root: Path | None = None) -> str | None:
    """What tracked files differ from the commit in, as `git apply` takes it; None without git, or when nothing does.

    Of more than LARGEST characters only the beginning is kept, and the end says so.
    """
    change = _git(root or Path.cwd(), "diff", "--no-color", "--no-ext-diff", "--binary", "HEAD")
    if not change:
        return None
    cut = f"\n# cut after {LARGEST} of {len(change)} characters: `git apply` cannot take it\n"
    return change[:LARGEST] + (cut if len(change) > LARGEST else "\n")


def flatten(tree: Mapping[str, Any], *, above: str = "") -> dict[str, str]:
    """Nested settings -> {"optim.lr": "0.001"}; a list is one value."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        path = f"{above}{key}"
        flat |= flatten(value, above=f"{path}.") if isinstance(value, Mapping) else {path: str(value)[:LONGEST]}
    return flat


def peak_memory() -> float:
    """Peak memory so far, MB: on the accelerator if torch used one, else resident, of this process or a child's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return float(torch.cuda.max_memory_allocated() / 1e6)
    unit = 1e6 if sys.platform == "darwin" else 1e3  # macOS counts bytes, Linux kilobytes
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / unit


def _git(folder: Path, *command: str) -> str | None:
    """What git answers; None without git, a repository or a commit."""
    words = ["git", *command]
    try:
        answer = subprocess.run(
            words, cwd=folder, capture_output=True, text=True, errors="replace", timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip("\n")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return UNKNOWN


def _device() -> str:
    """What computes here, if torch is in use already; asking does not start CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return f"cpu x{os.cpu_count()}"
    return f"{torch.cuda.get_device_name()} x{torch.cuda.device_count()}"
