"""What a checking stage decided, for the stages that use what it checked, without the tools that check."""

from __future__ import annotations

import json
from pathlib import Path

from sum.errors import MissingInput, ValidationFailed


def manifest_fingerprint(manifest: Path) -> str | None:
    """Of the manifest's content, as stage ingest left it; None when it left none."""
    path = manifest / "summary.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return str(found["fingerprint"]) if "fingerprint" in found else None


def require_valid(report: Path, *, reader: str, maker: str, manifest: Path | None = None) -> None:
    """Stop before anything is made of data that broke an expectation.

    report: what the checking stage `maker` wrote; reader: the stage that asks. Raises MissingInput before `maker`,
    ValidationFailed after it failed: it leaves its report either way, so that people see what is wrong; or, when
    `manifest` is given, if that is not the manifest that was checked.
    """
    if not report.is_file():
        raise MissingInput(report, reader=reader, maker=maker)
    found = json.loads(report.read_text(encoding="utf-8"))
    if manifest is not None and found.get("manifest") != manifest_fingerprint(manifest):
        raise ValidationFailed(
            f"{report}: is about another manifest than {manifest} holds now, so stage '{reader}' does not use it. Run "
            f"`dvc repro {maker}`, or `python -m sum {maker}`."
        )
    if found.get("success") is not True:
        raise ValidationFailed(
            f"{report}: the data broke an expectation, so stage '{reader}' does not use it. Run `dvc repro {maker}`: "
            "it names the rows."
        )
