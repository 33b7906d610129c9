"""Shards made by one process or by many, each shard by one of them, in any order, to the same bytes."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from sum.shares import Share

POLL = 1.0  # s between looks at what others do
log = logging.getLogger(__name__)


def unfinished(names: Sequence[str], *, share: Share, is_done: Callable[[str, Path], bool]) -> list[str]:
    """Those that are not whole, or that others do not see yet. What they see, process 0 alone fetches and checks."""
    share.refresh()
    if process_rank()[0]:
        return [name for name in names if not share.shown(name)]
    return [name for name in names if not (share.shown(name) and _done(name, share, is_done))]


def open_shards(names: Sequence[str], *, share: Share, is_done: Callable[[str, Path], bool]) -> Iterator[str]:
    """Yield the shards that this process is to make, one at a time; each is its own until the next is asked for.

    is_done: whether a file is the whole shard of this name. Ends when all are made, in process 0 of `torchrun`; in the
    others when nothing is left to begin.
    """
    rank, ranks = process_rank()
    first = rank * len(names) // ranks  # far from the others, so that they seldom meet
    waiting = [*names[first:], *names[:first]]
    while waiting:
        share.refresh()
        left = []
        for name in waiting:
            if rank and share.shown(name):
                continue
            if _done(name, share, is_done):
                if not share.shown(name):  # made before there was a share, or killed before it was shown
                    share.show(name)
                continue
            with share.claims.take(name) as mine:
                if not mine:
                    left.append(name)
                    continue
                share.refresh()
                faster = rank and share.shown(name)  # somebody else
                if not faster and not _done(name, share, is_done):
                    yield name
                    share.show(name)
        if left and rank:
            log.info("%d shards are being made by other processes", len(left))
            return
        if len(left) == len(waiting):
            time.sleep(POLL)
        waiting = left


def process_rank() -> tuple[int, int]:
    """This process's number and their count, as `torchrun` says; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: torch.device) -> torch.device:
    """Of several GPUs, the one that `torchrun` means for this process."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local % torch.cuda.device_count()) if device.type == "cuda" else device


def _done(name: str, share: Share, is_done: Callable[[str, Path], bool]) -> bool:
    return share.has(name) and is_done(name, share.folder / name)
