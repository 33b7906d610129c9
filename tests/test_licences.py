"""Licence texts of the data sets in use, and what each asks for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sum.licences import ORDER, summarise, terms_of

PROJECT = Path(__file__).parents[1]


@pytest.mark.parametrize(("licence", "want"), [
    ("CC0-1.0", "free"),
    ("CC BY-NC 4.0", "non-commercial"),
    ("CC-BY-NC-SA-4.0", "non-commercial"),
    ("CC-BY-SA-4.0", "share alike"),
    ("cc_by_4.0", "attribution"),
    ("Adobe Research License", "non-commercial"),
    ("DIS5K terms of use", "non-commercial"),
    ("SA-1B research licence", "non-commercial"),
    ("GPL-3.0", "copyleft"),
    ("Apache-2.0", "attribution"),
    ("none stated", "unknown"),
    ("mixed, see the README of the photos", "unknown"),
    ("commercial licence of ACME", "unknown"),
    ("MIT; no commercial use", "non-commercial"),
    ("CC BY 4.0, photos non commercial", "non-commercial"),
    ("not for commercial purposes", "non-commercial"),
    ("Attribution-NoDerivatives 4.0", "no derivatives"),
    ("own", "free"),
    ("own photos, all rights reserved", "unknown"),
    ("", "unknown"),
])  # fmt: skip
def test_terms(licence: str, want: str) -> None:
    assert terms_of(licence) == want


def test_one_line_strictest_first() -> None:
    sets = {"mine": "CC0-1.0", "fss": "unknown", "entityseg": "Adobe Research License", "dis5k": "DIS5K terms of use"}
    assert summarise(sets) == "non-commercial: entityseg, dis5k; unknown: fss (unknown); free: mine"


def test_every_licence_of_the_examples_has_terms() -> None:
    for path in sorted((PROJECT / "examples").glob("*.yaml")):
        for entry in yaml.safe_load(path.read_text())["datasets"].values():
            assert terms_of(entry["licence"]) in ORDER
