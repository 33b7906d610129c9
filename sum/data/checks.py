"""What the manifest must fulfil, as Great Expectations suites, one a table. No other module knows that tool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sum.data.records import Manifest
from sum.data.reports import Outcome, Report, write_index
from sum.data.tables import budget_table, dataset_table, image_table, mask_table
from sum.storage import replace_folder

if TYPE_CHECKING:
    import pandas as pd

SITE = "local"
SHOWN = 10  # rows of a failed expectation that are named


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of sizes: px, px, px, share of the image."""

    min_side: int
    max_side: int
    min_area: int
    max_area_share: float


def check_manifest(
    manifest: Manifest,
    *,
    splits: Mapping[str, str],
    budgets: Mapping[str, Collection[str]],
    limits: Limits,
    docs: Path,
) -> Report:
    """Check all tables and write HTML pages about it, readable without a network, into the folder `docs`.

    splits: data set -> train, test or unlabelled; budgets: name -> its data sets.
    """
    datasets = dataset_table(manifest, splits)
    tables = {
        "images": (image_table(manifest), ["image_id", "path"]),
        "masks": (mask_table(manifest), ["mask_id", "source"]),
        "datasets": (datasets, ["dataset"]),
        "budgets": (budget_table(datasets, budgets), ["budget", "dataset"]),
    }
    outcomes = list[Outcome]()
    with replace_folder(docs) as folder:
        context = make_context(folder)
        for name, (table, keys) in tables.items():
            outcomes += check_table(context, name, table=table, rules=RULES[name](limits), keys=keys)
        context.build_data_docs(site_names=[SITE])
        write_index(folder, outcomes)
    return Report({name: len(entry[0]) for name, entry in tables.items()}, tuple(outcomes))


def make_context(site: Path) -> Any:
    """A Great Expectations context that lives in memory and writes its pages below `site`, an absolute path."""
    import great_expectations as gx

    logging.getLogger("great_expectations.data_context.types.base").setLevel(
        logging.WARNING
    )  # it tells of a temp folder
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]  # a mapping is what it reads
    context.add_data_docs_site(
        SITE,
        {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(site)},
        },
    )
    return context


def check_table(context: Any, name: str, *, table: pd.DataFrame, rules: list[Any], keys: list[str]) -> list[Outcome]:
    """Run one suite; rules: from `RULES`, keys: the columns that name a row. Returns an outcome a rule."""
    import great_expectations as gx

    batch = context.data_sources.add_pandas(name).add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=rules))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
    done = definition.run(
        batch_parameters={"dataframe": table},
        result_format={
            "result_format": "SUMMARY",
            "partial_unexpected_count": SHOWN,
            "unexpected_index_column_names": keys,
        },
    )
    entries = done.to_json_dict()["results"]
    results = {entry["expectation_config"]["meta"]["rule"]: entry for entry in entries}
    return [_outcome(name, rule.meta["rule"], results.get(rule.meta["rule"])) for rule in rules]


def _outcome(table: str, rule: str, entry: dict[str, Any] | None) -> Outcome:
    """Great Expectations says success False for a broken check too; here that is an error of its own."""
    if entry is None:
        return Outcome(table, rule, 0, (), "Great Expectations gave no result")
    info = entry["exception_info"]
    errors = [
        part["exception_message"]
        for part in ([info] if "raised_exception" in info else info.values())
        if part["raised_exception"]
    ]
    if errors:
        return Outcome(table, rule, 0, (), "; ".join(sorted({str(error) for error in errors})))
    result = entry["result"]
    count = int(result.get("unexpected_count", 0))
    if not entry["success"] and not count:
        return Outcome(table, rule, 0, (), f"failed without naming a row: {result}")
    rows = [
        ", ".join(f"{key} {value}" for key, value in sorted(row.items()))
        for row in result.get("partial_unexpected_index_list") or ()
    ]
    return Outcome(table, rule, count, tuple(rows), "")


def _rule(kind: str, text: str, **options: Any) -> Any:
    """One expectation of Great Expectations' class `kind`; text: the rule in words, its name in reports."""
    import great_expectations.expectations as gxe

    return getattr(gxe, kind)(description=text, meta={"rule": text}, **options)


def _present(column: str, text: str) -> list[Any]:
    """Neither null nor blank."""
    return [
        _rule("ExpectColumnValuesToNotBeNull", f"{text} is given", column=column),
        _rule("ExpectColumnValuesToMatchRegex", f"{text} is not blank", column=column, regex=r"\S"),
    ]


def _image_rules(limits: Limits) -> list[Any]:
    sides = f"{limits.min_side}..{limits.max_side} px"
    return [
        _rule("ExpectColumnValuesToBeUnique", "image ids are unique", column="image_id"),
        *(
            _rule(
                "ExpectColumnValuesToBeBetween",
                f"{side} is {sides}",
                column=side,
                min_value=limits.min_side,
                max_value=limits.max_side,
            )
            for side in ("height", "width")
        ),
        _rule(
            "ExpectColumnValuesToBeInSet", "split is known", column="split", value_set=["train", "test", "unlabelled"]
        ),
        _rule(
            "ExpectColumnValuesToBeInSet",
            "task is known",
            column="task",
            value_set=["unspecified", "salient", "entity", "part"],
        ),
        *_present("licence", "licence"),
        _rule("ExpectColumnValuesToMatchRegex", "sha256 is 64 hex digits", column="sha256", regex="^[0-9a-f]{64}$"),
        _rule("ExpectColumnValuesToBeNull", "no image content twice within one data set", column="same_as"),
        _rule("ExpectColumnValuesToBeNull", "no train or unlabelled image in a test set", column="in_test"),
    ]


def _mask_rules(limits: Limits) -> list[Any]:
    pair, inside = "ExpectColumnPairValuesAToBeGreaterThanB", "box inside image"
    return [
        _rule("ExpectColumnValuesToBeUnique", "mask ids are unique", column="mask_id"),
        _rule("ExpectColumnValuesToNotBeNull", "mask belongs to an image", column="path"),
        _rule("ExpectColumnValuesToBeInSet", "split is train or test", column="split", value_set=["train", "test"]),
        _rule(
            "ExpectColumnValuesToBeInSet",
            "task is salient, entity or part",
            column="task",
            value_set=["salient", "entity", "part"],
        ),
        _rule(
            "ExpectColumnValuesToBeBetween",
            f"area is at least {limits.min_area} px",
            column="area",
            min_value=limits.min_area,
        ),
        _rule(
            "ExpectColumnValuesToBeBetween",
            f"area is at most {limits.max_area_share:g} of the image",
            column="area_share",
            max_value=limits.max_area_share,
        ),
        *(
            _rule("ExpectColumnValuesToBeBetween", f"{inside}: {edge} >= 0", column=edge, min_value=0)
            for edge in ("x0", "y0")
        ),
        *(_rule(pair, f"{inside}: {a}1 >= {a}0", column_A=f"{a}1", column_B=f"{a}0", or_equal=True) for a in "xy"),
        _rule(pair, f"{inside}: x1 < width", column_A="width", column_B="x1"),
        _rule(pair, f"{inside}: y1 < height", column_A="height", column_B="y1"),
    ]


def _dataset_rules(_: Limits) -> list[Any]:
    return [
        _rule("ExpectColumnValuesToBeBetween", "data set has images", column="images", min_value=1),
        _rule("ExpectColumnValuesToBeBetween", "train or test set has masks", column="human_masks", min_value=1),
    ]


def _budget_rules(_: Limits) -> list[Any]:
    return [_rule("ExpectColumnValuesToBeBetween", "data set of a budget has images", column="images", min_value=1)]


RULES: dict[str, Callable[[Limits], list[Any]]] = {
    "images": _image_rules,
    "masks": _mask_rules,
    "datasets": _dataset_rules,
    "budgets": _budget_rules,
}
