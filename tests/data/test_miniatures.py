"""Every set of the paper in its original layout, read with its entry of examples/paper.yaml."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from sum.data.frames import load_photo
from sum.data.records import decode_mask
from sum.data.sources import Note, Problem, Sample
from sum.data_settings import DatasetConfig
from sum.datasets import read_set
from tests.data.miniatures.documents import DOCUMENTS
from tests.data.miniatures.expected import Writer
from tests.data.miniatures.raster import RASTER

PAPER = Path(__file__).parents[2] / "examples" / "paper.yaml"


@pytest.fixture(scope="module")
def table() -> dict[str, DatasetConfig]:
    return TypeAdapter(dict[str, DatasetConfig]).validate_python(yaml.safe_load(PAPER.read_text())["datasets"])


@pytest.mark.parametrize("name", RASTER | DOCUMENTS)
def test_miniature(name: str, table: dict[str, DatasetConfig], tmp_path: Path) -> None:
    want = (RASTER | DOCUMENTS)[name](tmp_path)
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
        assert {load_photo(image).shape[:2]} >= {
            mask.shape for mask in masks
        }  # training and evaluation see the masks' frame


@pytest.mark.parametrize(
    ("kinds", "writers"), [(("raster",), RASTER), (("coco", "via", "sa1b"), DOCUMENTS)], ids=["raster", "documents"]
)
def test_every_set_has_a_miniature(
    kinds: tuple[str, ...], writers: dict[str, Writer], table: dict[str, DatasetConfig]
) -> None:
    wanted = {name for name, entry in table.items() if entry.kind in kinds}
    wanted -= {name for name in wanted if name.startswith("internal_")}  # the paper's own, places for yours
    assert wanted <= {name.partition("@")[0] for name in writers}
    for name in wanted:
        assert table[name].licence, name
        assert table[name].expect.images or table[name].select.masks, name


def test_every_candidate_definition_of_mask_files_has_a_miniature(table: dict[str, DatasetConfig]) -> None:
    """Variants of the sets of kind raster, and those by which another kind's set is read as raster."""
    kinds = {f"{name}@{one}": entry.variant(one).kind for name, entry in table.items() for one in entry.variants}
    assert {name for name, kind in kinds.items() if kind == "raster"} == {name for name in RASTER if "@" in name}
