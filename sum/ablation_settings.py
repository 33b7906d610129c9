"""The section `ablation` of params.yaml: the grid of rows that `python -m sum ablate` trains and compares."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic import ConfigDict

from sum.limits import require
from sum.training_settings import Arch, FinetuneConfig, Method

_STRICT = ConfigDict(extra="forbid")
METHOD_NAMES: tuple[str, ...] = get_args(Method)
ARCH_NAMES: tuple[str, ...] = get_args(Arch)
EQUAL = {  # keys of `finetune` that no row may set for itself: rows are compared at equal data, steps and protocol
    "method": "the row's own name",
    "arch": "the row's own name",
    "optim.steps": "steps",
    "optim.images_per_batch": "the images of a step",
    "optim.masks_per_image": "the masks of a step",
    "rounds.rounds": "the rounds of a step",
    "rounds.idle_last": "the points of a step",
    "rounds.box_odds": "the kinds of prompt",
    "rounds.box_noise": "the prompts",
    "rounds.box_noise_limit": "the prompts",
    "rounds.loss_side": "the size at which losses are taken",
    "augment": "the images",
    "early_stop": "steps, and the images that are learnt from",
}


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """An entry of the grid: all pairs of its methods and archs."""

    __pydantic_config__ = _STRICT
    methods: list[Method]
    archs: list[Arch] = field(default_factory=lambda: ["full"])

    def __post_init__(self) -> None:
        for name in ("methods", "archs"):
            found = getattr(self, name)
            require(bool(found) and len(set(found)) == len(found), f"{name} wants names, each once, got {found}")


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """What `python -m sum ablate` trains: every row (a pair of the grid at a budget) with every seed."""

    __pydantic_config__ = _STRICT
    budgets: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    grid: list[GridConfig] = field(default_factory=list)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # method or arch -> numbers of `finetune`

    def __post_init__(self) -> None:
        once = len(set(self.budgets)) == len(self.budgets)
        require(once, f"budgets must be named once each, got {self.budgets}")
        good = bool(self.seeds) and len(set(self.seeds)) == len(self.seeds)
        require(good, f"seeds wants at least one, each once, got {self.seeds}")
        require(all(0 <= seed < 2**31 for seed in self.seeds), f"seeds must lie in 0..2**31 - 1, got {self.seeds}")
        pairs = self.pairs()
        twice = sorted({f"{method}, {arch}" for method, arch in pairs if pairs.count((method, arch)) > 1})
        require(not twice, f"grid: the pair ({'; '.join(twice)}) stands in it twice")
        known = set(key_names(FinetuneConfig))
        for row, numbers in self.settings.items():
            named = row in METHOD_NAMES or row in ARCH_NAMES
            require(named, f"settings.{row}: no method or arch; known: {', '.join((*METHOD_NAMES, *ARCH_NAMES))}")
            for key, value in numbers.items():
                flat = not isinstance(value, dict)
                require(flat, f"settings.{row}.{key}: write keys with dots, as optim.lr: 0.001, not sections")
                _require_free(row, key, known=known)

    def pairs(self) -> list[tuple[str, str]]:
        """All (method, arch) of the grid, in its order."""
        return [(method, arch) for entry in self.grid for method in entry.methods for arch in entry.archs]


def _require_free(row: str, key: str, *, known: set[str]) -> None:
    where = f"settings.{row}.{key}"
    fixed = next((name for name in EQUAL if key == name or key.startswith(f"{name}.")), "")
    words = (
        "is" if fixed in ("method", "arch") else f"set finetune.{key} for all of them instead: all rows have the same"
    )
    require(not fixed, f"{where}: {words} {EQUAL.get(fixed)}")
    near = difflib.get_close_matches(key, sorted(known), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    require(key in known, f"{where}: `finetune` has no number '{key}'{hint}")


def key_names(kind: Any, above: str = "") -> Iterator[str]:
    """The dotted keys below a settings class, sections left out."""
    hints = get_type_hints(kind)
    for entry in fields(kind):
        if is_dataclass(hints[entry.name]):
            yield from key_names(hints[entry.name], f"{above}{entry.name}.")
        else:
            yield f"{above}{entry.name}"
