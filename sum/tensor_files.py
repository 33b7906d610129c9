"""A safetensors file that is written tensor by tensor and ends with the SHA-256 of every byte before it.

Written here and not by the library, whose `save_file` (0.8) keeps a second temporary file, which a kill leaves behind,
and tells a full disk by no OSError. No copy is made on a CPU; from a GPU one tensor at a time comes over.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sum.errors import CheckpointError
from sum.storage import disk_errors, replace_file

DIGEST = "sha256"  # the last tensor of a file: 32 bytes
_SIZE = hashlib.sha256().digest_size
_PIECE = 1 << 20  # bytes read at once
_TYPES = {  # as safetensors calls them
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_tensors(path: Path, tensors: Mapping[str, Tensor], *, facts: Mapping[str, str]) -> str:
    """Write tensors of any device, and a header of strings, atomically; returns the SHA-256 that ends the file.

    Raises StorageError when the disk is full or refuses; the file that was there is there still.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # the widest first: all are aligned
    sha = hashlib.sha256()
    with replace_file(path) as partial, partial.open("wb", buffering=0) as file:
        for piece in _pieces(tensors, names, facts=facts):
            sha.update(piece)
            _write(file.fileno(), piece)
        _write(file.fileno(), memoryview(sha.digest()))
    return sha.hexdigest()


def check(path: Path) -> str:
    """The SHA-256 that ends the file. Raises CheckpointError when its bytes are others, StorageError without it."""
    with disk_errors(path), path.open("rb", buffering=0) as file:
        left = os.fstat(file.fileno()).st_size - _SIZE
        sha, piece = hashlib.sha256(), memoryview(bytearray(_PIECE))
        while left > 0 and (count := file.readinto(piece[: min(_PIECE, left)])):
            sha.update(piece[:count])
            left -= count
        if left or file.read(_SIZE) != sha.digest():
            raise CheckpointError(f"{path}: its content does not match the SHA-256 at its end")
    return sha.hexdigest()


def read_facts(path: Path) -> dict[str, str]:
    """The header of strings. Raises CheckpointError when it is no safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one after the other; each is a window on the file: copy what is to stay."""
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if name != DIGEST:
                yield name, file.get_tensor(name)


def _pieces(tensors: Mapping[str, Tensor], names: list[str], *, facts: Mapping[str, str]) -> Iterator[memoryview]:
    """The bytes of a file up to its digest; those of a tensor are not copied where they lie in order on the CPU."""
    yield memoryview(_header(tensors, names, facts=facts))
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield flat.view(torch.uint8).numpy().data


def _header(tensors: Mapping[str, Tensor], names: list[str], *, facts: Mapping[str, str]) -> bytes:
    """Length and JSON that open a safetensors file, filled up to a multiple of 8 bytes."""
    table: dict[str, Any] = {"__metadata__": dict(facts)}
    begin = 0
    for name in names:
        value = tensors[name]
        end = begin + value.numel() * value.element_size()
        table[name] = {"dtype": _TYPES[value.dtype], "shape": list(value.shape), "data_offsets": [begin, end]}
        begin = end
    table[DIGEST] = {"dtype": "U8", "shape": [_SIZE], "data_offsets": [begin, begin + _SIZE]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(handle: int, left: memoryview) -> None:
    """All bytes: one call of the system takes 2 GB at most."""
    while left.nbytes:
        left = left[os.write(handle, left) :]
