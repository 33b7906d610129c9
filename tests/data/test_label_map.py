"""CVAT's labelmap.txt: what is no label map is refused, a colour without name is counted, a class file must fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sum.data.label_map import UNNAMED
from sum.data.sources import Note
from sum.errors import DataError
from tests.data.exports import write_cvat_masks
from tests.data.written import grey, problem, read, samples, source

KEYS = {"images": "JPEGImages", "masks": "SegmentationObject", "classes": "SegmentationClass", "mode": "color"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("cat\n", r"labelmap\.txt: line 1 is 'cat'; wanted NAME:R,G,B:PARTS:ACTIONS"),
        ("# head\n\ncat:250,50::\n", r"line 3 is 'cat:250,50::'"),
        ("cat:250,50,256::\n", "line 1 is"),
        ("cat:1,2,3::\ndog:1,2,3::\n", "line 2: the colour 1,2,3 has a name already"),
        ("background:0,0,0::\n", "names no class"),
    ],
)
def test_what_is_no_label_map_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    write_cvat_masks(tmp_path)
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=reason):
        read("raster", source(tmp_path, labelmap="labelmap.txt", **KEYS))


def test_a_colour_without_name_is_counted(tmp_path: Path) -> None:
    write_cvat_masks(tmp_path)
    (tmp_path / "labelmap.txt").write_text("cat:250,50,83::\n")
    items = read("raster", source(tmp_path, labelmap="labelmap.txt", **KEYS))
    assert [[mask.category for mask in sample.masks] for sample in samples(items)] == [["cat", "cat"]] * 3
    assert [item.reason for item in items if isinstance(item, Note)] == [UNNAMED] * 3


def test_a_class_file_that_does_not_fit_or_is_absent_is_a_problem(tmp_path: Path) -> None:
    write_cvat_masks(tmp_path)
    grey(tmp_path / "SegmentationClass" / "b.png", np.zeros((5, 7, 3)))
    found = problem(read("raster", source(tmp_path, labelmap="labelmap.txt", **KEYS)))
    assert "and (5, 7) in SegmentationClass" in found.reason
    (tmp_path / "SegmentationClass" / "b.png").unlink()
    assert "the mask is missing" in problem(read("raster", source(tmp_path, labelmap="labelmap.txt", **KEYS))).reason
