"""Prompts in batches that fit the memory: out of memory halves the batch, and nothing found so far is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

log = logging.getLogger(__name__)
Found = TypeVar("Found")


class PromptBatch:
    """How many prompts go to the decoder at once. Kept over images, it remembers what fitted."""

    def __init__(self, size: int) -> None:
        """size: prompts to begin with, at least 1."""
        self.size = size

    def over(self, points: NDArray[np.float64], ask: Callable[[NDArray[np.float64]], list[Found]]) -> list[Found]:
        """What `ask` finds for `points` `[P, 2]`, batch after batch, in their order.

        A batch that does not fit is asked again in halves, and so are all later ones. Raises torch.OutOfMemoryError
        when a single prompt does not fit.
        """
        found, start = list[Found](), 0
        while start < len(points):
            part = points[start : start + self.size]
            try:
                answers = ask(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise
                fits = False
            else:
                fits = True
            if fits:
                found += answers
                start += len(part)
            else:
                self._halve(len(part))  # out here: the error held on to the tensors of its frames
        return found

    def _halve(self, tried: int) -> None:
        self.size = tried // 2
        log.warning("Out of memory with %d prompts at once: going on with %d.", tried, self.size)
        torch.cuda.empty_cache()  # nothing where there is no CUDA
