"""Annotation files: JSON and text of a bounded size, from a disk or a bucket."""

from __future__ import annotations

import json
from typing import Any

from sum.errors import DataError
from sum.storage import read_bytes, size_of


def read_json(path: str, *, max_mb: int) -> Any:
    """The tree of a JSON file. Raises DataError when it is no JSON, nested beyond reason or larger than max_mb."""
    try:
        return json.loads(read_document(path, max_mb=max_mb))
    except RecursionError as error:
        raise DataError(f"{path}: lists and objects are nested too deeply for an annotation file") from error
    except ValueError as error:  # JSON or its encoding
        raise DataError(f"{path}: not JSON ({error})") from error


def read_document(path: str, *, max_mb: int) -> bytes:
    """The bytes of an annotation file. Raises DataError when it is larger than max_mb: nothing of it is read then."""
    size = size_of(path)
    if size > max_mb * 1_000_000:
        raise DataError(
            f"{path} is {size / 1e6:,.0f} MB, more than max_json_mb {max_mb}. "
            "Raise max_json_mb of the data set if it is really this large."
        )
    return read_bytes(path)
