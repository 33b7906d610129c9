"""Figures of a step over all processes: each learns the same numbers, by one exchange and one host synchronisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Gather = Callable[[Tensor], Tensor]  # [n] of each process -> [ranks * n], in the order of their ranks
COMBINE: Mapping[str, Callable[[Sequence[float]], float]] = {  # the others: the mean over the processes that have it
    "masks": sum,
    "out_of_memory": sum,
    "peak_memory_mb": max,
}


class Exchange:
    """Makes one figure of those that the processes have under one name.

    Names are agreed on when a process meets a new one; until then a figure that a process lacks is known to be lacking.
    """

    def __init__(self, gather: Gather, *, ranks: int, device: torch.device) -> None:
        """gather: collective over `ranks` processes; device: where it wants its tensors."""
        self._gather, self._ranks, self._device = gather, ranks, device
        self._names: list[str] = []

    def over(self, found: Mapping[str, Tensor | float]) -> dict[str, float]:
        """The figures of all processes as one, under the same names in the same order everywhere; found: scalars here.

        Every process must call it as often as the others. A name that no process has this time is left out.
        """
        if self._ranks == 1:
            return _to_host(found)
        rows = self._rows(found)
        if any(row[0] for row in rows):
            self._agree(found)
            rows = self._rows(found)
        figures = dict[str, float]()
        for number, name in enumerate(self._names):
            values = [row[2 + 2 * number] for row in rows if row[1 + 2 * number]]
            if values:
                figures[name] = float(COMBINE.get(name, mean)(values))
        return figures

    def _rows(self, found: Mapping[str, Tensor | float]) -> list[list[float]]:
        """A row a process: whether it has a name that is not agreed on, then for each name (has it, value)."""
        own: list[Tensor | float] = [float(not found.keys() <= set(self._names))]
        for name in self._names:
            own += [float(name in found), found.get(name, 0.0)]
        row = torch.stack([self._placed(value) for value in own])
        return [list(map(float, values)) for values in self._gather(row).view(self._ranks, -1).tolist()]

    def _placed(self, value: Tensor | float) -> Tensor:
        given = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        return given.to(self._device, torch.float64, non_blocking=True)

    def _agree(self, found: Mapping[str, Tensor | float]) -> None:
        """All names that any process has or had, in the order of the ranks."""
        mine = "\n".join(dict.fromkeys([*self._names, *found])).encode()
        longest = int(self._gather(torch.tensor([len(mine)], device=self._device)).max())
        text = torch.tensor(list(mine.ljust(longest, b"\n")), dtype=torch.uint8, device=self._device)
        told = [bytes(row).decode() for row in self._gather(text).view(self._ranks, longest).tolist()]
        self._names = list(dict.fromkeys(name for words in told for name in words.split("\n") if name))


def mean(values: Sequence[float]) -> float:
    """The plain mean; of NaN and infinity too."""
    return sum(values) / len(values)


def _to_host(found: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The same as numbers; those on an accelerator come in one piece."""
    far = {name: value for name, value in found.items() if isinstance(value, Tensor) and value.device.type != "cpu"}
    told = torch.stack([value.detach().float() for value in far.values()]).tolist() if far else []
    known = dict(zip(far, told, strict=True))
    return {name: known[name] if name in known else float(value) for name, value in found.items()}
