"""Times of an evaluation, worked out by hand."""

from __future__ import annotations

import pyarrow as pa

from sum.data.timings import TIME_SCHEMA, time_figures


def test_median_and_95th_percentile_of_images_and_mask_rounds() -> None:
    encode = [{"step": "encode", "asked": 1, "seconds": number / 1000} for number in range(1, 102)]
    decode = [
        {"step": "decode", "asked": 3, "seconds": 0.006},  # 2 ms a mask
        {"step": "decode", "asked": 1, "seconds": 0.010},
        {"step": "decode", "asked": 1, "seconds": 0.020},
    ]
    parts = [[*encode[:50], *decode[:1]], [*encode[50:], *decode[1:]]]
    assert time_figures(pa.Table.from_pylist(part, schema=TIME_SCHEMA) for part in parts) == {
        "images": 101,
        "encode_ms_median": 51.0,
        "encode_ms_p95": 96.0,
        "mask_rounds": 5,
        "decode_ms_median": 2.0,  # of 2, 2, 2, 10, 20
        "decode_ms_p95": 18.0,  # 0.8 of the way from 10 to 20
    }
