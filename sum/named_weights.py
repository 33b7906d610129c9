"""Words that name weights: a file, a folder, an address in a bucket, a version or run of MLflow; and how they load.

Nothing here falls back to other weights: what cannot be found or read is one error that says what it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sum.errors import CheckpointError
from sum.mlflow_client import require_store
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import backbone_of, fingerprint, header_of, load_segmenter
from sum.models.deltas import is_delta, load_delta
from sum.models.segmenter import Segmenter
from sum.registry import download, download_run
from sum.storage import S3, fetch

SUFFIXES = (".safetensors", ".pth", ".pt")
IN_FOLDER = ("model.safetensors", "delta.safetensors")  # what finetune writes, the whole model first
RUN = re.compile(r"(?:runs:/)?(?P<run>[0-9a-f]{32})")
VERSION = re.compile(r"(?:models:/)?(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))")
FORMS = (
    "NAME@ALIAS or NAME/VERSION of MLflow's registry, the id of an MLflow run, a file of weights (.safetensors, .pth; "
    "s3:// too), a folder with a model.safetensors or delta.safetensors"
)
URI = "sqlite:///mlflow.db"  # of MLflow, where nothing else is said: as in params.yaml
CACHE = Path("work/weights")  # copies of weights that lie in MLflow or in a bucket
SHIPPED = Path(__file__).parent / "models/weights"
MODELS = Path("data/models")  # where finetune writes those of the budgets
KNOWN = (Path("checkpoints"), CACHE, MODELS)  # where the base of a delta is looked for, too


@dataclass(frozen=True, slots=True)
class Found:
    """Weights on this machine; label: how a table calls them."""

    label: str
    weights: Path


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model and the file that it came from; fingerprint: sha256 of that file, of a delta without its base."""

    model: Segmenter
    weights: Path
    fingerprint: str


def find(word: str, *, uri: str, cache: Path) -> Found | None:
    """The weights that a word names, fetched below `cache` if they lie elsewhere; None when it has none of the FORMS.

    A file is not looked at: it may be missing. uri: of MLflow, imported for its words only. Raises TrackingError,
    StorageError.
    """
    path = Path(word)
    if word.startswith(S3):
        return Found(path.stem, fetch(word, cache))
    if path.suffix in SUFFIXES:
        return Found(path.parent.name if path.stem in ("model", "delta") else path.stem, path)
    if path.is_dir():
        files = (path / name for name in IN_FOLDER)
        return next((Found(path.name, file) for file in files if file.is_file()), None)
    place = cache / re.sub(r"[^A-Za-z0-9.-]", "_", word)
    run, version = RUN.fullmatch(word), VERSION.fullmatch(word)
    if run or version:
        require_store(uri)
    if run:
        return Found(run["run"][:8], download_run(uri, run["run"], folder=place))
    if version:
        name, alias, number = (version[part] or "" for part in ("name", "alias", "number"))
        return Found(word.removeprefix("models:/"), download(uri, name, alias=alias, number=number, folder=place))
    return None


def load(
    word: str | Path,
    *,
    base: str | Path | None = None,
    uri: str = URI,
    cache: Path = CACHE,
    likely: Path | None = None,
) -> Loaded:
    """The model that a word of FORMS names.

    base: the base weights of a delta, another such word; where it is not given it is looked for by fingerprint, in
    `likely` first. Raises CheckpointError for a word that names nothing, and for a file that is missing, cut, of
    another model or no weights; TrackingError, StorageError.
    """
    weights = _existing(word, uri=uri, cache=cache)
    if base_of(weights):
        found = _existing(base, uri=uri, cache=cache) if base is not None else find_base(weights, likely=likely)
        return Loaded(load_delta(weights, base=found), weights, fingerprint(weights))
    if base is not None:
        raise CheckpointError(f"{weights} is a whole model: base={base} belongs to a delta. Leave it out")
    backbone = backbone_of(weights)
    if backbone not in BACKBONES:
        raise CheckpointError(f"{weights}: of backbone '{backbone}', unknown here. Known: {', '.join(BACKBONES)}")
    return Loaded(load_segmenter(weights, backbone=backbone), weights, fingerprint(weights))


def base_of(weights: Path) -> str:
    """The sha256 of the base that a delta wants; '' for any other file."""
    return header_of(weights).get("base", "") if is_delta(weights) else ""


def _existing(word: str | Path, *, uri: str, cache: Path) -> Path:
    """The file that a word names. Raises CheckpointError when there is none."""
    found = find(str(word), uri=uri, cache=cache)
    if found is None:
        what = "is a folder without weights" if Path(word).is_dir() else "names no weights"
        tuned = MODELS / word
        hint = f" Did you mean '{tuned}'?" if tuned in MODELS.glob("*") else ""
        raise CheckpointError(f"'{word}' {what}.{hint} Known: {FORMS}")
    if not found.weights.is_file():
        raise CheckpointError(f"{found.weights}: no such weights file. Known: {FORMS}")
    return found.weights


def find_base(delta: Path, *, likely: Path | None = None) -> Path:
    """The file with the fingerprint that a delta wants; likely: where it is looked for first, a file.

    Raises CheckpointError when it is in no known place.
    """
    wanted = base_of(delta)
    first = [likely] if likely is not None and likely.is_file() else []
    for path in (*first, *_known(delta)):
        if fingerprint(path) == wanted:
            return path
    named = [] if likely is None else [likely]
    places = ", ".join(str(place) for place in (*named, delta.parent, SHIPPED, *KNOWN))
    raise CheckpointError(
        f"{delta} is a delta and wants its base, the weights with sha256 {wanted}; none in {places} is that file. "
        "Name it: base=FILE (of `export`: --base FILE)"
    )


def _known(delta: Path) -> Iterator[Path]:
    """Files that may be the base of a delta, those that lie nearest first."""
    folders = (*delta.parent.glob("*"), *SHIPPED.glob("*"), *(file for place in KNOWN for file in place.glob("**/*")))
    seen = {delta.resolve()}
    for path in folders:
        if path.suffix in SUFFIXES and path.is_file() and path.resolve() not in seen:
            seen.add(path.resolve())
            yield path
