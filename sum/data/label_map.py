"""CVAT's labelmap.txt, beside masks whose colours are classes: `NAME:R,G,B:PARTS:ACTIONS`, a class a line."""

from __future__ import annotations

import numpy as np

from sum.data.documents import read_text
from sum.data.sources import Source
from sum.errors import DataError
from sum.storage import join, read_bytes

BACKGROUND = ""  # the name of what is no object
UNNAMED = "colour that the label map does not name left out"
_FORM = "wanted NAME:R,G,B:PARTS:ACTIONS, as CVAT exports it"


def read_label_map(source: Source) -> dict[int, str]:
    """0xRRGGBB -> class, BACKGROUND for the background; {} for a set without label map. Raises DataError, NotFound."""
    if source.labelmap is None:
        return {}
    path, found = join(source.root, source.labelmap), dict[int, str]()
    for number, line in enumerate(read_text(path, max_mb=source.max_json_mb).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, colour, _, _ = line.strip().rsplit(":", 3)  # a name may hold a colon
            red, green, blue = (int(share) for share in colour.split(","))
            value = int.from_bytes(bytes((red, green, blue)))
        except ValueError:
            raise DataError(f"{path}: line {number} is '{line.strip()[:60]}'; {_FORM}") from None
        if value in found:
            raise DataError(f"{path}: line {number}: the colour {colour} has a name already; give each class its own")
        found[value] = BACKGROUND if name.strip().casefold() == "background" else name.strip()
    if not any(found.values()):
        raise DataError(f"{path} names no class; {_FORM}")
    return found


def class_file(file: str, source: Source) -> bytes:
    """The file of classes that belongs to a file of objects. Raises NotFound without it."""
    relative = file.removeprefix(join(source.root, source.masks)).lstrip("/")
    return read_bytes(join(source.root, source.classes or "", relative))


def class_of(colours: np.ndarray, source: Source) -> str | None:
    """The class of most of these pixels, which are colours; None for a colour without name."""
    values, counts = np.unique(colours, return_counts=True)
    return source.colours.get(int(values[counts.argmax()]))
