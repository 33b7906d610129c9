"""What a licence asks of those who use a model trained under it, by the words it is known by. No legal advice."""

from __future__ import annotations

import re
from collections.abc import Mapping

TERMS: dict[str, str] = {  # pattern of a licence text, the first that matches counts -> its terms
    r"none stated|not stated|\bnone\b|\bunknown\b|^$": "unknown",
    r"\bcc[ -]by[ -]nc\b|non[- ]?commercial|\bno(t for)?[- ]commercial|\bnc\b": "non-commercial",
    r"adobe research|sa-1b|dis5k|cityscapes": "non-commercial",
    r"research (only|use|licen[cs]e)|for research|academic": "non-commercial",
    r"\bcc[ -]by[ -]nd\b|\bno[- ]?deriv": "no derivatives",
    r"\bcc[ -]by[ -]sa\b|share-?alike|\bodbl\b": "share alike",
    r"\ba?gpl|\blgpl": "copyleft",
    r"\bcc[ -]by\b|attribution|\bodc-by\b": "attribution",
    r"\bapache|\bmit\b|\bbsd\b|\bisc\b": "attribution",
    r"\bcc-?0\b|public domain|\bpddl\b|unlicense|^own$": "free",
}
ORDER = (
    "non-commercial",
    "no derivatives",
    "copyleft",
    "share alike",
    "attribution",
    "unknown",
    "free",
)  # strictest first


def terms_of(licence: str) -> str:
    """One of ORDER; 'unknown' for a licence that no pattern of TERMS matches."""
    text = " ".join(licence.replace("_", "-").casefold().split())
    return next((terms for pattern, terms in TERMS.items() if re.search(pattern, text)), "unknown")


def summarise(licences: Mapping[str, str]) -> str:
    """data set -> licence, as one line: `non-commercial: dis5k, entityseg; unknown: fss1000 (see the authors)`."""
    groups = dict[str, list[str]]()
    for name, licence in licences.items():
        terms = terms_of(licence)
        groups.setdefault(terms, []).append(f"{name} ({licence})" if terms == "unknown" else name)
    return "; ".join(f"{terms}: {', '.join(groups[terms])}" for terms in ORDER if terms in groups)
