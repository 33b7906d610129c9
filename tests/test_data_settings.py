"""An entry of `datasets:`: what no kind reads is refused, variants are checked at load, ranges mean what they say."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from sum.data.layouts import LAYOUTS
from sum.data.sources import Source
from sum.data_settings import KEYS, MODES, DatasetConfig, line_range, numbers
from sum.datasets import PLACES, source_of

OTHERS: dict[str, Any] = {  # key -> a value that is not the default
    "images": "photos",
    "image_suffix": "_im",
    "masks": "labels",
    "mask_suffix": "_gt",
    "annotations": "other.json",
    "names": "list.txt",
    "names_lines": "0:3",
    "mode": "index",
    "threshold": 5,
    "values": [1, "3..5"],
    "drop": [255],
    "divisor": 256,
    "channel": 0,
    "labelmap": "labelmap.txt",
    "classes": "SegmentationClass",
    "categories": ["thing"],
    "supercategories": ["things"],
    "drop_flags": ["remove"],
    "only_found": True,
    "on_size_mismatch": "skip",
}


def entry(kind: str = "raster", **more: Any) -> DatasetConfig:
    """Loaded as params.yaml is."""
    split = "unlabelled" if kind == "images" else "test"
    about = {"kind": kind, "root": "data/raw/x", "split": split, "task": "part", "licence": "CC0-1.0"}
    return TypeAdapter(DatasetConfig).validate_python(about | more)


def refusal(**more: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        entry(**more)
    (error,) = caught.value.errors()
    return str(error["msg"])


def test_every_special_key_is_tried_below() -> None:
    assert OTHERS.keys() == {key for keys in KEYS.values() for key in keys}
    assert KEYS.keys() >= LAYOUTS.keys()
    assert MODES.keys() <= set(KEYS["raster"])
    assert set(PLACES) <= OTHERS.keys()


@pytest.mark.parametrize("key", OTHERS)
@pytest.mark.parametrize("kind", KEYS)
def test_a_kind_takes_its_keys_and_refuses_the_others(kind: str, key: str) -> None:
    more = {key: OTHERS[key]}
    if key == "names_lines":
        more["names"] = "list.txt"
    if key == "classes":
        more["labelmap"] = "labelmap.txt"
    if key in MODES:
        more["mode"] = MODES[key][0]
    if key in KEYS[kind]:
        assert getattr(entry(kind, **more), key) == OTHERS[key]
        return
    assert f"kind '{kind}' does not read '" in refusal(kind=kind, **more)
    assert f"it reads {KEYS[kind][0]}" in refusal(kind=kind, **more)


def test_an_unread_key_at_its_default_is_no_error() -> None:
    assert entry("coco", masks="masks", threshold=127, drop=[0]).kind == "coco"


@pytest.mark.parametrize(
    ("key", "mode"), [(key, "binary") for key in MODES if key != "threshold"] + [("threshold", "index")]
)
def test_a_mode_refuses_what_it_does_not_read(key: str, mode: str) -> None:
    assert f"mode '{mode}' does not read '{key}'" in refusal(mode=mode, **{key: OTHERS[key]})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"values": ["1-8"], "mode": "index"}, "'1-8' is no number and no range 1..8"),
        ({"values": ["8..1"], "mode": "index"}, "'8..1' is no number and no range"),
        ({"values": ["0..999999999"], "mode": "index"}, "'0..999999999' is no number and no range"),  # not built
        ({"names_lines": "5", "names": "a.txt"}, "names_lines must be START:STOP with START below STOP, got '5'"),
        ({"names_lines": "5:3", "names": "a.txt"}, "got '5:3'"),
        ({"names_lines": "-1:3", "names": "a.txt"}, "got '-1:3'"),
        ({"names_lines": "5:9"}, "names_lines are lines of the file `names`, which is not set"),
        ({"mode": "color", "classes": "a"}, "classes wants labelmap: the names of their colours"),
        ({"threshold": 255}, "threshold must be in 0..254, got 255"),
        ({"min_area": 0}, "min_area must be at least 1, got 0"),
        ({"max_area_share": 1.5}, "max_area_share must be in 0..1"),
        ({"images": ["a", "b"]}, "only kind 'coco' takes several folders of images"),
        ({"task": "unspecified"}, "human masks need a task"),
        ({"select": {"images": 0}}, "images must be at least 1"),
        ({"expect": {"masks": -1}}, "masks must be at least 0"),
        ({"expect": {"point_miou": 0.0}}, "point_miou is in per cent, in 0..100, got 0.0"),
        ({"expect": {"point_miou": 937}}, "got 937"),
        ({"variants": {"loose": {"treshold": 1}}}, "variants.loose.treshold: Unexpected keyword argument"),
        ({"variants": {"loose": {"threshold": 256}}}, "threshold must be in 0..254, got 256"),
        ({"variants": {"other": {"kind": "coco", "mask_suffix": "_gt"}}}, "kind 'coco' does not read 'mask_suffix'"),
        ({"variants": {"deep": {"variants": {}}}}, "variants.deep.variants: a variant has no variants of its own"),
        ({"variants": {"few": {"select": {"first": 3}}}}, "variants.few.select.first: Unexpected keyword argument"),
    ],
)  # fmt: skip
def test_an_impossible_value_is_refused_by_name(more: dict[str, Any], message: str) -> None:
    assert message in refusal(**more)


def test_a_variant_replaces_keys_and_keeps_the_rest() -> None:
    whole = entry(
        mode="index",
        values=["1..3"],
        expect={"images": 9, "masks": 20, "point_miou": 66.6},
        select={"images": 9, "order": "file"},
        variants={"two": {"values": [2], "expect": {"masks": 7}}, "all": {"select": {"images": None}}},
    )
    two = whole.variant("two")
    assert (two.values, two.mode, two.root, two.select) == ([2], "index", "data/raw/x", whole.select)
    assert (two.expect.images, two.expect.masks, two.expect.point_miou) == (9, 7, 66.6)
    assert two.variants == {}
    assert whole.variant("all").select == type(whole.select)(order="file")
    assert whole.values == ["1..3"]  # untouched


@pytest.mark.parametrize(
    ("texts", "want"),
    [([], set()), ([3, "5..7"], {3, 5, 6, 7}), (["-1", "0..0"], {-1, 0}), ([1, "1..2", 2], {1, 2})],
)
def test_number_ranges(texts: list[int | str], want: set[int]) -> None:
    assert numbers(texts) == want


@pytest.mark.parametrize(
    ("text", "want"), [("2:4", "cd"), (":2", "ab"), ("3:", "de"), (":", "abcde"), ("", "abcde"), ("4:99", "e")]
)
def test_lines_are_counted_from_0_and_an_empty_side_is_open(text: str, want: str) -> None:
    assert "".join(list("abcde")[line_range(text)]) == want


def test_a_source_has_the_same_values_as_its_entry() -> None:
    source = source_of("x", entry(mode="index", values=["1..3", 9], names="a.txt", names_lines="2:4", exclude=["b*"]))
    assert (source.values, source.drop, source.lines, source.exclude) == ({1, 2, 3, 9}, {0}, slice(2, 4), ("b*",))
    plain = entry(mode="index", names="a.txt")
    other = {"name", "values", "drop", "lines", "exclude", "colours"}  # colours: read by the layout
    for name in {field.name for field in fields(Source)} - other:
        value = getattr(plain, name)
        assert getattr(source, name) == (tuple(value) if isinstance(value, list) else value), name
    assert source_of("x", entry("coco", images=["a", "b"])).images == ("a", "b")
