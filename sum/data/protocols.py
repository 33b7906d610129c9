"""The rules that an evaluation was made by, data/evaluation/MODEL/protocol.json: others make other numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sum.errors import DataError, MissingInput

FOLDER = Path("data/evaluation")
OWN = ("model", "weights_sha256", "device", "versions")  # what two evaluations may have otherwise and still compare


def same_rules(models: Sequence[str], *, reader: str) -> dict[str, dict[str, Any]]:
    """What protocol.json says, by model, for the stage `reader`.

    Raises DataError where two say different things beyond OWN; MissingInput.
    """
    found = {model: _read(model, reader=reader) for model in models}
    first = found[models[0]]
    for model, other in found.items():
        differs = [key for key in {**first, **other} if key not in OWN and first.get(key) != other.get(key)]
        if differs:
            raise DataError(
                f"{FOLDER / model} and {FOLDER / models[0]} were made by different rules ({', '.join(differs)}): "
                f"their numbers cannot be compared. Run `dvc repro evaluate@{models[0]} evaluate@{model}`."
            )
    return found


def _read(model: str, *, reader: str) -> dict[str, Any]:
    path = FOLDER / model / "protocol.json"
    if not path.is_file():
        raise MissingInput(path, reader=reader, maker=f"evaluate@{model}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
