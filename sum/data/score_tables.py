"""The tables that evaluate writes: their columns, and how they are written and read.

A row of ROW_SCHEMA is a mask, a game (first prompt and task prompt), a round and an output of one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sum.errors import DataError, MissingInput

ROWS = "rows.parquet"
PREDICTIONS = "predictions.parquet"
MAPS = "uncertainty.parquet"
FIDELITY = "fidelity.parquet"
GENERATED = "everything.parquet"
EVERYTHING = "everything"  # the prompt of rows about automatic mask generation
Game = tuple[str, bool]  # first prompt or EVERYTHING; whether the game was one more, without the task prompt
UNSPECIFIED = "unspecified"  # the task prompt that asks for SAM's own behaviour

TEXT, REAL, WHOLE = pa.string(), pa.float64(), pa.int32()
ROW_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("model", "dataset", "task", "image_id", "mask_id", "prompt", "task_prompt"), TEXT),
        "area": pa.int64(),  # px of the true mask at the original size
        "round": WHOLE,
        "output": TEXT,
        **dict.fromkeys(("iou", "boundary_iou", "predicted_iou"), REAL),
        **dict.fromkeys(("click_x", "click_y", "click_label"), WHOLE),  # null: a box, or nothing was wrong any more
    }
)
PREDICTION_SCHEMA = pa.schema({"mask_id": TEXT, "round": WHOLE, "output": TEXT, "rle": TEXT})
FIDELITY_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("model", "dataset", "task", "image_id", "mask_id", "check"), TEXT),
        "passed": pa.bool_(),
    }
)
EVERYTHING_SCHEMA = pa.schema(
    {**dict.fromkeys(("model", "dataset", "task", "image_id"), TEXT), "generated": WHOLE}  # masks kept in the image
)
MAP_SCHEMA = pa.schema({"mask_id": TEXT, "png": pa.binary()})  # [L, L] grey over the model frame; 255: uncertainty 1


def write_table(path: Path | BinaryIO, rows: Sequence[Mapping[str, object]], schema: pa.Schema) -> None:
    """Rows to one Parquet file, the same bytes for the same rows."""
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")


class TableWriter:
    """A Parquet file written row by row, `GROUP` of them held at a time; whole when the block ends."""

    GROUP = 2048

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema, self._waiting = schema, list[Mapping[str, object]]()
        self._file = pq.ParquetWriter(path, schema, compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._file.close()

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Append rows."""
        self._waiting += rows
        if len(self._waiting) >= self.GROUP:
            self._flush()

    def _flush(self) -> None:
        self._file.write_table(pa.Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting = []


def join_tables(parts: Iterable[pa.Table], path: Path, schema: pa.Schema) -> None:
    """Tables of one schema, one after the other, to one file; holds one part at a time."""
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part)


def read_table(path: Path, schema: pa.Schema, *, reader: str, maker: str) -> pd.DataFrame:
    """A file that `write_table` made. Raises MissingInput without it, DataError when it is something else."""
    if not path.is_file():
        raise MissingInput(path, reader=reader, maker=maker)
    try:
        frame: pd.DataFrame = pq.read_table(path, columns=schema.names).cast(schema).to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a table that stage '{maker}' writes ({error}). Run `dvc repro {maker}`."
        ) from error
    return frame


def read_rows(folder: Path, *, reader: str) -> pd.DataFrame:
    """The rows of data/evaluation/MODEL, columns of ROW_SCHEMA. Errors as `read_table`."""
    return read_table(folder / ROWS, ROW_SCHEMA, reader=reader, maker=f"evaluate@{folder.name}")


def games_of(protocol: Mapping[str, Any]) -> list[Game]:
    """The games that an evaluation was made of, or is to be, the main one first.

    protocol: its protocol.json, or the settings of `evaluate`.
    """
    prompts = protocol["prompts"]
    found: list[Game] = [(prompt, False) for prompt in prompts]
    if protocol.get("unspecified"):
        found.insert(1, (prompts[0], True))
    if protocol.get(EVERYTHING):
        found.append((EVERYTHING, False))
    return found


def of_game(rows: pd.DataFrame, *, prompt: str, unspecified: bool = False) -> pd.DataFrame:
    """The rows of one game: with this first prompt (or EVERYTHING), and the data sets' own task prompts or none.

    Raises DataError, naming the games there are, when it was not played.
    """
    plain = rows["task_prompt"] == UNSPECIFIED
    wanted = plain if unspecified or prompt == EVERYTHING else ~plain
    chosen = rows[(rows["prompt"] == prompt) & wanted]
    if chosen.empty:
        played = ", ".join(sorted(set(rows["prompt"]))) or "none"
        with_task = "task prompt unspecified" if unspecified else "the data sets' task prompts"
        raise DataError(
            f"evaluation rows: no game with first prompt '{prompt}' and {with_task}; there are {played}. "
            "See `evaluate` in params.yaml and run `dvc repro evaluate`."
        )
    return chosen
