"""COCO's compressed run lengths from plain numbers, by the rule of its maskApi.c: also of runs that no mask has."""

from __future__ import annotations

from collections.abc import Sequence


def code(runs: Sequence[int]) -> str:
    """The counts string of these run lengths; from the fourth on a number is less the last but one."""
    text = ""
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        more = True
        while more:
            digit, value = value & 31, value >> 5
            more = value != (-1 if digit & 16 else 0)
            text += chr((digit | (32 if more else 0)) + 48)
    return text
