"""Which photo an annotation means: tools write paths of other machines, so the longest equal ending counts."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import unquote

_HASH = re.compile(r"^[0-9a-f]{8}-(?=.)")  # Label Studio puts one before the name of an uploaded file


class PhotoIndex:
    """The photos of a folder, found by the ending of a path."""

    def __init__(self, names: Iterable[str]) -> None:
        """names: relative paths with `/`."""
        self._by_name = defaultdict[str, list[str]](list)
        for name in names:
            self._by_name[PurePosixPath(name).name].append(name)

    def find(self, path: str) -> str:
        """The photo that `path`, of any machine, means. Raises ValueError saying why there is none, or not one."""
        parts = _parts(path)
        if not parts:
            raise ValueError("no file is named")
        for last in dict.fromkeys((parts[-1], unquote(parts[-1]), _HASH.sub("", unquote(parts[-1])))):
            found = self._by_name.get(last, [])
            shared = {name: _shared(_parts(name)[:-1], parts[:-1]) for name in found}
            best = [name for name, count in shared.items() if count == max(shared.values())]
            if len(best) == 1:
                return best[0]
            if best:
                raise ValueError(f"'{path}' may be {best[0]} or {best[1]}")
        raise ValueError(f"no photo is named '{parts[-1]}'")


def _parts(path: str) -> list[str]:
    """The names of a path of either system, without dots."""
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]


def _shared(one: list[str], other: list[str]) -> int:
    """How many folders the two have in common, counted from the end."""
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count
