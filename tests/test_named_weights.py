"""What words name weights, and that what cannot be loaded is one error and never other weights."""

from __future__ import annotations

import hashlib
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sum import named_weights
from sum.errors import CheckpointError, TrackingError
from sum.mlflow_client import URI as VARIABLE
from sum.models.archs import ArchSpec
from sum.models.checkpoint import fingerprint, load_segmenter
from sum.models.deltas import save_delta
from sum.models.parts import select_parts
from sum.named_weights import find, load
from sum.registry import Registry
from sum.tracking import start_run

TINY = Path(__file__).parents[1] / "sum/models/weights/tiny.safetensors"


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("ran", "w")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("word", "label", "file"),
    [
        ("data/models/large/model.safetensors", "large", "data/models/large/model.safetensors"),
        ("data/models/large/delta.safetensors", "large", "data/models/large/delta.safetensors"),
        ("checkpoints/sam_vit_b_01ec64.pth", "sam_vit_b_01ec64", "checkpoints/sam_vit_b_01ec64.pth"),
        ("whole", "whole", "whole/model.safetensors"),
        ("changes", "changes", "changes/delta.safetensors"),
    ],
)
def test_files_and_folders(word: str, label: str, file: str) -> None:
    for name in ("whole/model.safetensors", "whole/delta.safetensors", "changes/delta.safetensors"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    found = find(word, uri="", cache=Path("cache"))
    assert found is not None
    assert (found.label, found.weights) == (label, Path(file))


@pytest.mark.parametrize("word", ["large", "models:/sum", "data/models/large", "a/b/1", "base", "0123abc"])
def test_words_without_a_meaning(word: str) -> None:
    assert find(word, uri="", cache=Path("cache")) is None
    with pytest.raises(CheckpointError, match=rf"'{word}' names no weights. Known: NAME@ALIAS"):
        load(word)


def test_the_name_of_a_budget_is_told_where_its_model_lies() -> None:
    Path("data/models/large").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"'large' names no weights\. Did you mean 'data/models/large'\? Known:"):
        load("large")
    for word in ("", ".", str(Path.cwd() / "data")):  # a folder of its own is no hint
        with pytest.raises(CheckpointError, match=r"is a folder without weights\. Known:"):
            load(word)


def test_versions_and_runs_of_mlflow(tracking_uri: str) -> None:
    shutil.copy(TINY, "model.safetensors")
    with start_run(uri=tracking_uri, experiment="sum", name="large", params={}, tags={}) as run:
        model = run.log_model(Path("model.safetensors"), name="ft", fingerprint=fingerprint(TINY), params={})
    registry = Registry(tracking_uri)
    version = registry.register(model, run_id=run.id, name="sum-ft-large", tags={})
    registry.point("sum-ft-large", alias="champion", number=version.number)
    for word in ("models:/sum-ft-large@champion", "sum-ft-large@champion", "sum-ft-large/1", run.id, f"runs:/{run.id}"):
        loaded = load(word, uri=tracking_uri, cache=Path("cache"))
        assert loaded.fingerprint == fingerprint(TINY)
        assert loaded.weights.is_relative_to("cache")
        assert loaded.model.backbone == "tiny"
    for word in ("models:/sum-ft-large@chamipon", "models:/sum-ft-large/7", "f" * 32):
        with pytest.raises(TrackingError, match="has no"):
            load(word, uri=tracking_uri, cache=Path("cache"))


def foreign(path: Path) -> None:
    """Of another model, with a header as if it were tiny's."""
    tensors = load_file(TINY)
    tensors["image_encoder.extra"] = torch.zeros(3)
    save_file(tensors, path, metadata={"backbone": "tiny"})


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("m.safetensors", lambda path: None, "no such weights file"),
    "missing .pth": ("m.pth", lambda path: None, "no such weights file"),
    "empty": ("m.safetensors", lambda path: path.touch(), "truncated or not a safetensors"),
    "cut": ("m.safetensors", lambda path: path.write_bytes(TINY.read_bytes()[:-7]), "truncated or not a safetensors"),
    "text": ("m.pth", lambda path: path.write_text("<html>404"), "truncated or not a PyTorch checkpoint"),
    "foreign": ("m.safetensors", foreign, "is not of backbone 'tiny': has unknown 'image_encoder.extra'"),
    "no SAM": (
        "m.safetensors",
        lambda path: save_file({"w": torch.zeros(3)}, path),
        "neither weights that this project",
    ),
    "no SAM, .pth": (
        "m.pth",
        lambda path: torch.save({"w": torch.zeros(3)}, path),
        "neither weights that this project",
    ),
    "code": ("m.pth", lambda path: torch.save({"w": _Evil()}, path), "must not run code"),
    "raw pickle": ("m.pth", lambda path: path.write_bytes(pickle.dumps(_Evil())), "refused|not a PyTorch checkpoint"),
    "model": ("m.pth", lambda path: torch.save(torch.nn.Linear(2, 2), path), "must not run code"),
    "unknown backbone": (
        "m.safetensors",
        lambda path: save_file(load_file(TINY), path, metadata={"backbone": "huge"}),
        "of backbone 'huge', unknown here. Known: tiny, vit_b",
    ),
    "empty folder": ("m", lambda path: path.mkdir(), "'m' is a folder without weights"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_what_cannot_be_loaded_is_one_error(kind: str) -> None:
    name, make, said = BAD[kind]
    make(Path(name))
    with pytest.raises(CheckpointError, match=said):
        load(name)
    assert not Path("ran").exists()


@pytest.fixture
def delta(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the decoder, in a folder; its base is in no known place."""
    monkeypatch.setattr(named_weights, "SHIPPED", Path("nowhere"))
    path = Path("data/models/large/delta.safetensors")
    path.parent.mkdir(parents=True)
    model = load_segmenter(TINY, backbone="tiny")
    model = select_parts(model, spec=ArchSpec("decoder"), task_prompt=True, seed=0)
    torch.nn.init.ones_(model.task_prompt)
    save_delta(path, model, base=fingerprint(TINY), about={})
    return path


@pytest.mark.parametrize("place", ["checkpoints/mine.safetensors", "data/models/large/base.safetensors"])
def test_the_base_of_a_delta_is_found_by_its_fingerprint(delta: Path, place: str) -> None:
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(TINY, place)
    loaded = load(delta.parent)
    assert loaded.weights == delta
    assert loaded.fingerprint == hashlib.sha256(delta.read_bytes()).hexdigest()


def test_a_likely_base_is_tried_first_and_the_searched_places_are_named(delta: Path) -> None:
    likely = Path("elsewhere/mine.safetensors")
    with pytest.raises(
        CheckpointError, match=r"none in elsewhere/mine\.safetensors, data/models/large, nowhere, check"
    ):
        load(delta, likely=likely)
    likely.parent.mkdir()
    shutil.copy(TINY, likely)
    assert load(delta, likely=likely).weights == delta


def test_a_delta_without_its_base_says_what_is_missing(delta: Path) -> None:
    wanted = fingerprint(TINY)
    with pytest.raises(
        CheckpointError, match=rf"wants its base, the weights with sha256 {wanted}; none in .*base=FILE"
    ):
        load(delta)
    other = Path("other.safetensors")
    save_file(load_file(TINY), other, metadata={"backbone": "tiny", "note": "other bytes"})
    with pytest.raises(CheckpointError, match="trained from weights of sha256"):
        load(delta, base=other)
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such weights file"):
        load(delta, base="gone.pth")
    assert load(delta, base=TINY).model.backbone == "tiny"
    with pytest.raises(CheckpointError, match=r"is a whole model: base=.* belongs to a delta"):
        load(TINY, base=TINY)


@pytest.mark.parametrize("word", ["models:/sum-ft-large@champion", "sum-ft-large/1", "f" * 32])
def test_a_database_that_is_not_there_is_named_and_not_made(folder: Path, monkeypatch, word: str) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(TrackingError, match=re.escape(f"{folder / 'mlflow.db'}: no such MLflow database")):
        load(word)
    assert not list(folder.iterdir())
