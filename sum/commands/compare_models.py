"""What the words of `python -m sum compare` mean: weights on this machine, or evaluations that are there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sum.config import Config
from sum.errors import ConfigError, MissingInput
from sum.models.checkpoint import backbone_of
from sum.registry import download, download_run
from sum.stages.common import base_weights
from sum.stages.evaluate import BASE, Subject
from sum.storage import S3, fetch

MODELS = Path("data/models")
WEIGHTS = (".safetensors", ".pth", ".pt")
RUN = re.compile(r"[0-9a-f]{32}")
VERSION = re.compile(r"(?:models:/)?(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))")
FORMS = (
    "base, a budget, NAME@ALIAS or NAME/VERSION of MLflow's registry, the id of an MLflow run, a file of weights "
    "(.safetensors, .pth) or a folder that evaluate wrote"
)


@dataclass(frozen=True, slots=True)
class Named:
    """A model of the command line: its weights, or what evaluate has said of it."""

    label: str
    weights: Path | None = None
    backbone: str = ""
    evaluation: Path | None = None

    def subject(self) -> Subject:
        """What evaluate is to look at, where there is no evaluation yet."""
        assert self.weights is not None
        return Subject(self.label, self.weights, self.backbone)

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


def resolve(word: str, *, config: Config, work: Path) -> Named:
    """What one word names. Raises as `groups_of`."""
    path, place = Path(word), work / "weights" / re.sub(r"[^A-Za-z0-9.-]", "_", word)
    uri = config.tracking.uri
    if word == BASE:
        return _of_weights(BASE, base_weights(config))
    if word in config.budgets:
        weights = MODELS / word / "model.safetensors"
        if not weights.is_file():
            raise MissingInput(weights, reader="compare", maker=f"finetune@{word}")
        return _of_weights(word, weights)
    if word.startswith(S3):
        return _of_weights(path.stem, fetch(word, work / "weights"))
    if path.suffix in WEIGHTS:
        return _of_weights(path.stem if path.stem != "model" else path.parent.name, path)
    if path.is_dir():
        if not (path / "protocol.json").is_file():
            raise ConfigError(f"{path} is a folder, but not one that evaluate wrote: it has no protocol.json")
        return Named(path.name, evaluation=path)
    if RUN.fullmatch(word):
        return _of_weights(word[:8], download_run(uri, word, folder=place))
    version = VERSION.fullmatch(word)
    if version:
        name, alias, number = (version[part] or "" for part in ("name", "alias", "number"))
        label = word.removeprefix("models:/")
        return _of_weights(label, download(uri, name, alias=alias, number=number, folder=place))
    raise ConfigError(f"compare: '{word}' names no model. Known: {FORMS}; budgets: {', '.join(config.budgets)}")


def _of_weights(label: str, weights: Path) -> Named:
    return Named(label, weights, backbone_of(weights))
