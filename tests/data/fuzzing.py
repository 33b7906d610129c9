"""Files of miniatures, changed by chance, through the real layouts: what may come out is a SumError or sound items.

A case is a pure function of (world, seed, number), so a failing one can be run again alone; see `Fuzzer.case`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle

from sum.data.layouts import LAYOUTS
from sum.data.sources import Item, Layout, Note, Problem, Sample, Source
from sum.errors import SumError

SECONDS = 10  # of one case; a sound one takes milliseconds
MEMORY = 1_500_000_000  # bytes of address space more than at the start; the miniatures hold kilobytes
ODD: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1,
    0.5,
    -0.0,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    2**31,
    2**63,
    2**70,
    "",
    "x",
    "../../x.jpg",
    "/etc/hostname",
    "a\0b",
    "\ud800",
    "a" * 5000,
    "1",
    "nan",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"id": 1},
    [1, 2],
    [[1, 2, 3, 4, 5, 6]],
    [[float("nan")] * 6],
    {"size": [24, 32], "counts": "0"},
    {"size": [24, 32], "counts": [768]},
    {"size": [2**40, 2**40], "counts": [2**80]},
    {"size": [24, 32], "counts": "oooooooo"},
    {"counts": []},
]


class Hang(BaseException):
    """A case took longer than SECONDS; no Exception, so that no reader can swallow it."""


@dataclass(frozen=True)
class World:
    """A miniature: how it is written below a root, and what reads it."""

    kind: str
    write: Callable[[Path], object]
    of: Callable[[Path], Source]


class Fuzzer:
    """One miniature on the disk, changed one file at a time."""

    def __init__(self, root: Path, world: World, *, layout: Layout | None = None) -> None:
        """root: an empty folder; layout: instead of the kind's own, to try this file's own eyes."""
        root.mkdir(parents=True, exist_ok=True)
        world.write(root)
        self.root, self.source = root, world.of(root)
        self.layout = layout or LAYOUTS[world.kind]
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        self.content = {path: path.read_bytes() for path in files}
        self.results = {"refused": 0, "problems": 0, "samples": 0}

    def case(self, seed: int, number: int) -> str:
        """Run one case; returns what is wrong, or ''. The files are as before afterwards."""
        rng = np.random.default_rng([seed, number])
        path = list(self.content)[int(rng.integers(len(self.content)))]
        data = self.content[path]
        for _ in range(int(rng.integers(1, 4))):
            data = self._changed(data, path, rng)
        self._put(path, data)
        try:
            return self._wrong()
        finally:
            self._put(path, self.content[path])

    def _put(self, path: Path, data: bytes) -> None:
        path.unlink()  # a link may share its bytes
        path.write_bytes(data)

    def _changed(self, data: bytes, path: Path, rng: np.random.Generator) -> bytes:
        if rng.random() < 0.05:  # another file's bytes under this name
            return list(self.content.values())[int(rng.integers(len(self.content)))]
        if path.suffix == ".json" and rng.random() < 0.7:
            try:
                return json.dumps(edited(json.loads(data), rng)).encode()
            except (ValueError, RecursionError):
                pass  # an earlier change left no JSON: change its bytes
        return mangled(data, rng)

    def _wrong(self) -> str:
        try:
            with bounded_time(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on EXIF are no errors outside the tests
                items = [item for job in self.layout(self.source) for item in job.read()]
        except SumError as error:
            self.results["refused"] += 1
            return "" if str(error) else "an error without a word"
        except Hang:
            return f"no end within {SECONDS} s"
        except Exception as error:  # noqa: BLE001  # this is what is looked for
            return f"{type(error).__name__}: {error}"
        self.results["problems"] += sum(isinstance(item, Problem) for item in items)
        self.results["samples"] += sum(isinstance(item, Sample) for item in items)
        return unsound(items)


def unsound(items: list[Item]) -> str:
    """What is wrong with what a layout gave, or ''."""
    seen = set[str]()
    for item in items:
        if isinstance(item, Problem):
            if not (item.file and item.reason and item.remedy):
                return f"a problem without file, reason or remedy: {item}"
        elif isinstance(item, Sample):
            ids = [item.image.image_id, *(mask.mask_id for mask in item.masks)]
            if len(set(ids)) < len(ids) or seen & set(ids):
                return f"an id twice: {ids}"
            seen |= set(ids)
            height, width = item.image.height, item.image.width
            for mask in item.masks:
                pixels = rle.decode({"size": [height, width], "counts": mask.rle.encode()})
                if not 0 < mask.area == int(pixels.sum()):
                    return f"{mask.mask_id}: area {mask.area}, its pixels are {int(pixels.sum())}"
                if not (0 <= mask.x0 <= mask.x1 < width and 0 <= mask.y0 <= mask.y1 < height):
                    return f"{mask.mask_id}: the box leaves the image"
        elif not isinstance(item, Note):
            return f"neither sample, problem nor note: {item}"
    return ""


def mangled(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with bits turned, or a part cut off, cut out, put in, doubled or wiped."""
    size = len(data)
    at = int(rng.integers(size + 1))
    stop = min(size, at + int(rng.integers(1, 65)))
    match int(rng.integers(7)):
        case 0:
            changed = bytearray(data)
            for place in rng.integers(max(size, 1), size=int(rng.integers(1, 9))):
                if size:
                    changed[place] ^= 1 << int(rng.integers(8))
            return bytes(changed)
        case 1:
            return data[:at]
        case 2:
            return data[:at] + data[stop:]
        case 3:
            return data[:at] + rng.bytes(int(rng.integers(1, 65))) + data[at:]
        case 4:
            return data[:stop] + data[at:stop] * int(rng.integers(1, 40)) + data[stop:]
        case 5:
            return data[:at] + bytes(stop - at) + data[stop:]
        case _:
            return data[:at] + b"\xff" * (stop - at) + data[stop:]


def edited(tree: Any, rng: np.random.Generator) -> Any:
    """A JSON tree with one value replaced by an odd one, taken out or put in twice; the place is drawn by level."""
    if not isinstance(tree, dict | list) or not tree or rng.random() < 0.1:
        return ODD[int(rng.integers(len(ODD)))]
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = keys[int(rng.integers(len(keys)))]
    changed = tree.copy()
    how = rng.random()
    if how < 0.05:
        del changed[key]
    elif how < 0.1 and isinstance(tree, list):
        changed.append(tree[key])
    elif how < 0.2 and type(tree[key]) in (int, float):
        changed[key] = tree[key] + [-1, 1, 0.5, 2**32, -(2**32), 1e9][int(rng.integers(6))]
    else:
        changed[key] = edited(tree[key], rng)
    return changed


@contextmanager
def bounded_time() -> Iterator[None]:
    """Raise Hang when the block takes longer than SECONDS. Main thread only."""

    def late(*_: object) -> None:
        raise Hang

    began, before = time.monotonic(), signal.signal(signal.SIGALRM, late)
    others, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)  # again, if a finalizer swallows the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if others:  # pytest-timeout's own
            signal.setitimer(signal.ITIMER_REAL, max(0.001, others - (time.monotonic() - began)))


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Within the block an allocation beyond MEMORY more than now is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def run_world(
    root: Path, name: str, world: World, *, seed: int, numbers: range, layout: Layout | None = None
) -> tuple[list[str], dict[str, int]]:
    """Failures of these cases, each with what is needed to run it again (at most five), and counts of what came out."""
    fuzzer, failures = Fuzzer(root, world, layout=layout), list[str]()
    with bounded_memory():
        for number in numbers:
            wrong = fuzzer.case(seed, number)
            if wrong:
                failures.append(f"SUM_FUZZ='{name}:{seed}:{number}' pytest tests/data/test_fuzz.py: {wrong[:300]}")
                if len(failures) == 5:
                    break
    shutil.rmtree(root)
    return failures, fuzzer.results


def set_below(source: Source, root: Path) -> Source:
    """The source with its root elsewhere."""
    return replace(source, root=str(root))
