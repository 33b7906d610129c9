"""How many masks train at once: out of memory halves it, and the step is done again as if nothing had happened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from sum.errors import OutOfMemory
from sum.models.halving import is_out_of_memory

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

ALL = 1 << 30  # more masks than any batch has


class MaskChunk:
    """The masks of a batch that are at work at once. Kept over steps, it remembers what fitted.

    size: masks, at least 1. failures: how often the memory did not suffice so far.
    """

    def __init__(self, size: int | None = None) -> None:
        """size: masks to begin with; None: all of a batch."""
        self.size = size or ALL
        self.failures = 0

    def parts(self, count: int) -> list[slice]:
        """`count` masks in their order, at most `size` at a time."""
        return [slice(start, min(start + self.size, count)) for start in range(0, count, self.size)]

    def over(self, count: int, parameters: Iterable[Tensor], attempt: Callable[[Sequence[slice]], Answer]) -> Answer:
        """What `attempt` answers for the parts of `count` masks; it adds gradients to `parameters`.

        When the memory does not suffice, all parts are done again in halves, and so are later batches: no gradient of
        the failed try is left, those from before it are. Raises OutOfMemory when a single mask does not fit.
        """
        values = list(parameters)
        before = [value.grad for value in values]  # put aside, not copied
        while True:
            _set_grads(values, [None] * len(values))
            try:
                answer = attempt(self.parts(count))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason, fits = str(error), False
            else:
                fits = True
            if fits:
                _set_grads(values, [_added(old, value.grad) for old, value in zip(before, values, strict=True)])
                return answer
            self._halve(min(self.size, count), reason)  # out here: the error held on to the tensors of its frames

    def _halve(self, tried: int, reason: str) -> None:
        self.failures += 1
        if tried <= 1:
            raise no_room("one mask at a time", reason)
        self.size = tried // 2
        log.warning("Out of memory with %d masks at once: going on with %d.", tried, self.size)
        torch.cuda.empty_cache()  # nothing where there is no CUDA


def no_room(what: str, reason: str, *, mend: str = "") -> OutOfMemory:
    """The error of a step that cannot be made smaller.

    what: was tried; reason: the device's own words; mend: what to do before one changes batch or precision.
    """
    return OutOfMemory(
        f"the memory does not suffice for a training step with {what} ({' '.join(reason.split())[:200]}). {mend}Lower "
        "optim.images_per_batch, or set optim.precision to bf16; `python -m sum plan` says what fits."
    )


@contextmanager
def needs_room(what: str, *, mend: str = "") -> Iterator[None]:
    """Where fewer masks at once would not help: out of memory in here raises OutOfMemory; see `no_room`."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise no_room(what, str(error), mend=mend) from error
        raise


def _set_grads(values: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for value, grad in zip(values, grads, strict=True):
        value.grad = grad


def _added(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None else old if new is None else old.add_(new)
