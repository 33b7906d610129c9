"""Every expectation meets a row that breaks it; a check that breaks itself is not mistaken for bad data."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sum.data.checks import RULES, Limits, check_manifest, check_table, make_context
from sum.data.records import ImageRecord, Manifest, MaskRecord
from sum.data.reports import Report

pytestmark = pytest.mark.filterwarnings(  # of great_expectations' own imports
    "ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning"
)
LIMITS = Limits(min_side=32, max_side=2000, min_area=16, max_area_share=0.9)
SPLITS = {"human": "train", "bench": "test", "free": "unlabelled"}
BUDGETS = {"small": ["human", "free"]}


def image(name: str, number: int, **changes: object) -> ImageRecord:
    dataset = name.split("/")[0]
    task = "salient" if dataset != "free" else "unspecified"
    row = ImageRecord(name, dataset, f"raw/{name}.jpg", f"{number:064x}", 40, 60, task, SPLITS[dataset], "CC0-1.0")
    return replace(row, **changes)  # type: ignore[arg-type]


def mask(name: str, **changes: object) -> MaskRecord:
    owner = name.split("#")[0]
    dataset = owner.split("/")[0]
    row = MaskRecord(name, owner, dataset, "salient", SPLITS[dataset], 100, 1, 2, 20, 30, "0c0", "", f"raw/{owner}.png")
    return replace(row, **changes)  # type: ignore[arg-type]


GOOD_IMAGES = [image(f"{name}/{n}", 100 + 10 * i + n) for i, name in enumerate(SPLITS) for n in range(3)]
GOOD_MASKS = [mask(f"{name}/{n}#0") for name in ("human", "bench") for n in range(3)]


def check(folder: Path, images: list[ImageRecord], masks: list[MaskRecord], **options: object) -> Report:
    wanted = {"splits": SPLITS, "budgets": BUDGETS, "limits": LIMITS, "docs": folder / "docs"} | options
    return check_manifest(Manifest(images, masks), **wanted)  # type: ignore[arg-type]


BROKEN = {  # rule -> what the report must name; the rows are in `broken`
    "image ids are unique": ["human/twice"],
    "height is 32..2000 px": ["human/low", "raw/human/low.jpg"],
    "width is 32..2000 px": ["human/wide"],
    "split is known": ["human/odd"],
    "task is known": ["human/odd"],
    "licence is given": [],
    "licence is not blank": ["human/bare"],
    "sha256 is 64 hex digits": ["human/hash"],
    "no image content twice within one data set": ["human/copy", "same_as human/0 (raw/human/0.jpg)"],
    "no train or unlabelled image in a test set": [
        "human/leak, in_test bench/0 (raw/bench/0.jpg), path raw/human/leak.jpg",
        "free/leak, in_test bench/1 (raw/bench/1.jpg), path raw/free/leak.jpg",
    ],
    "mask ids are unique": ["human/0#7"],
    "mask belongs to an image": ["human/nowhere#0"],
    "split is train or test": ["free/0#0"],
    "task is salient, entity or part": ["human/1#9"],
    "area is at least 16 px": ["area 15"],
    "area is at most 0.9 of the image": ["human/1#3"],
    "box inside image: x0 >= 0": ["human/1#4"],
    "box inside image: y0 >= 0": ["human/1#5"],
    "box inside image: x1 >= x0": ["human/1#6"],
    "box inside image: y1 >= y0": ["human/1#7"],
    "box inside image: x1 < width": ["human/1#8"],
    "box inside image: y1 < height": ["human/1#10"],
    "data set has images": ["dataset absent"],
    "train or test set has masks": ["dataset absent"],
    "data set of a budget has images": ["budget large, dataset absent"],
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """One manifest that breaks every rule, each by rows of its own."""
    folder = tmp_path_factory.mktemp("broken")
    images = [
        *(image("human/twice", n) for n in (1, 2)),
        image("human/low", 3, height=31),
        image("human/wide", 4, width=2001),
        image("human/odd", 5, split="val", task="thing"),
        image("human/bare", 6, licence=" "),
        image("human/hash", 7, sha256="0" * 63),
        image("human/copy", 100),
        image("human/leak", 110),
        image("free/leak", 111),
    ]
    masks = [
        *(mask("human/0#7") for _ in range(2)),
        mask("human/nowhere#0"),
        mask("free/0#0"),
        mask("human/1#9", task="unspecified"),
        mask("human/1#2", area=15),
        mask("human/1#3", area=2161),
        mask("human/1#4", x0=-1),
        mask("human/1#5", y0=-1),
        mask("human/1#6", x0=21),
        mask("human/1#7", y0=31),
        mask("human/1#8", x1=60),
        mask("human/1#10", y1=40),
    ]
    options = {"splits": SPLITS | {"absent": "test"}, "budgets": BUDGETS | {"large": ["human", "absent"]}}
    return check(folder, GOOD_IMAGES + images, GOOD_MASKS + masks, **options), folder


def test_every_rule_has_a_case(broken: tuple[Report, Path]) -> None:
    assert [outcome.rule for outcome in broken[0].outcomes] == list(BROKEN)
    assert not any(outcome.error for outcome in broken[0].outcomes)


@pytest.mark.parametrize("rule", sorted(BROKEN))
def test_every_rule_names_the_row_that_breaks_it(rule: str, broken: tuple[Report, Path]) -> None:
    (outcome,) = [outcome for outcome in broken[0].outcomes if outcome.rule == rule]
    if not BROKEN[rule]:  # the table's column type has no null to find
        assert outcome.success
        return
    assert not outcome.success
    assert len(outcome.rows) == outcome.unexpected
    for want in BROKEN[rule]:
        assert any(want in row for row in outcome.rows), outcome.rows
    # two masks have no image: their pair checks have nothing to compare with; all else breaks by its own row only
    others = {"mask ids are unique": 2, "image ids are unique": 2, "no train or unlabelled image in a test set": 2}
    assert outcome.unexpected <= others.get(rule, 1) + ("<" in rule)


def test_pages_need_no_network_and_name_the_rows(broken: tuple[Report, Path]) -> None:
    pages = {path.relative_to(broken[1] / "docs").as_posix(): path.read_text() for path in broken[1].rglob("*.html")}
    assert len(pages) == 9  # the index; a suite and a result for each of four tables
    for name, text in pages.items():
        assert not re.search(r"<(script|link|img|iframe)\b|url\(|@import", text), name
    index = pages["index.html"]
    assert "bench/1 (raw/bench/1.jpg)" in index
    links = re.findall(r'href="([^"]+)"', index)
    assert set(links) <= set(pages)
    assert {link.split("/")[1] for link in links} == set(RULES)


@pytest.mark.slow
def test_the_report_is_the_same_whatever_the_order_of_rows(tmp_path: Path) -> None:
    reports = [check(tmp_path, images, GOOD_MASKS) for images in (GOOD_IMAGES, GOOD_IMAGES[::-1])]
    assert reports[0].rows == {"images": 9, "masks": 6, "datasets": 3, "budgets": 1}
    assert [outcome.rule for outcome in reports[0].failed] == []
    assert json.dumps(reports[0].as_json()) == json.dumps(reports[1].as_json())


@pytest.mark.slow
def test_a_manifest_without_masks_is_checked_all_the_same(tmp_path: Path) -> None:
    free = [one for one in GOOD_IMAGES if one.dataset == "free"]
    report = check(tmp_path, free, [], splits={"free": "unlabelled"}, budgets={})
    assert [outcome.rule for outcome in report.failed] == []


def test_a_check_that_breaks_is_an_error_and_not_bad_data(tmp_path: Path) -> None:
    table = pd.DataFrame({"images": [1], "dataset": ["a"]})  # no column `human_masks`
    context = make_context(tmp_path)
    rules = RULES["datasets"](LIMITS)
    sound, failed = check_table(context, "datasets", table=table, rules=rules, keys=["dataset"])
    assert sound.success
    assert (failed.success, failed.unexpected) == (False, 0)
    assert "human_masks" in failed.error
