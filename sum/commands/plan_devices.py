"""The devices of this machine and the memory they have left."""

from __future__ import annotations

import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

GAPS, MOST_GAPS = 0.4, 400e6  # of the C library on a CPU: share of the tensors, bytes; see docs/results.md, "Planner"
CONTEXT = 0.6e9  # bytes of CUDA and its libraries
ROOM = 0.9  # share of the free memory that a plan may fill


@dataclass(frozen=True, slots=True)
class Device:
    """A device; bytes."""

    name: str
    device: torch.device
    free: float
    base: float  # what the program itself takes there
    here: bool = True  # so that time can be measured on it

    @property
    def grouped(self) -> bool:
        """Whether AdamW works on all parameters at once."""
        return self.device.type == "cuda"

    def whole(self, tensors: float) -> float:
        """Bytes of a process whose tensors take `tensors` at the peak."""
        return self.base + tensors + (min(GAPS * tensors, MOST_GAPS) if self.device.type == "cpu" else 0)

    def fits(self, tensors: float) -> bool:
        """Whether such a process has room here."""
        return self.whole(tensors) <= ROOM * self.free


def find_devices(cards: list[float], *, count: int = 1) -> list[Device]:
    """The CPU, every CUDA device, and cards of so many GB that are not here; count: processes that share the CPU."""
    name = f"cpu ({torch.get_num_threads()} threads)" + (f", shared by {count} processes" if count > 1 else "")
    found = [Device(name, torch.device("cpu"), free_memory() / count, _resident())]
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        found.append(Device(torch.cuda.get_device_name(device), device, torch.cuda.mem_get_info(device)[0], CONTEXT))
    absent = [Device(f"a card of {size:g} GB", torch.device("cuda"), size * 1e9, CONTEXT, here=False) for size in cards]
    return [*found, *absent]


def free_memory(root: Path = Path("/")) -> float:
    """Bytes that this machine has left, and no more than its container; infinite where Linux's files are not there.

    root: of proc and sys. What a container's files of the page cache take is given back when memory is asked for.
    """
    info = root / "proc/meminfo"
    if not info.is_file():
        return float("inf")
    free = 1024.0 * int(info.read_text().split("MemAvailable:")[1].split()[0])
    group = root / "sys/fs/cgroup"
    limit = _number(group / "memory.max")
    if limit is None:
        return free
    cached = re.search(r"^inactive_file (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
    used = (_number(group / "memory.current") or 0.0) - (float(cached[1]) if cached else 0.0)
    return min(free, max(0.0, limit - used))


def _number(path: Path) -> float | None:
    """Of a cgroup's file; None without it, or where it says `max`: no limit."""
    text = _text(path).strip()
    return float(text) if text.isdigit() else None


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _resident() -> float:
    """Bytes of this process now: about what the program takes without any tensor."""
    pages = Path("/proc/self/statm")
    if pages.is_file():
        return float(pages.read_text().split()[1]) * resource.getpagesize()
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
