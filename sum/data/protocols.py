"""The rules that an evaluation was made by, data/evaluation/MODEL/protocol.json: others make other numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sum.errors import DataError, MissingInput

FOLDER = Path("data/evaluation")
SHORT = 60  # characters of a value in a message
OWN = ("model", "weights_sha256", "backbone", "code")  # what two have otherwise and still compare; DVC watches code


def same_rules(models: Sequence[str], *, reader: str) -> dict[str, dict[str, Any]]:
    """What protocol.json says, by model, for the stage `reader`.

    Raises DataError where two say different things beyond OWN, and which; MissingInput.
    """
    found = {model: read_protocol(FOLDER / model, reader=reader) for model in models}
    for model, said in unlike(found).items():
        raise DataError(
            f"{FOLDER / models[0]} and {FOLDER / model} were made by different rules ({said}): their numbers "
            f"cannot be compared. Run `dvc repro --force --single-item evaluate@{models[0]} evaluate@{model}`."
        )
    return found


def unlike(protocols: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Model -> what its protocol says otherwise than that of the first one, in words; only those that do."""
    first, *_ = protocols.values()
    found = {model: differences(first, other) for model, other in protocols.items()}
    return {
        model: "; ".join(f"{key}: {one} and {two}" for key, (one, two) in differs.items())
        for model, differs in found.items()
        if differs
    }


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What two protocols say otherwise, beyond OWN: the key, `above: key` for nested ones, and both values in words."""
    found = dict[str, tuple[str, str]]()
    for key in {**first, **second}:
        one, two = first.get(key, "nothing"), second.get(key, "nothing")
        if key in OWN or one == two:
            continue
        if isinstance(one, dict) and isinstance(two, dict):
            found |= {f"{key}: {below}": values for below, values in differences(one, two).items()}
        else:
            found[key] = (_short(one), _short(two))
    return found


def _short(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= SHORT else f"{text[:SHORT]}..."


def read_protocol(folder: Path, *, reader: str) -> dict[str, Any]:
    """The protocol of an evaluation's folder. Raises MissingInput, DataError when it is no JSON."""
    path = folder / "protocol.json"
    if not path.is_file():
        raise MissingInput(path, reader=reader, maker=f"evaluate@{folder.name}")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}). Run `dvc repro evaluate@{folder.name}`.") from error
    return found
