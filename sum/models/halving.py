"""Work in batches that fit the memory: out of memory halves the batch, and nothing found so far is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

log = logging.getLogger(__name__)
Found = TypeVar("Found")
CPU_FULL = "DefaultCPUAllocator: "  # torch has no type of its own for a machine without memory


class Halving:
    """How many things go through a model at once. Kept over images, it remembers what fitted."""

    def __init__(self, size: int, what: str = "prompts") -> None:
        """size: things to begin with, at least 1; what: they are, for the log."""
        self.size, self._what = size, what

    def over(self, count: int, ask: Callable[[slice], list[Found]]) -> list[Found]:
        """What `ask` finds for the parts of 0..count, batch after batch, in their order.

        A batch that does not fit is asked again in halves, and so are all later ones. Raises torch.OutOfMemoryError,
        or RuntimeError on a CPU, when a single thing does not fit.
        """
        found, start = list[Found](), 0
        while start < count:
            part = slice(start, min(start + self.size, count))
            tried = part.stop - part.start
            try:
                answers = ask(part)
            except RuntimeError as error:
                if tried == 1 or not is_out_of_memory(error):
                    raise
                fits = False
            else:
                fits = True
            if fits:
                found += answers
                start = part.stop
            else:
                self._halve(tried)  # out here: the error held on to the tensors of its frames
        return found

    def _halve(self, tried: int) -> None:
        self.size = tried // 2
        log.warning("Out of memory with %d %s at once: going on with %d.", tried, self._what, self.size)
        torch.cuda.empty_cache()  # nothing where there is no CUDA


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the machine itself, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or CPU_FULL in str(error)
