"""Times of an evaluation: a row a call of the model while it runs, a few figures at its end.

They live apart from the scores: two runs give the same scores to the last byte and never the same times.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

TIMES = "times.parquet"
TIME_SCHEMA = pa.schema({"step": pa.string(), "asked": pa.int32(), "seconds": pa.float64()})
COUNTED = {
    "encode": "images",
    "decode": "mask_rounds",
    "everything": "images_segmented",
}  # step of the model -> what its times are of
QUANTILES = {"median": 0.5, "p95": 0.95}


def time_figures(parts: Iterable[pa.Table]) -> dict[str, float | int]:
    """Milliseconds `encode_ms_median`, `decode_ms_p95` ... of each step that was taken, and how often it was.

    parts: tables of TIME_SCHEMA. In a call for several masks each took its share, and each counts once.
    """
    calls = pa.concat_tables(parts).to_pandas()
    found: dict[str, float | int] = {}
    for step, counted in COUNTED.items():
        mine = calls[calls["step"] == step]
        if mine.empty:  # automatic mask generation may be off
            continue
        each = np.repeat(1000 * mine["seconds"].to_numpy() / mine["asked"].to_numpy(), mine["asked"].to_numpy())
        found[counted] = len(each)
        found |= {f"{step}_ms_{name}": round(float(np.quantile(each, at)), 3) for name, at in QUANTILES.items()}
    return found
