"""Annotation files too large, too deep, no text, no JSON: one finding with the file, the reason and a remedy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sum.data.documents import BadDocument, clean, of_one_image, read_json, read_lines
from sum.data.sources import Problem
from sum.storage import NotFound
from tests.clock import cpu_limit

BAD = {
    "empty": (b"", "not JSON"),
    "cut": (b'{"images": [', "not JSON"),
    "zip": (b"PK\x03\x04\x00", "not JSON"),
    "latin": ('{"name": "Stra\u00dfe"}'.encode("latin-1"), "not a text in UTF-8 (byte 0xdf at 14)"),
    "lists": (b"[" * 200_000, "nested too deeply"),
    "objects": (b'{"a":' * 200_000, "nested too deeply"),
    "digits": (b'{"id": ' + b"9" * 10_000 + b"}", "not JSON"),
    "twice": (b'{"a": {"images": [], "images": [1]}}', "has the key 'images' twice"),
    "two": (b"{} {}", "not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    data, reason = BAD[name]
    path = tmp_path / "labels.json"
    path.write_bytes(data)
    with pytest.raises(BadDocument) as caught:
        read_json(str(path), max_mb=1)
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400
    found = of_one_image(str(path), max_mb=1)
    assert isinstance(found, Problem)
    assert (found.file, reason in found.reason, bool(found.remedy)) == (str(path), True, True)


def test_a_key_twice_is_found_in_one_walk(tmp_path: Path) -> None:
    """20,000 keys took 9 seconds: each was held against each."""
    path, keys = tmp_path / "labels.json", [f'"{index}": 0' for index in range(40_000)]
    path.write_text(f"{{{', '.join([*keys, keys[-1]])}}}")
    with cpu_limit(3), pytest.raises(BadDocument, match="has the key '39999' twice"):
        read_json(str(path), max_mb=1)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    with path.open("wb") as file:
        file.truncate(1_200_000_000)  # a hole: takes no room
    with pytest.raises(BadDocument, match=r"1,200 MB, more than max_json_mb 1024\. Raise max_json_mb"):
        read_json(str(path), max_mb=1024)
    path.write_text("[" + " " * 1_000_000 + "]")
    with pytest.raises(BadDocument, match="more than max_json_mb 1"):
        read_json(str(path), max_mb=1)
    assert read_json(str(path), max_mb=2) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_with_a_mark_is_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes('{"name": "Straße 道"}'.encode(encoding))
    assert read_json(str(path), max_mb=1) == {"name": "Straße 道"}


def test_values_that_are_no_finite_number_are_left_to_who_uses_them(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"a": NaN, "b": -Infinity, "c": 1e999}')
    tree = read_json(str(path), max_mb=1)
    assert math.isnan(tree["a"])
    assert (tree["b"], tree["c"]) == (-math.inf, math.inf)


def test_what_is_kept_is_chosen_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps([{"a": 1, "b": {"a": 2, "c": 3}}]))
    tree = read_json(str(path), max_mb=1, shrink=lambda tree: {k: v for k, v in tree.items() if k != "c"})
    assert tree == [{"a": 1, "b": {"a": 2}}]


def test_names_out_of_json_can_be_printed() -> None:
    assert clean(json.loads(r'"a\ud800b"')) == "a?b"
    assert clean(json.loads(r'"\ud83d\ude00"')) == "\U0001f600"


def test_lists_of_names(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\n\r\n b \r\nc\r\n")
    assert read_lines(str(path), lines=slice(None), max_mb=1) == ["a", "b", "c"]
    assert read_lines(str(path), lines=slice(1, 2), max_mb=1) == ["b"]
    with pytest.raises(BadDocument, match=r"names\.txt: the list is empty\. Write one name a line"):
        read_lines(str(path), lines=slice(5, 9), max_mb=1)
    with pytest.raises(NotFound):
        read_lines(str(tmp_path / "gone.txt"), lines=slice(None), max_mb=1)
