"""Errors a user can meet, and the one way to pick an entry of a table.

    SumError
    |-- ConfigError        params.yaml or the command line: unknown key, wrong type, impossible value (exit 2)
    |-- DataError          an image, a mask or an annotation file that cannot be used
    |   `-- MissingInput   a stage was started before the stage that makes its input
    |-- CheckpointError    weights of another model, truncated, or not weights at all
    |-- StorageError       a disk or bucket that does not take or give bytes
    |   `-- Refused        a second try would meet the same: denied, wrong credentials, no such bucket
    |       `-- NotFound   a file, folder or object does not exist
    |-- ValidationFailed   the data broke an expectation; the report names rows and files
    |-- TrackingError      the MLflow server does not answer or refuses
    |-- NotReproduced      a run that was trained again gave other weights
    |-- InUse              the same training runs already
    |-- RunsFailed         some trainings of a comparison failed, the others are made
    |-- TrainingDiverged   no loss or gradient was finite for too many steps in a row
    `-- OutOfMemory        a training step does not fit the device, however few masks it takes at once

Every message says what, where, expected, found, and which command helps.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class SumError(Exception):
    """Base of every error that is the user's to mend; the command line prints it without a traceback."""


class ConfigError(SumError, ValueError):
    """A key or value of params.yaml (or of an override) cannot be used."""


class DataError(SumError, ValueError):
    """An input file cannot be used as what it was declared to be."""


class MissingInput(DataError, FileNotFoundError):
    """A stage was started before the stage that makes its input."""

    def __init__(self, path: object, *, reader: str, maker: str) -> None:
        """path: what is missing; reader: the stage that wants it; maker: the stage that writes it."""
        super().__init__(
            f"{path} is missing: stage '{reader}' reads it, stage '{maker}' writes it. Run `dvc repro {maker}`."
        )


class CheckpointError(SumError, ValueError):
    """A weights file is of another model, truncated, or not weights at all."""


class StorageError(SumError, OSError):
    """Bytes could not be read from or written to a disk or a bucket."""


class Refused(StorageError):
    """The disk or bucket says no, and will until something is mended: rights, credentials, bucket, address."""


class NotFound(Refused):
    """The file, folder or object does not exist."""


class ValidationFailed(SumError, ValueError):
    """The data broke an expectation of a checking stage."""


class TrackingError(SumError, RuntimeError):
    """The MLflow tracking server is absent or refuses."""


class Unknown(TrackingError):
    """The MLflow server is there and knows no such model or run."""


class NotReproduced(SumError, ValueError):
    """A run that was trained again gave other weights."""


class InUse(SumError, RuntimeError):
    """Another process does the same work; when it has ended, a second try will do."""


class RunsFailed(SumError, RuntimeError):
    """Some of the trainings of a comparison failed; the others were made."""


class TrainingDiverged(SumError, ArithmeticError):
    """No loss or gradient was finite for too many steps in a row; names images and masks, and the last checkpoint."""


class OutOfMemory(SumError, MemoryError):
    """A training step does not fit the device, however few masks it takes at once."""


def choose(table: Mapping[str, T], name: str, *, key: str) -> T:
    """Return `table[name]`; a wrong name raises ConfigError with the nearest and all known names.

    key: the path of the setting in params.yaml, for the message.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    raise ConfigError(f"params.yaml: {key}: unknown '{name}'.{hint} Known: {', '.join(sorted(table))}.")
