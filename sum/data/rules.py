"""What each table must fulfil, in words and as plain values: sum.data.checks hands them to Great Expectations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning"]
HASH = "[0-9a-f]"
COPIED = "no train or unlabelled image in a test set"
LIKE = "no train or unlabelled image looks like one of a test set"
REMEDIES = dict.fromkeys(
    (COPIED, LIKE), "leave it out of one of them by `exclude`, or name it in validate.allowed_copies"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of sizes: px, px, px, share of the image; on_copy: what a look-alike of a test image is."""

    min_side: int
    max_side: int
    min_area: int
    max_area_share: float
    on_copy: Severity = "error"


@dataclass(frozen=True, slots=True)
class Rule:
    """One expectation: the name of Great Expectations' class, the rule in words, and what it is about."""

    kind: str
    text: str
    options: dict[str, Any] = field(default_factory=dict)
    severity: Severity = "error"


def between(
    text: str, column: str, low: float | None = None, high: float | None = None, severity: Severity = "error"
) -> Rule:
    """A value lies in low .. high, both ends allowed; a missing value breaks no rule but `given`."""
    bounds = {"min_value": low, "max_value": high}
    stated = {key: value for key, value in bounds.items() if value is not None}
    return Rule("ExpectColumnValuesToBeBetween", text, {"column": column, **stated}, severity)


def null(text: str, column: str, severity: Severity = "error") -> Rule:
    """Nothing stands in a column that names what is wrong."""
    return Rule("ExpectColumnValuesToBeNull", text, {"column": column}, severity)


def unique(text: str, column: str) -> Rule:
    """No value twice."""
    return Rule("ExpectColumnValuesToBeUnique", text, {"column": column})


def given(text: str, column: str) -> Rule:
    """A value is there."""
    return Rule("ExpectColumnValuesToNotBeNull", text, {"column": column})


def one_of(text: str, column: str, values: tuple[str | bool, ...]) -> Rule:
    """A value is one of these."""
    return Rule("ExpectColumnValuesToBeInSet", text, {"column": column, "value_set": list(values)})


def matches(text: str, column: str, regex: str, severity: Severity = "error") -> Rule:
    """A value fits a regular expression."""
    return Rule("ExpectColumnValuesToMatchRegex", text, {"column": column, "regex": regex}, severity)


def above(text: str, larger: str, smaller: str, *, or_equal: bool = False, severity: Severity = "error") -> Rule:
    """`larger` is above `smaller` in every row that has both."""
    options = {"column_A": larger, "column_B": smaller, "or_equal": or_equal}
    missing = {"ignore_row_if": "either_value_is_missing"}
    return Rule("ExpectColumnPairValuesAToBeGreaterThanB", text, options | missing, severity)


def equal(text: str, one: str, other: str, severity: Severity = "error") -> Rule:
    """Two columns hold the same in every row that has both."""
    options = {"column_A": one, "column_B": other, "ignore_row_if": "either_value_is_missing"}
    return Rule("ExpectColumnPairValuesToBeEqual", text, options, severity)


def _image_rules(limits: Limits) -> list[Rule]:
    sides = f"{limits.min_side}..{limits.max_side} px"
    return [
        unique("image ids are unique", "image_id"),
        *(between(f"{side} is {sides}", side, limits.min_side, limits.max_side) for side in ("height", "width")),
        one_of("split is known", "split", ("train", "test", "unlabelled")),
        one_of("task is known", "task", ("unspecified", "salient", "entity", "part")),
        given("licence is given", "licence"),
        matches("licence is not blank", "licence", r"\S"),
        matches("sha256 is 64 hex digits", "sha256", f"^{HASH}{{64}}$"),
        matches("perceptual hash was taken", "phash", f"^{HASH}{{16}}$", "warning"),
        null("no image content twice within one data set", "same_as"),
        null("no image content in two training sets", "elsewhere", "warning"),
        null(COPIED, "in_test"),
        null(LIKE, "like_test", limits.on_copy),
    ]


def _mask_rules(limits: Limits) -> list[Rule]:
    return [
        unique("mask ids are unique", "mask_id"),
        given("mask belongs to an image", "path"),
        one_of("split is train or test", "split", ("train", "test")),
        one_of("task is salient, entity or part", "task", ("salient", "entity", "part")),
        *run_rules(),
        between(f"area is at least {limits.min_area:g} px", "area", limits.min_area),
        between(f"area is at most {limits.max_area_share:g} of the image", "area_share", None, limits.max_area_share),
        *box_rules(),
    ]


def run_rules() -> list[Rule]:
    """Of any table of masks: the run lengths are those of a mask, which is binary by that, and cover the image."""
    return [
        one_of("run lengths alternate and none is negative", "alternate", (True,)),
        equal("run lengths cover the image", "pixels", "image_pixels"),
        equal("area is that of the run lengths", "area", "run_area"),
    ]


def box_rules() -> list[Rule]:
    """Of any table of masks: the box, both ends inside."""
    inside = "box inside image"
    return [
        *(between(f"{inside}: {edge} >= 0", edge, 0) for edge in ("x0", "y0")),
        *(above(f"{inside}: {a}1 >= {a}0", f"{a}1", f"{a}0", or_equal=True) for a in "xy"),
        above(f"{inside}: x1 < width", "width", "x1"),
        above(f"{inside}: y1 < height", "height", "y1"),
    ]


def _dataset_rules(_: Limits) -> list[Rule]:
    return [
        between("data set has images", "images", 1),
        between("train or test set has masks", "human_masks", 1),
        equal("images are as many as expected", "images", "expected_images", "warning"),
        equal("masks are as many as expected", "masks", "expected_masks", "warning"),
        between("nothing was skipped", "skipped", None, 0, "warning"),
    ]


def _budget_rules(_: Limits) -> list[Rule]:
    return [
        between("data set of a budget has images", "images", 1),
        *(
            above(f"{side} images fill a batch", f"{side}_images", f"{side}_wanted", or_equal=True, severity="warning")
            for side in ("human", "unlabelled")
        ),
    ]


RULES: dict[str, Callable[[Limits], list[Rule]]] = {
    "images": _image_rules,
    "masks": _mask_rules,
    "datasets": _dataset_rules,
    "budgets": _budget_rules,
}
