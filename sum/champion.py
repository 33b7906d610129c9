"""Who is champion of a registered model, who was before, and why: the only place where these aliases move.

`champion` goes to a version that passed the gate, or to one that a person put there with a reason (tag `override`).
The version it leaves keeps the alias `previous`, which `swap` goes back to; the version gone back from has the tag
`rolled_back`, and no later run of register crowns it again unless a person says so. What a person decided stays with
the version, so that a run of register without that word does not undo it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sum.errors import DataError
from sum.registry import Registry, Version

CHAMPION, PREVIOUS = "champion", "previous"
REFUSED, OVERRIDE, ROLLED_BACK = "refused", "override", "rolled_back"  # tags; each holds the reasons


@dataclass(frozen=True, slots=True)
class Standing:
    """The versions at `champion` and `previous`, None where nobody is, and why it is so."""

    champion: Version | None
    previous: Version | None
    why: str
    override: str = ""  # the reason a person gave, now or before, to put this version above the gate


def settle(
    registry: Registry,
    version: Version,
    *,
    promoted: bool,
    reasons: Sequence[str],
    override: str = "",
    against_holder: bool = False,
) -> Standing:
    """Move the aliases as the gate's verdict on `version` wants it; running it again changes nothing.

    reasons: the gate's, kept in the tag `refused` of a version that did not pass. override: why this one is champion
    whatever the gate says. against_holder: a holder measured on the same benchmark stays unless `version` is better.
    Tags `overall` (0..1) and `benchmark` of both versions decide that.
    """
    kept = version.tags
    if promoted:
        registry.untag(version, key=REFUSED)
    else:
        registry.tag(version, key=REFUSED, value="; ".join(reasons))
    if override:
        registry.tag(version, key=OVERRIDE, value=override)
        registry.untag(version, key=ROLLED_BACK)
    holder = registry.at(version.name, alias=CHAMPION)
    mine = holder is not None and holder.number == version.number
    word = override or kept.get(OVERRIDE, "")
    if ROLLED_BACK in kept and not override:
        return _standing(registry, version, f"version {version.number} was rolled back: {kept[ROLLED_BACK]}")
    if not promoted and not (override or (word and mine)):  # an old word keeps the crown, it does not take it
        registry.drop(version.name, alias=CHAMPION, number=version.number)
        return _standing(registry, version, f"the gate refused version {version.number}")
    how = f"version {version.number} {f'by override: {word}' if word else 'passed the gate'}"
    if against_holder and not override and holder is not None and not mine and _as_good(holder, version):
        figures = f"{_per_cent(version)} overall is not more than the {_per_cent(holder)} of version {holder.number}"
        return _standing(registry, version, f"{how}, but {figures}, which stays", override=word)
    if not mine:
        _crown(registry, version, holder=holder)
    return _standing(registry, version, how, override=word)


def swap(registry: Registry, name: str, *, reason: str) -> Standing:
    """Let `champion` go back to `previous`, and `previous` to the version it leaves, which gets the tag `rolled_back`.

    The version gone back to loses such a tag; what a person said for it before holds again.
    Raises DataError where there is nothing to go back to.
    """
    back, gone = registry.at(name, alias=PREVIOUS), registry.at(name, alias=CHAMPION)
    if back is None:
        raise DataError(f"registered model '{name}' has no alias '{PREVIOUS}': there is nothing to go back to")
    registry.untag(back, key=ROLLED_BACK)
    if gone is not None and gone.number != back.number:
        registry.tag(gone, key=ROLLED_BACK, value=reason)
    registry.point(name, alias=CHAMPION, number=back.number)  # first: what a kill in between leaves is right
    if gone is None or gone.number == back.number:  # the latter after such a kill
        registry.drop(name, alias=PREVIOUS, number=back.number)
    else:
        registry.point(name, alias=PREVIOUS, number=gone.number)
    return _standing(registry, back, f"rolled back: {reason}")


def _crown(registry: Registry, version: Version, *, holder: Version | None) -> None:
    """`previous` first: after a kill in between, the same call finds the same holder."""
    if holder is None:
        registry.drop(version.name, alias=PREVIOUS, number=version.number)
    else:
        registry.point(version.name, alias=PREVIOUS, number=holder.number)
    registry.point(version.name, alias=CHAMPION, number=version.number)


def _as_good(holder: Version, rival: Version) -> bool:
    """Whether the holder was measured on the same benchmark and is not worse there."""
    if holder.tags.get("benchmark") != rival.tags["benchmark"]:
        return False
    return float(holder.tags["overall"]) >= float(rival.tags["overall"])


def _per_cent(version: Version) -> str:
    return f"{100 * float(version.tags['overall']):.2f}"


def _standing(registry: Registry, version: Version, why: str, *, override: str = "") -> Standing:
    held = [registry.at(version.name, alias=alias) for alias in (CHAMPION, PREVIOUS)]
    return Standing(held[0], held[1], why, override)
