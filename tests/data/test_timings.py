"""Times of an evaluation, worked out by hand."""

from __future__ import annotations

from pathlib import Path

from sum.data.scores import write_table
from sum.data.timings import TIME_SCHEMA, summarise


def test_median_and_95th_percentile_of_images_and_mask_rounds(tmp_path: Path) -> None:
    encode = [{"step": "encode", "asked": 1, "seconds": number / 1000} for number in range(1, 102)]
    decode = [
        {"step": "decode", "asked": 3, "seconds": 0.006},  # 2 ms a mask
        {"step": "decode", "asked": 1, "seconds": 0.010},
        {"step": "decode", "asked": 1, "seconds": 0.020},
    ]
    parts = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    write_table(parts[0], [*encode[:50], *decode[:1]], TIME_SCHEMA)
    write_table(parts[1], [*encode[50:], *decode[1:]], TIME_SCHEMA)
    assert summarise(parts) == {
        "images": 101,
        "encode_ms_median": 51.0,
        "encode_ms_p95": 96.0,
        "mask_rounds": 5,
        "decode_ms_median": 2.0,  # of 2, 2, 2, 10, 20
        "decode_ms_p95": 18.0,  # 0.8 of the way from 10 to 20
    }
