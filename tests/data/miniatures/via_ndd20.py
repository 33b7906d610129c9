"""NDD20: dolphins above and below the water, two folders with the same names and a VIA file each."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sum.data.collect import BARE
from sum.data.rle import FEW_POINTS
from tests.data.miniatures.documents_tools import box, corners, drawn, photo, write
from tests.data.miniatures.expected import Expected

FIN = [3, 2, 28, 9, 12, 21]


def region(points: list[int], **attributes: str) -> dict[str, Any]:
    shape = {"name": "polygon", "all_points_x": points[0::2], "all_points_y": points[1::2]}
    return {
        "shape_attributes": shape,
        "region_attributes": {"species": "BND", "id": "1", "out of focus": "false"} | attributes,
    }


def write_ndd20(root: Path) -> Expected:
    """The same name in both folders; overlapping regions; regions of two points; an entry without a region."""
    of = Expected()
    for folder in ("ABOVE", "BELOW"):
        for name in ("1.jpg", "2.jpg", "3.jpg"):
            photo(root / folder / name)
    above = {
        "1.jpg1234": {"filename": "1.jpg", "size": 1234, "regions": [region(corners(2, 3, 9, 7)), region(FIN, id="2")]},
        "2.jpg99": {"filename": "2.jpg", "size": 99, "regions": [region([1, 1, 9, 9]), region(corners(5, 5, 6, 6))]},
        "3.jpg7": {"filename": "3.jpg", "size": 7, "regions": [], "file_attributes": {}},
    }
    below = {
        "1.jpg5": {"filename": "1.jpg", "size": 5, "regions": [region(FIN, species="WBD")]},
        "2.jpg6": {"filename": "2.jpg", "size": 6, "regions": [region(corners(0, 0, 32, 24))]},
        "3.jpg7": {"filename": "3.jpg", "size": 7, "regions": [region([4, 4, 8, 4])]},
    }
    write(root / "ABOVE_LABELS.json", above)
    write(root / "BELOW_LABELS.json", below)
    of.masks = {
        "ABOVE/1": [box(2, 3, 9, 7), drawn([float(value) for value in FIN])],
        "ABOVE/2": [box(5, 5, 6, 6)],
        "BELOW/1": [drawn([float(value) for value in FIN])],
        "BELOW/2": [box(0, 0, 32, 24)],
    }
    of.notes = Counter({FEW_POINTS: 2, BARE: 2})
    return of
