"""What each table must fulfil, in words and as plain values: sum.data.checks hands them to Great Expectations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning"]
HASH = "[0-9a-f]"
COPIED = "no train or unlabelled image in a test set"
LIKE = "no train or unlabelled image looks like one of a test set"


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


def _between(text: str, column: str, low: float | None = None, high: float | None = None) -> Rule:
    bounds = {"min_value": low, "max_value": high}
    given = {key: value for key, value in bounds.items() if value is not None}
    return Rule("ExpectColumnValuesToBeBetween", text, {"column": column, **given})


def _null(text: str, column: str, severity: Severity = "error") -> Rule:
    return Rule("ExpectColumnValuesToBeNull", text, {"column": column}, severity)


def _unique(text: str, column: str) -> Rule:
    return Rule("ExpectColumnValuesToBeUnique", text, {"column": column})


def _given(text: str, column: str) -> Rule:
    return Rule("ExpectColumnValuesToNotBeNull", text, {"column": column})


def _one_of(text: str, column: str, values: tuple[str, ...]) -> Rule:
    return Rule("ExpectColumnValuesToBeInSet", text, {"column": column, "value_set": list(values)})


def _matches(text: str, column: str, regex: str, severity: Severity = "error") -> Rule:
    return Rule("ExpectColumnValuesToMatchRegex", text, {"column": column, "regex": regex}, severity)


def _above(text: str, larger: str, smaller: str, *, or_equal: bool = False, severity: Severity = "error") -> Rule:
    """`larger` is above `smaller` in every row that has both."""
    options = {"column_A": larger, "column_B": smaller, "or_equal": or_equal}
    missing = {"ignore_row_if": "either_value_is_missing"}
    return Rule("ExpectColumnPairValuesAToBeGreaterThanB", text, options | missing, severity)


def _equal(text: str, one: str, other: str, severity: Severity = "error") -> Rule:
    options = {"column_A": one, "column_B": other, "ignore_row_if": "either_value_is_missing"}
    return Rule("ExpectColumnPairValuesToBeEqual", text, options, severity)


def _image_rules(limits: Limits) -> list[Rule]:
    sides = f"{limits.min_side}..{limits.max_side} px"
    return [
        _unique("image ids are unique", "image_id"),
        *(_between(f"{side} is {sides}", side, limits.min_side, limits.max_side) for side in ("height", "width")),
        _one_of("split is known", "split", ("train", "test", "unlabelled")),
        _one_of("task is known", "task", ("unspecified", "salient", "entity", "part")),
        _given("licence is given", "licence"),
        _matches("licence is not blank", "licence", r"\S"),
        _matches("sha256 is 64 hex digits", "sha256", f"^{HASH}{{64}}$"),
        _matches("perceptual hash was taken", "phash", f"^{HASH}{{16}}$", "warning"),
        _null("no image content twice within one data set", "same_as"),
        _null("no image content in two training sets", "elsewhere", "warning"),
        _null(COPIED, "in_test"),
        _null(LIKE, "like_test", limits.on_copy),
    ]


def _mask_rules(limits: Limits) -> list[Rule]:
    return [
        _unique("mask ids are unique", "mask_id"),
        _given("mask belongs to an image", "path"),
        _one_of("split is train or test", "split", ("train", "test")),
        _one_of("task is salient, entity or part", "task", ("salient", "entity", "part")),
        *_sizes(limits.min_area, limits.max_area_share),
    ]


def _sizes(min_area: float, max_area_share: float) -> list[Rule]:
    """Of any table of masks: run lengths, area and box."""
    inside = "box inside image"
    return [
        _equal("run lengths cover the image", "pixels", "image_pixels"),
        _equal("area is that of the run lengths", "area", "run_area"),
        _between(f"area is at least {min_area:g} px", "area", min_area),
        _between(f"area is at most {max_area_share:g} of the image", "area_share", None, max_area_share),
        *(_between(f"{inside}: {edge} >= 0", edge, 0) for edge in ("x0", "y0")),
        *(_above(f"{inside}: {a}1 >= {a}0", f"{a}1", f"{a}0", or_equal=True) for a in "xy"),
        _above(f"{inside}: x1 < width", "width", "x1"),
        _above(f"{inside}: y1 < height", "height", "y1"),
    ]


def _dataset_rules(_: Limits) -> list[Rule]:
    return [
        _between("data set has images", "images", 1),
        _between("train or test set has masks", "human_masks", 1),
        _equal("images are as many as expected", "images", "expected_images", "warning"),
        _equal("masks are as many as expected", "masks", "expected_masks", "warning"),
        Rule("ExpectColumnValuesToBeBetween", "nothing was skipped", {"column": "skipped", "max_value": 0}, "warning"),
    ]


def _budget_rules(_: Limits) -> list[Rule]:
    return [
        _between("data set of a budget has images", "images", 1),
        *(
            _above(f"{side} images fill a batch", f"{side}_images", f"{side}_wanted", or_equal=True, severity="warning")
            for side in ("human", "unlabelled")
        ),
    ]


RULES: dict[str, Callable[[Limits], list[Rule]]] = {
    "images": _image_rules,
    "masks": _mask_rules,
    "datasets": _dataset_rules,
    "budgets": _budget_rules,
}
