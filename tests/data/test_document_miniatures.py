"""The paper's COCO, VIA and SA-1B sets in their original layouts: read with the entries of examples/paper.yaml."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from sum.data.records import decode_mask
from sum.data.sources import Note, Problem, Sample
from sum.data_settings import DatasetConfig
from sum.datasets import read_set
from tests.data.miniatures.documents import DOCUMENTS

PAPER = Path(__file__).parents[2] / "examples" / "paper.yaml"


@pytest.fixture(scope="module")
def table() -> dict[str, DatasetConfig]:
    return TypeAdapter(dict[str, DatasetConfig]).validate_python(yaml.safe_load(PAPER.read_text())["datasets"])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_miniature(name: str, table: dict[str, DatasetConfig], tmp_path: Path) -> None:
    want = DOCUMENTS[name](tmp_path)
    key, _, variant = name.partition(" ")[0].partition("@")
    entry = table[key].variant(variant) if variant else table[key]
    found, _ = read_set(key, replace(entry, root=str(tmp_path)))
    items = [item for of_one in found for item in of_one]
    samples = {item.image.image_id.removeprefix(f"{key}/"): item for item in items if isinstance(item, Sample)}
    assert {item.file.removeprefix(f"{tmp_path}/") for item in items if isinstance(item, Problem)} == want.problems
    assert Counter(item.reason for item in items if isinstance(item, Note)) == want.notes
    assert sorted(samples) == sorted(want.masks)
    assert want.masks
    for image_id, masks in want.masks.items():
        image = samples[image_id].image
        read = [decode_mask(mask.rle, height=image.height, width=image.width) for mask in samples[image_id].masks]
        assert len(read) == len(masks), image_id
        assert all(np.array_equal(one, other) for one, other in zip(read, masks, strict=True)), image_id


def test_every_set_of_these_kinds_has_a_miniature(table: dict[str, DatasetConfig]) -> None:
    kinds = {name for name, entry in table.items() if entry.kind in ("coco", "via", "sa1b")}
    private = {name for name in kinds if name.startswith("internal_")}  # the paper's own, places for yours
    assert {name.partition("@")[0] for name in DOCUMENTS} == kinds - private
    for name in kinds - private:
        assert table[name].licence, name
        assert table[name].expect.images or table[name].select.masks, name
