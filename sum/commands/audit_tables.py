"""What `audit` prints: one table for all data sets, or all that is known of one."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sum.audits import Audit, Figure, Reason

CALIBRATED = "vit_h"  # the backbone of the published figures


def overview(audits: Sequence[Audit]) -> Table:
    """A row a data set."""
    scored = any(audit.figure for audit in audits)
    heads = ["images", "masks", *(["1-point mIoU"] if scored else []), "left out"]
    table = _table("audit: read / expected", "data set", *heads, "result")
    for audit in audits:
        figure = [_figure(audit)] if scored else []
        result = _brief(audit) if audit.found else f"absent: {audit.root}"
        left = f"{audit.contents.left_out:,}" if audit.found else "-"
        table.add_row(audit.name, _pair(audit, "images"), _pair(audit, "masks"), *figure, left, result)
    found = sum(audit.found for audit in audits)
    wrong = sum(bool(audit.differs) for audit in audits)
    table.caption = f" {found} of {len(audits)} sets found; {wrong} not as expected"
    table.caption_justify = "left"
    return table


def details(audits: Sequence[Audit], *, backbone: str) -> list[RenderableType]:
    """All that is known of one set: the entry first, then its variants beside it."""
    entry = audits[0]
    parts: list[RenderableType] = [Text(f"\n{entry.name}: {_result(entry)}", style="bold")]
    parts.append(Text(f"kind {entry.kind}, task {entry.task}, {entry.root}"))
    if not entry.found:
        return parts
    seen = entry.contents
    facts = _table("", "", "read", "expected")
    for what in ("images", "masks"):
        facts.add_row(what, f"{getattr(seen, what):,}", _number(getattr(entry.expect, what)))
    for name, (low, high) in {
        "side of an image, px": seen.side,
        "masks of an image": seen.crowd,
        "area of a mask, px": seen.area,
    }.items():
        facts.add_row(name, f"{low:,} to {high:,}", "")
    if entry.figure:
        facts.add_row("1-point mIoU, %", _words(entry.figure), _number(entry.expect.point_miou))
    parts.append(facts)
    for title, reasons in (("left out or read in a special way by rule", seen.notes), ("unusable", seen.problems)):
        if reasons:
            parts.append(_reasons(title, reasons))
    if len(audits) > 1:
        parts += [_variants(audits), *map(Text, _settled(audits, backbone=backbone))]
    return parts


def _variants(audits: Sequence[Audit]) -> Table:
    scored = any(audit.figure for audit in audits)
    heads = ["images", "masks", *(["1-point mIoU"] if scored else []), "result"]
    table = _table("definitions: read / expected", "variant", *heads)
    for audit in audits:
        figure = [_figure(audit)] if scored else []
        name = audit.variant or "(the entry itself)"
        table.add_row(name, _pair(audit, "images"), _pair(audit, "masks"), *figure, _brief(audit))
    return table


def _settled(audits: Sequence[Audit], *, backbone: str) -> list[str]:
    """What the variants say about the definition."""
    fit = [_called(audit) for audit in audits if audit.found and audit.compared and not audit.differs]
    lines = [f"Counts fit: {', '.join(fit) or 'none'}."]
    scored = [audit for audit in audits if audit.figure and audit.expect.point_miou is not None]
    if not scored:
        return lines
    if backbone != CALIBRATED:
        return [*lines, f"The published figure is of {CALIBRATED}: that of {backbone} does not settle a definition."]
    near = min(scored, key=_distance)
    inside = [_called(audit) for audit in scored if _inside(audit)]
    lines.append(f"Nearest to the published figure: {_called(near)} ({_distance(near):.1f} away).")
    return [*lines, f"The published figure lies in the interval of: {', '.join(inside) or 'none'}."]


def _called(audit: Audit) -> str:
    return audit.variant or "the entry itself"


def _distance(audit: Audit) -> float:
    assert audit.figure is not None
    assert audit.expect.point_miou is not None
    return abs(audit.figure.mean - audit.expect.point_miou)


def _inside(audit: Audit) -> bool:
    figure, published = audit.figure, audit.expect.point_miou
    return figure is not None and published is not None and figure.low <= published <= figure.high


def _reasons(title: str, reasons: dict[str, Reason]) -> Table:
    table = _table(title, "count", "reason", "first")
    for text, reason in sorted(reasons.items(), key=lambda entry: (-entry[1].count, entry[0])):
        table.add_row(f"{reason.count:,}", text, "\n".join(reason.files))
    return table


def _result(audit: Audit) -> str:
    if not audit.found:
        return "absent"
    return "; ".join(audit.differs) or ("as expected" if audit.compared else "read; no count to compare with")


def _brief(audit: Audit) -> str:
    """As `_result`, of an error its first sentence."""
    return audit.error.partition(". ")[0] if audit.error else _result(audit)


def _pair(audit: Audit, what: str) -> str:
    wanted = _number(getattr(audit.expect, what))
    return f"{getattr(audit.contents, what):,} / {wanted}" if audit.found else f"- / {wanted}"


def _figure(audit: Audit) -> str:
    return f"{_words(audit.figure) if audit.figure else '-'} / {_number(audit.expect.point_miou)}"


def _words(figure: Figure) -> str:
    return f"{figure.mean:.1f} ({figure.low:.1f} to {figure.high:.1f}; {figure.images:,} images)"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.1f}"


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        right = head in ("images", "masks", "1-point mIoU", "left out", "count")
        table.add_column(head, justify="right" if right else "left", overflow="fold")
    return table
