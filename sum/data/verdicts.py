"""What a checking stage decided, for the stages that use what it checked, without the tools that check."""

from __future__ import annotations

import json
from pathlib import Path

from sum.errors import MissingInput, ValidationFailed


def require_valid(report: Path, *, reader: str, maker: str) -> None:
    """Stop before anything is made of data that broke an expectation.

    report: what the checking stage `maker` wrote; reader: the stage that asks. Raises MissingInput before `maker`,
    ValidationFailed after it failed: it leaves its report either way, so that people see what is wrong.
    """
    if not report.is_file():
        raise MissingInput(report, reader=reader, maker=maker)
    if json.loads(report.read_text(encoding="utf-8")).get("success") is not True:
        raise ValidationFailed(
            f"{report}: the data broke an expectation, so stage '{reader}' does not use it. Run `dvc repro {maker}`: "
            "it names the rows."
        )
