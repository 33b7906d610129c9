"""The devices of this machine and the memory they have left."""

from __future__ import annotations

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


def find_devices(cards: list[float]) -> list[Device]:
    """The CPU, every CUDA device, and cards of so many GB that are not here."""
    found = [Device(f"cpu ({torch.get_num_threads()} threads)", torch.device("cpu"), _free_memory(), _resident())]
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        found.append(Device(torch.cuda.get_device_name(device), device, torch.cuda.mem_get_info(device)[0], CONTEXT))
    absent = [Device(f"a card of {size:g} GB", torch.device("cuda"), size * 1e9, CONTEXT, here=False) for size in cards]
    return [*found, *absent]


def _free_memory() -> float:
    """Bytes that this machine has left, and no more than a container's limit."""
    info = Path("/proc/meminfo")
    if not info.is_file():
        return float("inf")
    free = 1024.0 * int(info.read_text().split("MemAvailable:")[1].split()[0])
    limit = Path("/sys/fs/cgroup/memory.max")
    words = limit.read_text().strip() if limit.is_file() else "max"
    return free if words == "max" else min(free, float(words))


def _resident() -> float:
    """Bytes of this process now: about what the program takes without any tensor."""
    pages = Path("/proc/self/statm")
    if pages.is_file():
        return float(pages.read_text().split()[1]) * resource.getpagesize()
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
