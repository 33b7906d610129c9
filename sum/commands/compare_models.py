"""What the words of `python -m sum compare` mean: weights on this machine, or evaluations that are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sum.config import Config
from sum.errors import ConfigError, MissingInput
from sum.models.checkpoint import backbone_of
from sum.models.deltas import load_delta
from sum.named_weights import FORMS as OF_WEIGHTS
from sum.named_weights import base_of, find, find_base
from sum.stages.common import base_weights
from sum.stages.evaluate import BASE, Subject

MODELS = Path("data/models")
FORMS = f"base, a budget, {OF_WEIGHTS}, or a folder that evaluate wrote"


@dataclass(frozen=True, slots=True)
class Named:
    """A model of the command line: its weights, or what evaluate has said of it."""

    label: str
    weights: Path | None = None
    backbone: str = ""
    evaluation: Path | None = None
    base: Path | None = None  # of a delta: the weights it belongs to

    def subject(self) -> Subject:
        """What evaluate is to look at, where there is no evaluation yet."""
        assert self.weights is not None
        loader = None if self.base is None else partial(load_delta, self.weights, base=self.base)
        return Subject(self.label, self.weights, self.backbone, loader=loader)

    @property
    def place(self) -> Path:
        """Where it comes from."""
        found = self.evaluation or self.weights
        assert found is not None
        return found


def models_of(
    words: Sequence[str], seeds: Sequence[Sequence[str]], *, config: Config, work: Path
) -> tuple[dict[str, Named], dict[str, list[str]]]:
    """Name -> model, the base first, and label -> the names of those that are seeds of one. Raises as `groups_of`."""
    models, pooled = dict[str, Named](), dict[str, list[str]]()
    for label, found in groups_of(words, seeds, config=config, work=work).items():
        names = [label] if len(found) == 1 else [f"{label} {number}" for number in range(1, len(found) + 1)]
        twice = sorted(models.keys() & set(names))
        if twice:
            raise ConfigError(f"compare: '{twice[0]}' stands there twice, seeds counted")
        models |= dict(zip(names, found, strict=True))
        if len(found) > 1:
            pooled[label] = names
    return models, pooled


def groups_of(
    words: Sequence[str], seeds: Sequence[Sequence[str]], *, config: Config, work: Path
) -> dict[str, list[Named]]:
    """Label -> its models, several where they are seeds, the base first; weights of MLflow are fetched below `work`.

    Raises ConfigError for fewer than two, a label twice, or a word that names nothing; MissingInput, CheckpointError,
    TrackingError.
    """
    found = [resolve(word, config=config, work=work) for word in words]
    groups = [(model.label, [model]) for model in found]
    for label, *names in seeds:
        if len(names) < 2:
            raise ConfigError(f"--seeds {label}: wants a label and at least two models that differ in their seed")
        groups.append((label, [resolve(name, config=config, work=work) for name in names]))
    if len(groups) < 2 or len(groups[0][1]) > 1:
        got = ", ".join(label for label, _ in groups) or "none"
        raise ConfigError(f"compare wants at least two models, the first of them the base, got {got}. Known: {FORMS}")
    groups = _told_apart(groups)
    labels = [label for label, _ in groups]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(f"compare: '{twice[0]}' stands there twice")
    return dict(groups)


def _told_apart(groups: Sequence[tuple[str, list[Named]]]) -> list[tuple[str, list[Named]]]:
    """Files of one name get that of their folder before it."""
    places = dict[str, set[Path]]()
    for label, models in groups:
        places.setdefault(label, set()).update(model.place for model in models)
    return [
        (f"{models[0].place.parent.name}/{label}" if len(places[label]) > 1 == len(models) else label, models)
        for label, models in groups
    ]


def resolve(word: str, *, config: Config, work: Path, reader: str = "compare") -> Named:
    """What one word names; reader: the command, for messages. Raises as `groups_of`."""
    path = Path(word)
    if word == BASE:
        return _of_weights(BASE, base_weights(config))
    if word in config.budgets:
        weights = MODELS / word / "model.safetensors"
        if not weights.is_file():
            raise MissingInput(weights, reader=reader, maker=f"finetune@{word}")
        return _of_weights(word, weights)
    if (path / "protocol.json").is_file():
        return Named(path.name, evaluation=path)
    found = find(word, uri=config.tracking.uri, cache=work / "weights")
    if found is not None:
        base = find_base(found.weights, likely=base_weights(config)) if base_of(found.weights) else None
        return replace(_of_weights(found.label, found.weights), base=base)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, but not one that evaluate wrote: it has no protocol.json, nor weights")
    raise ConfigError(f"{reader}: '{word}' names no model. Known: {FORMS}; budgets: {', '.join(config.budgets)}")


def _of_weights(label: str, weights: Path) -> Named:
    return Named(label, weights, backbone_of(weights))
