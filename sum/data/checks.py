"""Tables against their rules, as Great Expectations suites, one a table. No other module knows that tool."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sum.data.reports import Outcome, Report, write_index
from sum.data.rules import Rule
from sum.storage import replace_folder

if TYPE_CHECKING:
    import pandas as pd

    Table = pd.DataFrame | Iterable[pd.DataFrame]

SITE = "local"
SHOWN = 10  # rows of a failed expectation that are named


@dataclass(frozen=True, slots=True)
class Suite:
    """A table, the columns that name a row of it, its rules, and rules that cannot be checked, each with the reason.

    table: whole, or its parts one after another, at least one: each is checked and let go before the next is asked for.
    A rule then sees one part at a time, so none of a table in parts may compare rows of two.
    """

    table: Table
    keys: list[str]
    rules: list[Rule]
    broken: Mapping[str, str] = field(default_factory=dict)


def run_suites(
    suites: Iterable[tuple[str, Suite]],
    *,
    docs: Path,
    figures: Sequence[str] = (),
    allowed: tuple[str, ...] | None = None,
) -> Report:
    """Run the suites and write their pages; figures: SVG for the first page; allowed: declared exceptions found.

    suites: by name; the next is asked for when the last is done.
    """
    outcomes, rows = list[Outcome](), Counter[str]()
    with replace_folder(docs) as folder:
        context = make_context(folder)
        for name, suite in suites:
            outcomes += check_table(context, name, suite, rows=rows)
        context.build_data_docs(site_names=[SITE])
        report = Report(dict(rows), tuple(outcomes), allowed)
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


def check_table(context: Any, name: str, suite: Suite, *, rows: Counter[str] | None = None) -> list[Outcome]:
    """Run one suite. Returns an outcome a rule, in their order, and adds the rows of the table to rows[name].

    Of a table in parts the outcomes are those of the whole: counts add up, the first rows are shown, one page is made.
    """
    import great_expectations as gx

    rules = [rule for rule in suite.rules if rule.text not in suite.broken]
    batch = context.data_sources.add_pandas(name).add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
    expectations = context.suites.add(gx.ExpectationSuite(name=name, expectations=[_expectation(r) for r in rules]))
    form = {
        "result_format": "SUMMARY",
        "partial_unexpected_count": SHOWN,
        "unexpected_index_column_names": suite.keys,
    }
    done, counts = None, Counter({name: 0}) if rows is None else rows
    counts[name] += 0
    for part in _parts(suite.table):
        counts[name] += len(part)
        found = batch.get_batch({"dataframe": part}).validate(expectations, result_format=form)
        done = found if done is None else _joined(done, found)
    if done is None:
        raise ValueError(f"the table '{name}' came without a part")
    _keep(context, done)
    entries = done.to_json_dict()["results"]
    results = {entry["expectation_config"]["meta"]["rule"]: entry for entry in entries}
    return [
        Outcome(name, rule.text, 0, (), suite.broken[rule.text], rule.severity)
        if rule.text in suite.broken
        else _outcome(name, rule, results.get(rule.text))
        for rule in suite.rules
    ]


def _parts(table: Table) -> Iterator[pd.DataFrame]:
    import pandas as pd

    yield from (table,) if isinstance(table, pd.DataFrame) else table


def _joined(done: Any, more: Any) -> Any:
    """The results of a suite over some rows, and over those that follow, as results over both.

    A check that could not run on some has not run; one without a result on some has none.
    """
    from great_expectations.validator.validation_statistics import calc_validation_statistics

    others = {entry.expectation_config.meta["rule"]: entry for entry in more.results}
    done.results = [entry for entry in done.results if entry.expectation_config.meta["rule"] in others]
    for entry in done.results:
        other = others[entry.expectation_config.meta["rule"]]
        if _errors(entry.exception_info):
            continue
        broken = bool(_errors(other.exception_info))
        entry.exception_info = other.exception_info if broken else entry.exception_info
        entry.result = other.result if broken else _sum(entry.result, other.result)
        entry.success = entry.success and other.success
    statistics = calc_validation_statistics(done.results)
    done.success = statistics.success
    done.statistics = {name: getattr(statistics, name) for name in done.statistics}
    return done


def _sum(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two results of an expectation over rows as one: totals, the first rows, percentages of all."""
    firsts = ("partial_unexpected_list", "partial_unexpected_index_list")
    result = {**other, **one}  # what is the same in both
    result |= {key: [*(one.get(key) or ()), *(other.get(key) or ())][:SHOWN] for key in firsts if key in result}
    result |= {key: one.get(key, 0) + other.get(key, 0) for key in result if key.endswith("_count")}
    bad, rows = result.get("unexpected_count", 0), result.get("element_count", 0)
    missing = result.get("missing_count", 0)
    shares = {
        "unexpected_percent": (bad, rows - missing),
        "unexpected_percent_nonmissing": (bad, rows - missing),
        "unexpected_percent_total": (bad, rows),
        "missing_percent": (missing, rows),
    }
    result |= {key: part / of * 100 if of else None for key, (part, of) in shares.items() if key in result}
    if "partial_unexpected_counts" in result:  # how often each of the first rows' values is among them
        values = {repr(value): value for value in result["partial_unexpected_list"]}
        often = Counter(map(repr, result["partial_unexpected_list"])).most_common()
        result["partial_unexpected_counts"] = [{"value": values[name], "count": count} for name, count in often]
    return result


def _keep(context: Any, done: Any) -> None:
    """Lay results down where the pages are made from."""
    from great_expectations.core import RunIdentifier
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    run, suite = RunIdentifier(run_time=datetime.now(UTC)), ExpectationSuiteIdentifier(name=done.suite_name)
    done.meta |= {"run_id": run, "validation_time": run.run_time, "batch_parameters": None}
    key = ValidationResultIdentifier(batch_identifier=done.batch_id, expectation_suite_identifier=suite, run_id=run)
    context.validation_results_store.store_validation_results(
        suite_validation_result=done,
        suite_validation_result_identifier=key,
        expectation_suite_identifier=suite,
    )


def _errors(info: Mapping[str, Any]) -> list[str]:
    """What a check that could not run says, of one metric or of several."""
    parts = [info] if "raised_exception" in info else info.values()
    return [str(part["exception_message"]) for part in parts if part["raised_exception"]]


def _outcome(table: str, rule: Rule, entry: dict[str, Any] | None) -> Outcome:
    """Great Expectations says success False for a broken check too; here that is an error of its own."""
    if entry is None:
        return Outcome(table, rule.text, 0, (), "Great Expectations gave no result", rule.severity)
    errors = _errors(entry["exception_info"])
    if errors:
        return Outcome(table, rule.text, 0, (), "; ".join(sorted(set(errors))), rule.severity)
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
