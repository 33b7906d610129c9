"""Which photo an annotation means: tools write paths of other machines, so the longest equal ending counts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from urllib.parse import unquote

_HASH = re.compile(r"^[0-9a-f]{8}-(?=.)")  # Label Studio puts one before the name of an uploaded file


class PhotoIndex:
    """The photos of a folder, found by the ending of a path."""

    def __init__(self, names: Iterable[str]) -> None:
        """names: relative paths with `/`."""
        self._by_ending, self._deepest = dict[str, list[str]](), 0
        for name in names:
            folders, last = _parts(name)[:-1], PurePosixPath(name).name
            self._deepest = max(self._deepest, len(folders))
            for start in range(len(folders) + 1):
                same = self._by_ending.setdefault("/".join((*folders[start:], last)), [])
                if len(same) < 2:  # a third changes nothing
                    same.append(name)

    def find(self, path: str) -> str:
        """The photo that `path`, of any machine, means. Raises ValueError saying why there is none, or not one."""
        parts = _parts(path)
        if not parts:
            raise ValueError("no file is named")
        folders = parts[:-1][-self._deepest :] if self._deepest else []
        for last in dict.fromkeys((parts[-1], unquote(parts[-1]), _HASH.sub("", unquote(parts[-1])))):
            for start in range(len(folders) + 1):  # the longest ending first
                best = self._by_ending.get("/".join((*folders[start:], last)), [])
                if len(best) == 1:
                    return best[0]
                if best:
                    raise ValueError(f"'{path}' may be {best[0]} or {best[1]}")
        raise ValueError(f"no photo is named '{parts[-1]}'")


def _parts(path: str) -> list[str]:
    """The names of a path of either system, without dots."""
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
