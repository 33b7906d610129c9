"""A document read in pieces is what json makes of it whole, errors and their places included."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import TypeAdapter

from sum.data import spools, streams
from sum.data.coco_files import read_coco
from sum.data.layouts import LAYOUTS
from sum.data.sources import Item, Source
from sum.data.spools import Repeats, Spool
from sum.data.streams import JsonStream, NotText
from sum.data_settings import DatasetConfig
from sum.datasets import source_of
from tests.data.fuzzing import edited, mangled, set_below
from tests.data.miniatures.documents import DOCUMENTS
from tests.data.written import BOX, annotation, entry, photo, source, write_json

PROJECT = Path(__file__).parents[2]
TREE = {
    "info": {"a": [1, {"b": []}], "é😀": "\u2028\ud83d"},
    "images": [{"id": 1, "f": 'a"\\.jpg'}, {"id": 2**70}, {}],
    "annotations": [{"s": [[1.5, -2e-7, 1e400]], "n": None}, [True, float("nan")], "x", 12345678901234567890, -0.0],
    "empty": [],
    "": "end",
}
SEEDS = (
    json.dumps(TREE),
    json.dumps(TREE, indent=2, ensure_ascii=True),
    json.dumps([TREE, 17, "x"]),
    "\n\t [ ]\r\n",
    "12",
    '{"a":[1,],"b":2}',
    '{"a":[1 2]}',
    '{"a":1,}',
    '{"a" 1}',
    "{1:2}",
    '{"a":[\n  1,\n  2\n ] \n x}',
    '{"a":[]} x',
    "",
    '{"a": [' + "9" * 5000 + "]}",
    '{"a": [tru, 1]}',
    '{"a": [-]}',
)


def by_json(data: bytes) -> str:
    try:
        return repr(json.loads(data.decode(json.detect_encoding(data)).removeprefix("\ufeff")))
    except UnicodeDecodeError as error:
        return f"byte {error.object[error.start]:#04x} at {error.start:,}"
    except (ValueError, RecursionError) as error:
        return f"{type(error).__name__} {error}"


def by_stream(data: bytes) -> str:
    def whole(_: str, elements: Iterator[tuple[Any, str]]) -> list[Any]:
        found = list(elements)
        assert [repr(json.loads(text)) for _, text in found] == [repr(value) for value, _ in found]
        return [value for value, _ in found]

    try:
        return repr(JsonStream(io.BytesIO(data), dict).walk(whole))
    except NotText as error:
        return str(error)
    except (ValueError, RecursionError) as error:
        return f"{type(error).__name__} {error}"


@pytest.mark.parametrize("block", [4, 7, 64, 2**20])
def test_every_document_gives_what_json_gives(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK", block)
    for text in SEEDS:
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
            data = text.encode(encoding)
            assert by_stream(data) == by_json(data), (text, encoding)
        for cut in range(len(text) if len(text) < 1000 else 0):
            assert by_stream(text[:cut].encode()) == by_json(text[:cut].encode()), text[:cut]


@pytest.mark.parametrize("block", [5, 33])
def test_changed_documents_give_what_json_gives(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BLOCK", block)
    rng = np.random.default_rng(block)
    outcomes = set[str]()
    for number in range(1500):
        text = SEEDS[number % 3]
        data = json.dumps(edited(json.loads(text), rng)).encode() if number % 2 else text.encode()
        data = mangled(data, rng) if number % 5 else data
        want = by_json(data)
        assert by_stream(data) == want, data
        outcomes.add(want.split()[0][:8])
    assert {"JSONDeco", "byte", "{'info':"} <= outcomes


def test_a_bomb_in_a_list_is_an_error_and_not_a_crash() -> None:
    for bomb in (b'{"annotations": [' + b"[" * 200_000, b'{"a": [' + b'{"a":' * 200_000):
        assert by_stream(bomb).startswith("RecursionError")


def test_a_list_is_never_in_memory_as_a_whole() -> None:
    """Of 7.5 MB, 200 bytes an element, the buffer holds a block and what is left of the last one."""
    import tracemalloc

    class Endless(io.RawIOBase):
        sent = 0

        def read(self, size: int = -1) -> bytes:  # type: ignore[override]
            Endless.sent += 1
            if Endless.sent == 1:
                return b'{"annotations": [0'
            return b"" if Endless.sent > 25 else (b"," + json.dumps({"a": "x" * 190}).encode()) * 1500

    def count(_: str, elements: Iterator[tuple[Any, str]]) -> int:
        return sum(1 for _ in elements)

    tracemalloc.start()
    with pytest.raises(ValueError, match="Expecting ',' delimiter"):
        JsonStream(Endless(), dict).walk(count)  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_500_000


# --- spool -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [0, 10, 2**20])
def test_a_spool_gives_each_group_its_texts_in_order(buffer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "BUFFER", buffer)
    rng, spool, want = np.random.default_rng(0), Spool(), dict[Any, list[str]]()
    for number in range(300):
        group = (int(rng.integers(9)), f"name {rng.integers(5)}")[number % 2]
        text = "é" * int(rng.integers(20)) + str(number)
        want.setdefault(group, []).append(text)
        spool.add(group, text)
    spool.close()
    assert list(spool.groups()) == [(group, len(texts)) for group, texts in want.items()]
    assert {group: list(spool.texts(group)) for group in want} == want
    assert list(spool.texts("unknown")) == []


def test_an_empty_spool() -> None:
    spool = Spool()
    spool.close()
    assert (list(spool.groups()), list(spool.texts(1))) == ([], [])


def test_nothing_is_left_of_a_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(spools, "BUFFER", 0)
    before = len(list(Path("/proc/self/fd").iterdir()))
    spool = Spool()
    for number in range(5):
        spool.add(number, "text")
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    assert list(tmp_path.iterdir()) == []  # it has no name from the begin: a killed process leaves nothing
    del spool
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_repeats_are_counted_as_a_set_counts() -> None:
    values = [1, True, 2, "1", "1", 2**80, 2**80, -5, -5, -5, 0, False, "", 2**63 - 1, 2**63]
    repeats = Repeats()
    for value in values:
        repeats.add(value)
    assert repeats.count() == len(values) - len(set(values))


# --- coco ------------------------------------------------------------------------------------------------------------


def miniatures() -> dict[str, tuple[DatasetConfig, str]]:
    tree = yaml.safe_load((PROJECT / "examples/paper.yaml").read_text())["datasets"]
    table = TypeAdapter(dict[str, DatasetConfig]).validate_python(tree)
    found = {}
    for name in DOCUMENTS:
        key, _, variant = name.partition(" ")[0].partition("@")
        config = table[key].variant(variant) if variant else table[key]
        if config.kind == "coco":
            found[name] = (config, key)
    return found


def everything(of: Source) -> list[Item]:
    return [item for job in LAYOUTS["coco"](of) for item in job.read()]


@pytest.mark.parametrize("name", miniatures())
def test_every_miniature_is_the_same_from_a_spool_and_in_small_pieces(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    DOCUMENTS[name](tmp_path)
    config, key = miniatures()[name]
    of = set_below(source_of(key, config), tmp_path)
    want = everything(of)
    monkeypatch.setattr(streams, "BLOCK", 100)
    monkeypatch.setattr(spools, "BUFFER", 0)
    assert everything(of) == want


def test_annotations_are_what_json_says_of_them_by_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo(tmp_path / "images" / "a.jpg")
    rows = [annotation(number % 3, BOX, id=number) for number in range(30)]
    write_json(tmp_path, annotations=rows, images=[entry(index, f"{index}.jpg") for index in range(3)])
    assert source(tmp_path).max_json_mb
    whole = json.loads((tmp_path / "annotations.json").read_text())["annotations"]
    monkeypatch.setattr(spools, "BUFFER", 0)
    file = read_coco(f"{tmp_path}/annotations.json", max_mb=1)
    for index in range(3):
        want = [row for row in whole if row["image_id"] == index]
        found = file.annotations(index)
        assert [(row["id"], list(row["segmentation"]["counts"])) for row in found] == [
            (row["id"], list(row["segmentation"]["counts"])) for row in want
        ]
    assert list(file.counts()) == [(0, 10), (1, 10), (2, 10)]
