"""Every expectation meets a row that breaks it; a check that breaks itself is not mistaken for bad data."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from sum.data.checks import Suite, check_table, make_context
from sum.data.fingerprints import perceptual_hashes
from sum.data.manifest_checks import CopyRules, check_manifest
from sum.data.records import ImageRecord, MaskRecord, encode_mask, write_manifest
from sum.data.reports import Report
from sum.data.rules import COPIED, LIKE, RULES, Limits, Rule, between, given
from sum.data.tables import BudgetFacts, SetFacts
from tests.data.coded import code

pytestmark = pytest.mark.filterwarnings(  # of great_expectations' own imports
    "ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning"
)
LIMITS = Limits(min_side=32, max_side=2000, min_area=16, max_area_share=0.9)
SPLITS = {"human": "train", "bench": "test", "free": "unlabelled"}
SETS = {name: SetFacts(split=split) for name, split in SPLITS.items()}
BUDGETS = {"small": BudgetFacts(human=["human"], unlabelled=["free"], human_wanted=3, unlabelled_wanted=3)}
RLE = encode_mask(np.arange(2400).reshape(40, 60) < 100)
HASH = "0123456789abcdef"


def image(name: str, number: int, **changes: object) -> ImageRecord:
    dataset = name.split("/")[0]
    task = "salient" if dataset != "free" else "unspecified"
    row = ImageRecord(name, dataset, f"raw/{name}.jpg", f"{number:064x}", 40, 60, task, SPLITS[dataset], "CC0-1.0")
    row = replace(row, phash=hashlib.sha256(name.encode()).hexdigest()[:16])  # far from any other
    return replace(row, **changes)  # type: ignore[arg-type]


def mask(name: str, **changes: object) -> MaskRecord:
    owner = name.split("#")[0]
    dataset = owner.split("/")[0]
    row = MaskRecord(name, owner, dataset, "salient", SPLITS[dataset], 100, 1, 2, 20, 30, RLE, "", f"raw/{owner}.png")
    return replace(row, **changes)  # type: ignore[arg-type]


GOOD_IMAGES = [image(f"{name}/{n}", 100 + 10 * i + n) for i, name in enumerate(SPLITS) for n in range(3)]
GOOD_MASKS = [mask(f"{name}/{n}#0") for name in ("human", "bench") for n in range(3)]


def check(folder: Path, images: list[ImageRecord], masks: list[MaskRecord], **options: object) -> Report:
    write_manifest(folder / "manifest", images, masks)
    wanted = {"sets": SETS, "budgets": BUDGETS, "limits": LIMITS, "copies": CopyRules(bits=8, alike=0.95)}
    return check_manifest(folder / "manifest", docs=folder / "docs", **wanted | options)  # type: ignore[arg-type]


BROKEN = {  # rule -> what the report must name; the rows are in `broken`
    "image ids are unique": ["human/twice"],
    "height is 32..2000 px": ["human/low", "raw/human/low.jpg"],
    "width is 32..2000 px": ["human/wide"],
    "split is known": ["human/odd"],
    "task is known": ["human/odd"],
    "licence is given": ["human/unlicensed"],
    "licence is not blank": ["human/bare"],
    "sha256 is 64 hex digits": ["human/hash"],
    "perceptual hash was taken": ["human/unhashed"],
    "no image content twice within one data set": ["human/copy", "same_as human/0 (raw/human/0.jpg)"],
    "no image content in two training sets": ["elsewhere free/again (raw/free/again.jpg), image_id human/1"],
    "no train or unlabelled image in a test set": [
        "human/leak, in_test bench/0 (raw/bench/0.jpg), path raw/human/leak.jpg",
        "free/leak, in_test bench/1 (raw/bench/1.jpg), path raw/free/leak.jpg",
    ],
    "no train or unlabelled image looks like one of a test set": [
        "human/look",
        "like_test bench/look (",
        "0 of 64 bits differ, likeness",
    ],
    "mask ids are unique": ["human/0#7"],
    "mask belongs to an image": ["human/nowhere#0"],
    "split is train or test": ["free/0#0"],
    "task is salient, entity or part": ["human/1#9"],
    "run lengths alternate and none is negative": ["human/1#13"],
    "run lengths cover the image": ["human/1#11"],
    "area is that of the run lengths": ["human/1#12"],
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
    "images are as many as expected": ["dataset bench, expected_images 7.0"],
    "masks are as many as expected": ["dataset bench, expected_masks 8.0"],
    "nothing was skipped": ["dataset human, skipped 2"],
    "data set of a budget has images": ["budget large, dataset absent"],
    "human images fill a batch": ["budget large", "human_wanted 99"],
    "unlabelled images fill a batch": ["budget large", "unlabelled_wanted 98"],
}


WARNINGS = {
    "perceptual hash was taken", "no image content in two training sets", "images are as many as expected",
    "masks are as many as expected", "nothing was skipped", "human images fill a batch",
    "unlabelled images fill a batch",
}  # fmt: skip


def first(count: int) -> str:
    """The run lengths of a mask of the first so many pixels of 40 x 60."""
    return encode_mask(np.arange(2400).reshape(40, 60) < count)


def looks(folder: Path) -> list[ImageRecord]:
    """A train photo that is the mirror image of a test photo in another format."""
    smooth = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    theirs = PIL.Image.fromarray(smooth).resize((60, 40), PIL.Image.Resampling.BICUBIC)
    mine = theirs.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    rows = []
    for name, picture, number in (("bench/look.png", theirs, 900), ("human/look.jpg", mine, 901)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        phash, mirror = perceptual_hashes(np.asarray(picture))
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        row = image(name.partition(".")[0], number, path=str(path), sha256=content, phash=phash, mirror_phash=mirror)
        rows.append(row)
    return rows


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
        image("human/unlicensed", 9, licence=None),
        image("human/copy", 100),
        image("human/leak", 110),
        image("free/leak", 111),
        image("human/unhashed", 8, phash=""),
        image("free/again", 101),
        *looks(folder),
    ]
    masks = [
        *(mask("human/0#7") for _ in range(2)),
        mask("human/nowhere#0"),
        mask("free/0#0"),
        mask("human/1#9", task="unspecified"),
        mask("human/1#2", area=15, rle=first(15)),
        mask("human/1#3", area=2161, rle=first(2161)),
        mask("human/1#11", rle=encode_mask(np.arange(1200).reshape(40, 30) < 100)),
        mask("human/1#12", area=101),
        mask("human/1#13", rle=code([0, 50, 0, 50, 2300])),  # 100 pixels in a way that no mask is written
        mask("human/1#4", x0=-1),
        mask("human/1#5", y0=-1),
        mask("human/1#6", x0=21),
        mask("human/1#7", y0=31),
        mask("human/1#8", x1=60),
        mask("human/1#10", y1=40),
    ]
    sets = SETS | {"bench": SetFacts(split="test", images=7, masks=8), "absent": SetFacts(split="test")}
    large = BudgetFacts(human=["human"], unlabelled=["absent"], human_wanted=99, unlabelled_wanted=98)
    options = {"sets": sets | {"human": SetFacts(split="train", skipped=2)}, "budgets": BUDGETS | {"large": large}}
    return check(folder, GOOD_IMAGES + images, GOOD_MASKS + masks, **options), folder


def test_every_rule_has_a_case(broken: tuple[Report, Path]) -> None:
    assert [outcome.rule for outcome in broken[0].outcomes] == list(BROKEN)
    assert all(BROKEN.values())
    assert not any(outcome.error for outcome in broken[0].outcomes)


@pytest.mark.parametrize("rule", sorted(BROKEN))
def test_every_rule_names_the_row_that_breaks_it(rule: str, broken: tuple[Report, Path]) -> None:
    (outcome,) = [outcome for outcome in broken[0].outcomes if outcome.rule == rule]
    assert not outcome.success
    assert len(outcome.rows) == outcome.unexpected
    for want in BROKEN[rule]:
        assert any(want in row for row in outcome.rows), outcome.rows
    # two masks have no image: their pair checks have nothing to compare with; all else breaks by its own row only
    others = {"mask ids are unique": 2, "image ids are unique": 2, "no train or unlabelled image in a test set": 2}
    assert (outcome.state == "warning") == (rule in WARNINGS)
    assert outcome.unexpected <= others.get(rule, 1) + ("<" in rule)
    assert ("`exclude`" in outcome.text) == (rule in (COPIED, LIKE))  # where the rule does not say itself what to do


FIGURES = ["Masks by data set", "Class balance", "Size of masks", "Masks in an image"]


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
    assert [title for title in FIGURES if f'aria-label="{title}"' in index] == FIGURES


@pytest.mark.slow
def test_the_report_is_the_same_whatever_the_order_of_rows(tmp_path: Path) -> None:
    reports = [check(tmp_path, images, GOOD_MASKS) for images in (GOOD_IMAGES, GOOD_IMAGES[::-1])]
    assert reports[0].rows == {"images": 9, "masks": 6, "datasets": 3, "budgets": 1}
    assert [outcome.rule for outcome in reports[0].failed] == []
    assert json.dumps(reports[0].as_json()) == json.dumps(reports[1].as_json())


@pytest.mark.slow
def test_a_manifest_without_masks_is_checked_all_the_same(tmp_path: Path) -> None:
    free = [one for one in GOOD_IMAGES if one.dataset == "free"]
    report = check(tmp_path, free, [], sets={"free": SETS["free"]}, budgets={})
    assert [outcome.rule for outcome in report.failed] == []


def test_a_check_that_breaks_is_an_error_and_not_bad_data(tmp_path: Path) -> None:
    table = pd.DataFrame({"images": [1], "dataset": ["a"]})  # no column `human_masks`
    broken = {"could not begin": "the disk is on fire"}
    rules = [*RULES["datasets"](LIMITS)[:2], Rule("ExpectColumnValuesToBeNull", "could not begin", {}, "warning")]
    sound, failed, stopped = check_table(make_context(tmp_path), "datasets", Suite(table, ["dataset"], rules, broken))
    assert sound.success
    assert (failed.success, failed.unexpected) == (False, 0)
    assert "human_masks" in failed.error
    assert (stopped.state, stopped.error) == ("failed", "the disk is on fire")  # though its severity is a warning


def test_a_check_that_breaks_on_one_part_is_an_error_of_the_whole(tmp_path: Path) -> None:
    """Whichever part it is, the first, one in between or the last."""
    parts = [pd.DataFrame({"key": [n, n + 1], "value": [n, None]}) for n in (1, 3, 5)]
    rules = [between("value is at most 2", "value", None, 2), given("value is given", "value")]
    counted = Counter[str]()
    most, here = check_table(make_context(tmp_path / "a"), "t", Suite(iter(parts), ["key"], rules), rows=counted)
    assert counted == {"t": 6}
    assert (most.unexpected, most.rows) == (2, ("key 3, value 3.0", "key 5, value 5.0"))
    assert (here.unexpected, [row.partition(",")[0] for row in here.rows]) == (3, ["key 2", "key 4", "key 6"])
    for broken in range(3):
        some = [part.drop(columns="value") if n == broken else part for n, part in enumerate(parts)]
        found = check_table(make_context(tmp_path / f"{broken}"), "t", Suite(iter(some), ["key"], rules))
        assert [(one.state, one.unexpected, one.rows) for one in found] == [("failed", 0, ())] * 2
        assert all("value" in one.error for one in found)


def test_no_more_rows_are_shown_of_many_parts_than_of_one(tmp_path: Path) -> None:
    parts = (pd.DataFrame({"key": range(n, n + 4), "value": range(n, n + 4)}) for n in range(0, 40, 4))
    suite = Suite(parts, ["key"], [between("value is at most 2", "value", None, 2)])
    (found,) = check_table(make_context(tmp_path), "t", suite)
    assert (found.unexpected, found.rows) == (37, tuple(f"key {n}, value {n}" for n in range(3, 13)))


def test_a_copy_that_cannot_be_looked_at_is_a_failed_check(tmp_path: Path) -> None:
    same = [image("human/a", 1, phash=HASH, mirror_phash=HASH), image("bench/a", 2, phash=HASH, mirror_phash=HASH)]
    report = check(tmp_path, same, [], sets={}, budgets={})
    assert {outcome.error for outcome in report.failed} == {"raw/human/a.jpg: the image is missing"}
    assert len(report.failed) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("allowed", "on_copy", "want"), [
    ((), "error", ["failed"]),
    ((), "warning", ["warning"]),
    ((("human/lo*", "bench/look"),), "error", []),
    ((("human/lo*", "bench/other"),), "error", ["failed"]),
])  # fmt: skip
def test_a_look_alike_may_be_a_warning_or_allowed(
    tmp_path: Path, allowed: tuple[tuple[str, str], ...], on_copy: str, want: list[str]
) -> None:
    limits = replace(LIMITS, on_copy=on_copy)  # type: ignore[arg-type]
    copies = CopyRules(bits=8, alike=0.95, allowed=allowed)
    report = check(tmp_path, looks(tmp_path), [], sets={}, budgets={}, limits=limits, copies=copies)
    assert [outcome.state for outcome in report.outcomes if not outcome.success] == want
    found = report.as_json()["allowed_copies"]
    assert isinstance(found, dict)
    assert found["count"] == (0 if want else 1)
    assert all("human/look" in row and "bench/look" in row for row in found["rows"])
