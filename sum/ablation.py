"""The plan of `python -m sum ablate`: which runs a grid has, what each is started with, and what it is made of.

A row is a method in an architecture at a budget; a run is a row with one seed. Knows nothing of folders or processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sum.errors import ConfigError

FULL = "full"
BASE = "base"
PACKAGE = Path(__file__).parent
MADE = (  # sections of stages that are over when runs begin; evaluation asks pseudo_label's grid of points, too
    "demo",
    "datasets",
    "ingest",
    "validate",
    "refine",
    "pseudo_label",
    "uncertainty",
    "check_labels",
)
BY_ROWS = {"finetune.method": "ablation.grid", "finetune.arch": "ablation.grid", "seed": "ablation.seeds"}
NOT_RUN = (  # code that no training or evaluation runs, or that only starts it: these may change
    "commands/",
    "ablation",
    "data/ablation",
    "cli.py",
    "mlflow_model.py",
    "named_weights.py",
    "predict.py",
    "serving.py",
)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the tables."""

    budget: str
    method: str
    arch: str

    @property
    def name(self) -> str:
        """A word that is one row: of folders, of MLflow's tag `row` and of --only."""
        return f"{self.budget}-{self.method}-{self.arch}"

    @property
    def label(self) -> str:
        """How tables call it below the head of its budget; the full architecture goes without saying."""
        return self.method if self.arch == FULL else f"{self.method}, {self.arch}"

    def wanted(self, pattern: str) -> bool:
        """Whether a word of --only means this row: its name, METHOD-ARCH, METHOD or ARCH; * and ? as in a shell."""
        names = (self.name, f"{self.method}-{self.arch}", self.method, self.arch)
        return any(fnmatchcase(name, pattern) for name in names)


@dataclass(frozen=True, slots=True)
class Run:
    """One training and its evaluation; without a row the evaluation of the base."""

    row: Row | None
    seed: int = 0

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.row.name}-{self.seed}" if self.row else BASE

    @property
    def model(self) -> str:
        """What stage evaluate calls it."""
        return self.row.budget if self.row else BASE

    def tags(self, ablation: str) -> dict[str, str]:
        """Of its MLflow run."""
        if self.row is None:
            return {"ablation": ablation, "row": BASE}
        own = {"budget": self.row.budget, "method": self.row.method, "arch": self.row.arch, "seed": str(self.seed)}
        return {"ablation": ablation, "row": self.row.name, **own}


def rows_of(budgets: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """All rows, budget by budget. Raises ConfigError when there is none."""
    if not (budgets and pairs):
        what = "ablation.budgets" if pairs else "ablation.grid"
        raise ConfigError(f"params.yaml: {what} names nothing, so there is no row to train; see docs/ablation.md")
    return [Row(budget, method, arch) for budget in budgets for method, arch in pairs]


def chosen(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    """The rows that the words of --only mean, all without a word. Raises ConfigError for a word that means none."""
    for pattern in only:
        if not any(row.wanted(pattern) for row in rows):
            raise ConfigError(f"--only {pattern}: no such row; rows: {', '.join(row.name for row in rows)}")
    return [row for row in rows if not only or any(row.wanted(pattern) for pattern in only)]


def overrides(run: Run, words: Sequence[str], settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The key=value words that a run's commands get: those of the command line, then its own.

    words: of the command line, without those of section `ablation`, which runs do not read; settings: of params.yaml's
    `ablation`: of a method or arch. What a row sets for itself wins, an arch over a method.
    """
    own = own_settings(run, settings)
    shared = [word for word in words if not word.lstrip("+").startswith("ablation.") and _key(word) not in own]
    return [*shared, *(f"{key}={_word(value)}" for key, value in own.items())]


def refuse_words(words: Sequence[str]) -> None:
    """Raise ConfigError for a key=value of the command line that no run reads, or that rows set for themselves."""
    for word in words:
        key = _key(word)
        section = key.partition(".")[0]
        if section in MADE:
            raise ConfigError(
                f"ablate: {word}: runs learn from what stage {section} has made, so this would change nothing of it. "
                "Set it in params.yaml and run `dvc repro check_labels`"
            )
        if key in BY_ROWS:
            raise ConfigError(f"ablate: {word}: rows set {key} for themselves; name it in {BY_ROWS[key]}")


def overridden(row: Row, words: Sequence[str], settings: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The words of the command line that a row's own settings win over."""
    own = own_settings(Run(row), settings)
    return [word for word in words if _key(word) in own]


def own_settings(run: Run, settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Dotted key of params.yaml -> value of what a run has for itself; {} for the base."""
    if run.row is None:
        return {}
    own: dict[str, Any] = {"finetune.method": run.row.method, "finetune.arch": run.row.arch, "seed": run.seed}
    for name in (run.row.method, run.row.arch):
        own |= {f"finetune.{key}": value for key, value in settings.get(name, {}).items()}
    return own


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _word(value: Any) -> str:
    """A plain value as YAML in one line, which Hydra reads, too."""
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**9)).removesuffix("...\n").strip()


def differing(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a run was begun with and would now get, where the two differ: `key: then, now`."""
    found = []
    for key in sorted(then.keys() | now.keys()):
        before, after = (str(stamp.get(key, "none")) for stamp in (then, now))
        if before != after:
            found.append(f"{key}: {_short(before)}, now {_short(after)}")
    return found


def _short(text: str) -> str:
    return f"{text[:12]}..." if len(text) > 40 else text


@cache
def run_code() -> str:
    """sha256 over the code that trainings and evaluations may run: not that of commands and of an ablation's tables."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(NOT_RUN):
            digest.update(f"{name}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def runs_of(rows: Iterable[Row], seeds: Sequence[int]) -> list[Run]:
    """Seed by seed, so that an ablation that is ended early has every row once before any row twice."""
    listed = list(rows)
    return [Run(row, seed) for seed in seeds for row in listed]
