"""What must come out of a miniature: its writer says so, from the arrays it drew, without any reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(slots=True)
class Expected:
    """The truth about a miniature, in the frame of the upright photo (or of the file's pixels where EXIF is ignored)."""

    masks: dict[str, list[np.ndarray]] = field(default_factory=dict)  # image id without the set -> [H, W] bool, in order
    notes: Counter[str] = field(default_factory=Counter)  # reason -> how often
    problems: set[str] = field(default_factory=set)  # files below the root, `/` between folders


Writer = Callable[[Path], Expected]  # writes a set below an empty root, exactly as its archives unpack
