"""Each expectation of labels meets a shard that was really altered; a good store passes; damage is a failed check."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest

from sum.data.label_checks import LabelLimits, check_labels, image_rules, mask_rules, yield_rules
from sum.data.label_tables import LabelRows, LabelTables
from sum.data.labels import PseudoMask, label_rows, map_rows
from sum.data.records import ImageRecord, encode_mask, write_manifest
from sum.data.reports import Report
from sum.data.shards import LABELS, UNCERTAINTY, read_info, shard_name, write_shard
from sum.errors import DataError, MissingInput
from sum.models.generator import area_at_paper_side
from sum.storage import write_json
from tests.data.coded import code

pytestmark = pytest.mark.filterwarnings(  # of great_expectations' own imports
    "ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning"
)
HEIGHT, WIDTH, SIDE = 40, 60, 8
LIMITS = LabelLimits(
    min_area=1000,  # 3.43 px of these photos
    max_area_share=0.5,
    pred_iou_thresh=0.7,
    stability_thresh=0.8,
    max_predicted_iou=1.5,
    max_share_without_masks=0.4,
    min_refine_area=1500,
)


def image(name: str, number: int, split: str = "unlabelled") -> ImageRecord:
    dataset = name.split("/")[0]
    return ImageRecord(name, dataset, f"raw/{name}.jpg", f"{number:064x}", HEIGHT, WIDTH, "unspecified", split, "MIT")


def mask(image_id: str, index: int, **changes: object) -> PseudoMask:
    """Rows 2 to 11, columns 1 to 20; its run lengths by hand, one a column."""
    made = PseudoMask(
        image_id=image_id,
        index=index,
        rle=code([HEIGHT + 2, *[10, HEIGHT - 10] * 19, 10, HEIGHT * (WIDTH - 21) + HEIGHT - 12]),
        area=200,
        box=(1, 2, 20, 11),
        point=(5.5, 6.5),
        predicted_iou=0.95 - index / 10,
        stability=0.9,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


Images = dict[str, list[PseudoMask]]


def write(
    folder: Path,
    images: Images,
    records: Sequence[ImageRecord],
    *,
    without_maps: Collection[str] = (),
    unreadable: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """A manifest, shards of labels and of uncertainty; without_maps: images whose masks have none."""
    write_manifest(folder / "manifest", [*records, image("t/0", 100, "test")], [])
    for kind in (LABELS, UNCERTAINTY):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        with write_shard(folder / kind / shard_name(0), kind=kind, side=SIDE, shards=1) as shard:
            for name, masks in images.items():
                codes = np.full((len(masks), SIDE, SIDE), 99, np.uint8)
                has_map = [name not in without_maps and mask.area >= 5 for mask in masks]  # 5 px: 1456 at 1024
                made = label_rows(masks, codes)
                if kind == UNCERTAINTY:
                    made = map_rows(has_map, refined=codes + 1, uncertainty=None)
                shard.add(name, made)
            if kind == LABELS:
                labels = shard.info
            else:
                shard.about(labels)
    write_json(folder / LABELS / "summary.json", {"unreadable": dict(unreadable)})


def check(folder: Path, *, limits: LabelLimits = LIMITS) -> Report:
    return check_labels(folder / "manifest", folder / LABELS, folder / UNCERTAINTY, limits=limits, docs=folder / "docs")


def figures(page: Path) -> list[str]:
    """What a page of Great Expectations counts."""
    text = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page.read_text(encoding="utf-8")))
    found = re.findall(
        r"(?:Unsuccessful|Evaluated) Expectations \d+|[\d,]+ unexpected values found. \S+ of \d+ total", text
    )
    assert len(found) > 20
    return found


def rows(report: Report) -> dict[str, tuple[str, ...]]:
    """Broken rule -> the rows that are named."""
    return {outcome.rule: outcome.rows for outcome in report.outcomes if not outcome.success}


ALTERED = {  # rule -> what is altered in the second mask of an image, and what of its row is named
    "no value is missing or infinite": ({"point": (float("nan"), 5.0)}, "lacking point_x"),
    "run lengths cover the image": (
        {"rle": encode_mask(np.arange(1200).reshape(40, 30) < 200), "area": 200, "box": (0, 0, 29, 6)},
        "pixels 1200",
    ),
    "area is that of the run lengths": ({"area": 201}, "area 201"),
    "area is at least 1000 px of a 1024 frame": (
        {"rle": code([0, 3, HEIGHT * WIDTH - 3]), "area": 3, "box": (0, 0, 0, 2)},
        "paper_area 873.8",
    ),
    "area is at most 0.5 of the image": (
        {"rle": code([0, 1201, HEIGHT * WIDTH - 1201]), "area": 1201, "box": (0, 0, 30, 39)},
        "area_share 0.5004",
    ),
    "box is that of the run lengths": ({"box": (1, 2, 19, 11)}, "box_of_runs 1 2 20 11"),
    "box inside image: x0 >= 0": ({"box": (-1, 2, 20, 11)}, "x0 -1"),
    "box inside image: y0 >= 0": ({"box": (1, -2, 20, 11)}, "y0 -2"),
    "box inside image: x1 >= x0": ({"box": (21, 2, 20, 11)}, "x0 21"),
    "box inside image: y1 >= y0": ({"box": (1, 12, 20, 11)}, "y0 12"),
    "box inside image: x1 < width": ({"box": (1, 2, 60, 11)}, "x1 60"),
    "box inside image: y1 < height": ({"box": (1, 2, 20, 40)}, "y1 40"),
    "point inside image: x >= 0": ({"point": (-0.5, 5.0)}, "point_x -0.5"),
    "point inside image: y >= 0": ({"point": (5.0, -0.5)}, "point_y -0.5"),
    "point inside image: x < width": ({"point": (60.0, 5.0)}, "point_x 60"),
    "point inside image: y < height": ({"point": (5.0, 40.0)}, "point_y 40"),
    "stability is 0.8..1": ({"stability": 0.79}, "stability 0.79"),
    "predicted IoU is at least 0.7": ({"predicted_iou": 0.69}, "predicted_iou 0.6"),
    "best predicted IoU comes first": ({"predicted_iou": 0.99}, "iou_before 0.94"),
    "run lengths alternate and none is negative": (
        {"rle": code([HEIGHT + 2, 5, 0, 5, *[HEIGHT - 10, 10] * 19, HEIGHT * (WIDTH - 21) + HEIGHT - 12])},
        "alternate False",
    ),
    "predicted IoU is at most 1.5": ({"predicted_iou": 1.6}, "predicted_iou 1.6"),
}
ALSO: dict[str, set[str]] = {  # a box that leaves the image is not that of the mask, whose run lengths are as they were
    **{rule: {"box is that of the run lengths"} for rule in ALTERED if rule.startswith("box inside")},
    "predicted IoU is at most 1.5": {"best predicted IoU comes first"},
}


OF_IMAGES = {  # rule of the images -> the image that breaks it, and what of its row is named
    "image is in the manifest": "w/nowhere",
    "image is of split unlabelled": "w/train",
    "image is labelled, or listed as unreadable": "w/forgotten",
    "image can be read": "w/broken, reason no JPEG",
    "no labelled image in a test set": "w/copy, in_test t/0 (raw/t/0.jpg)",
    "at most 0.4 of the images are without masks": "dataset empty",
    "a map where, and only where, area is at least 1500 px": "u/without",
}
NOT_BROKEN = {"labels can be read"}  # by a file that the writer of shards makes


@pytest.fixture(scope="module")
def altered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """One store in which every rule is broken, each by an image of its own among good ones."""
    folder = tmp_path_factory.mktemp("altered")
    images: Images = {f"u/{number}": [mask(f"u/{number}", 0), mask(f"u/{number}", 1)] for number in range(2)}
    for number, (changes, _) in enumerate(ALTERED.values()):
        name = f"a/{number:02d}"
        images[name] = [mask(name, 0), replace(mask(name, 1), **changes)]  # type: ignore[arg-type]
    images |= {name: [mask(name, 0)] for name in ("w/nowhere", "w/train", "w/copy", "u/without")}
    images |= {"empty/0": [], "empty/1": [], "empty/2": [mask("empty/2", 0)]}
    records = [
        *(image(name, number) for number, name in enumerate(images) if name.startswith(("u", "a", "empty"))),
        image("w/train", 90, "train"),
        image("w/copy", 100),
        *(image(name, 92 + number) for number, name in enumerate(("w/forgotten", "w/broken"))),
    ]
    write(folder, images, records, without_maps={"u/without"}, unreadable={"w/broken": "no JPEG"})
    return check(folder), folder


def test_every_rule_has_a_case(altered: tuple[Report, Path]) -> None:
    rules = {outcome.rule for outcome in altered[0].outcomes}
    assert rules == {*ALTERED, *OF_IMAGES} | NOT_BROKEN
    assert rules == {rule.text for rule in (*mask_rules(LIMITS), *image_rules(), *yield_rules(LIMITS))}
    assert not any(outcome.error for outcome in altered[0].outcomes)
    warnings = {outcome.rule for outcome in altered[0].warnings}
    assert warnings == {
        "predicted IoU is at most 1.5",
        "image can be read",
        "at most 0.4 of the images are without masks",
    }


def test_an_altered_mask_breaks_its_rule_alone(altered: tuple[Report, Path]) -> None:
    found = rows(altered[0])
    assert not NOT_BROKEN & set(found)
    for number, (rule, (_, row)) in enumerate(ALTERED.items()):
        name = f"image_id a/{number:02d}"
        broken = {one for one, texts in found.items() if any(name in text for text in texts)}
        assert broken == {rule} | ALSO.get(rule, set())
        assert any(name in text and row in text for text in found[rule]), found[rule]
    assert not [text for texts in found.values() for text in texts if re.search("image_id u/[01]", text)]


def test_an_image_without_a_right_answer_is_named(altered: tuple[Report, Path]) -> None:
    found = rows(altered[0])
    for rule, row in OF_IMAGES.items():
        assert any(row in text for text in found[rule]), found[rule]
    for rule in set(OF_IMAGES) - {"image is of split unlabelled"}:
        assert len(found[rule]) == 1
    assert (altered[1] / "docs" / "index.html").is_file()


@pytest.mark.slow
def test_rows_in_parts_break_the_same_rules_by_the_same_rows(
    altered: tuple[Report, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A part holds whole images: its best mask is not lost to the row after it. The altered store is one part."""
    whole, folder = altered
    monkeypatch.setattr(LabelTables.masks, "__defaults__", (5,))
    sizes = list[int]()
    plain = LabelRows.table

    def told(rows: LabelRows, *, min_refine_area: float) -> pd.DataFrame:
        table = plain(rows, min_refine_area=min_refine_area)
        sizes.append(len(table))
        return table

    monkeypatch.setattr(LabelRows, "table", told)
    again = tmp_path / "again"
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("docs"))
    cut = check(again)
    assert sizes[:3] == [6, 6, 6]  # three images of two masks each
    assert (len(sizes), sum(sizes)) == (9, whole.rows["labels"])
    assert cut.as_json() == whole.as_json()
    one, other = (sorted((place / "docs").rglob("validations/**/labels-labels.html")) for place in (folder, again))
    assert len(one) == len(other) == 1
    assert figures(other[0]) == figures(one[0])


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Two images with two masks each."""
    images = {name: [mask(name, 0), mask(name, 1)] for name in ("u/0", "u/1")}
    write(tmp_path, images, [image("u/0", 0), image("u/1", 1)])
    return tmp_path


def test_a_good_store_passes(sound: Path) -> None:
    report = check(sound)
    assert rows(report) == {}
    assert report.rows == {"labels": 4, "label_images": 2, "label_sets": 1}
    assert "allowed_copies" not in report.as_json()


def test_a_damaged_shard_is_a_failed_check_and_not_a_crash(sound: Path) -> None:
    shard = sound / LABELS / shard_name(0)
    shard.write_bytes(shard.read_bytes()[:-20])
    report = check(sound)
    assert len(report.failed) == len(report.outcomes)
    assert {outcome.error for outcome in report.outcomes} == {report.outcomes[0].error}
    assert str(shard) in report.outcomes[0].error


def test_a_row_that_cannot_be_read_is_named_with_its_image(sound: Path) -> None:
    """A byte is turned: the image's checksum tells when it is read, and the index knows nothing of it."""
    shard = sound / UNCERTAINTY / shard_name(0)
    content = bytearray(shard.read_bytes())
    place = read_info(shard, kind=UNCERTAINTY).images["u/0"]
    content[place.offset + place.size - 3] ^= 1
    shard.write_bytes(content)
    found = rows(check(sound))
    assert set(found) == {"labels can be read"}
    assert "u/0" in found["labels can be read"][0]


@pytest.mark.parametrize("gone", [LABELS, UNCERTAINTY])
def test_before_its_stages_it_says_which_is_missing(sound: Path, gone: str) -> None:
    shutil.rmtree(sound / gone)
    with pytest.raises(MissingInput, match=f"stage 'check_labels' reads it, stage '{gone}' writes it"):
        check(sound)


def test_the_area_is_that_of_the_stage() -> None:
    """To the last bit: a mask of exactly the least area passes."""
    for height, width in ((40, 60), (333, 1000), (1333, 2000)):
        gathered = LabelRows()
        gathered.add("u/0", [mask("u/0", 0, area=77)], [True], hw=(height, width))
        assert gathered.table(min_refine_area=0)["paper_area"].tolist() == [area_at_paper_side(77, (height, width))]


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_summary_is_named(sound: Path, text: str) -> None:
    (sound / LABELS / "summary.json").write_text(text)
    with pytest.raises(DataError, match=r"summary\.json: not what stage 'pseudo_label' writes.*dvc repro pseudo_label"):
        check(sound)
