"""The manifest against its expectations: four suites, the search for copies of test images, and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sum.data.checks import Suite, run_suites
from sum.data.duplicates import Copy, find_copies
from sum.data.overview import overview
from sum.data.reports import Report
from sum.data.rules import COPIED, LIKE, RULES, Limits
from sum.data.tables import (
    BudgetFacts,
    SetFacts,
    budget_table,
    dataset_table,
    image_table,
    mark_copies,
    mask_table,
)
from sum.errors import SumError


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRules:
    """What a copy of a test image is (sum.data.duplicates.find_copies), and which are declared exceptions."""

    bits: int
    alike: float
    allowed: Sequence[Sequence[str]] = ()


def check_manifest(
    folder: Path,
    *,
    sets: Mapping[str, SetFacts],
    budgets: Mapping[str, BudgetFacts],
    limits: Limits,
    copies: CopyRules,
    docs: Path,
) -> Report:
    """Check the manifest in `folder` and write HTML pages about it, readable without a network, into the folder `docs`.

    sets, budgets: by name. Raises MissingInput and DataError of the manifest's files; a photo that cannot be read again
    is a failure of the check for copies.
    """
    images = image_table(folder)
    masks = mask_table(folder, images)
    found, broken = list[Copy](), dict[str, str]()
    try:
        found = find_copies(images, bits=copies.bits, alike=copies.alike, allowed=copies.allowed)
    except SumError as error:
        broken = dict.fromkeys((COPIED, LIKE), str(error))
    images = mark_copies(images, found)
    datasets = dataset_table(images, masks, sets)
    tables = {
        "images": (images, ["image_id", "path"]),
        "masks": (masks, ["mask_id", "source"]),
        "datasets": (datasets, ["dataset"]),
        "budgets": (budget_table(datasets, budgets), ["budget", "dataset"]),
    }
    suites = ((name, Suite(table, keys, RULES[name](limits), broken)) for name, (table, keys) in tables.items())
    allowed = tuple(copy.text for copy in found if copy.allowed)
    return run_suites(suites, docs=docs, figures=overview(images, masks), allowed=allowed)
