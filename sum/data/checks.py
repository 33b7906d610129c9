"""Tables against their rules, as Great Expectations suites, one a table. No other module knows that tool."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sum.data.reports import Outcome, Report, write_index
from sum.data.rules import Rule
from sum.storage import replace_folder

if TYPE_CHECKING:
    import pandas as pd

SITE = "local"
SHOWN = 10  # rows of a failed expectation that are named


@dataclass(frozen=True, slots=True)
class Suite:
    """A table, the columns that name a row of it, its rules, and rules that cannot be checked, each with the reason."""

    table: pd.DataFrame
    keys: list[str]
    rules: list[Rule]
    broken: Mapping[str, str] = field(default_factory=dict)


def run_suites(
    suites: Mapping[str, Suite], *, docs: Path, figures: Sequence[str] = (), allowed: tuple[str, ...] | None = None
) -> Report:
    """Run the suites and write their pages; figures: SVG for the first page; allowed: declared exceptions found."""
    outcomes = list[Outcome]()
    with replace_folder(docs) as folder:
        context = make_context(folder)
        for name, suite in suites.items():
            outcomes += check_table(context, name, suite)
        context.build_data_docs(site_names=[SITE])
        report = Report({name: len(suite.table) for name, suite in suites.items()}, tuple(outcomes), allowed)
        write_index(folder, report, figures=figures)
    return report


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


def check_table(context: Any, name: str, suite: Suite) -> list[Outcome]:
    """Run one suite. Returns an outcome a rule, in their order."""
    import great_expectations as gx

    rules = [rule for rule in suite.rules if rule.text not in suite.broken]
    batch = context.data_sources.add_pandas(name).add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
    expectations = context.suites.add(gx.ExpectationSuite(name=name, expectations=[_expectation(r) for r in rules]))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=expectations))
    done = definition.run(
        batch_parameters={"dataframe": suite.table},
        result_format={
            "result_format": "SUMMARY",
            "partial_unexpected_count": SHOWN,
            "unexpected_index_column_names": suite.keys,
        },
    )
    entries = done.to_json_dict()["results"]
    results = {entry["expectation_config"]["meta"]["rule"]: entry for entry in entries}
    return [
        Outcome(name, rule.text, 0, (), suite.broken[rule.text], rule.severity)
        if rule.text in suite.broken
        else _outcome(name, rule, results.get(rule.text))
        for rule in suite.rules
    ]


def _outcome(table: str, rule: Rule, entry: dict[str, Any] | None) -> Outcome:
    """Great Expectations says success False for a broken check too; here that is an error of its own."""
    if entry is None:
        return Outcome(table, rule.text, 0, (), "Great Expectations gave no result", rule.severity)
    info = entry["exception_info"]
    errors = [
        part["exception_message"]
        for part in ([info] if "raised_exception" in info else info.values())
        if part["raised_exception"]
    ]
    if errors:
        return Outcome(table, rule.text, 0, (), "; ".join(sorted({str(error) for error in errors})), rule.severity)
    result = entry["result"]
    count = int(result.get("unexpected_count", 0))
    if not entry["success"] and not count:
        return Outcome(table, rule.text, 0, (), f"failed without naming a row: {result}", rule.severity)
    rows = [
        ", ".join(f"{key} {value}" for key, value in sorted(row.items()))
        for row in result.get("partial_unexpected_index_list") or ()
    ]
    return Outcome(table, rule.text, count, tuple(rows), "", rule.severity)


def _expectation(rule: Rule) -> Any:
    import great_expectations.expectations as gxe

    return getattr(gxe, rule.kind)(description=rule.text, meta={"rule": rule.text}, **rule.options)
