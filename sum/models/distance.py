"""How far two files of weights are apart, part by part of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from sum.models.checkpoint import read_tensors


def apart(first: Path, second: Path) -> tuple[bool, list[str]]:
    """Whether all tensors of two weights files are equal, and how far they are apart: a line a part of the model."""
    then, now = read_tensors(first), read_tensors(second)
    if {name: value.shape for name, value in then.items()} != {name: value.shape for name, value in now.items()}:
        return False, ["the tensors have other names or shapes: another model"]
    parts: dict[str, list[str]] = {}
    for name in then:
        parts.setdefault(name.partition(".")[0], []).append(name)
    far = {name: float((then[name].double() - now[name].double()).abs().max()) for name in then if then[name].numel()}
    if not any(far.values()):
        return True, ["every tensor is equal, only the header of the file differs"]
    return False, [_distance(part, names, far, then) for part, names in sorted(parts.items())]


def _distance(part: str, names: Sequence[str], far: Mapping[str, float], then: Mapping[str, Tensor]) -> str:
    other = [name for name in names if far.get(name)]
    largest = max((float(then[name].abs().max()) for name in names if name in far), default=0.0)
    widest = max((far[name] for name in other), default=0.0)
    return (
        f"  {part}: {len(other)} of {len(names)} tensors differ, at most by {widest:.3g} (largest weight {largest:.3g})"
    )
