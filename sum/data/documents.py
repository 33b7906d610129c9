"""Annotation files: JSON and text of a bounded size, from a disk or a bucket. What is wrong is told with what to do."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sum.data.sources import Problem
from sum.data.streams import JsonStream, Member, NotText, Pairs
from sum.errors import DataError
from sum.storage import NotFound, open_whole, read_bytes, size_of

_MEND = "export or download it again, or mend it in an editor"
Shrink = Callable[[dict[str, Any]], Any]


class BadDocument(DataError):
    """An annotation file that cannot be used: as an error of a whole set, or as the Problem of one image."""

    def __init__(self, path: str, reason: str, *, remedy: str = _MEND) -> None:
        """reason, remedy: as of a Problem, without full stops."""
        super().__init__(f"{path}: {reason}. {remedy[:1].upper()}{remedy[1:]}.")
        self.problem = Problem(path, reason, remedy)


def read_json(path: str, *, max_mb: int, shrink: Shrink = lambda tree: tree) -> Any:
    """The tree of a JSON file; shrink: given every object as soon as it is parsed, returns what is kept of it.

    Raises BadDocument when it is no JSON, is nested beyond reason, says a key twice or is larger than max_mb. NaN and
    Infinity are taken as numbers: whoever uses one finds it not finite.
    """
    text = read_text(path, max_mb=max_mb)
    with _json_errors(path):
        return json.loads(text, object_pairs_hook=_hook(path, shrink))


def walk_json(path: str, member: Member, *, max_mb: int, shrink: Shrink = lambda tree: tree) -> Any:
    """As `read_json`, with no more of the file in memory than `member` keeps of the lists at its top.

    member: as of JsonStream.walk. The file may be read while it is larger than the memory.
    """
    _require_size(path, max_mb=max_mb)
    with open_whole(path) as file, _json_errors(path):
        try:
            return JsonStream(file, _hook(path, shrink)).walk(member)
        except NotText as error:
            raise _not_text(path, str(error)) from error


def _hook(path: str, shrink: Shrink) -> Callable[[Pairs], Any]:
    """What json makes of the members of an object."""

    def whole(pairs: Pairs) -> Any:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            raise BadDocument(path, f"not sound JSON: one object has the key '{twice[:100]}' twice")
        return shrink(tree)

    return whole


@contextmanager
def _json_errors(path: str) -> Iterator[None]:
    """What json raises -> what is wrong with the file."""
    try:
        yield
    except RecursionError as error:
        raise BadDocument(path, "lists and objects are nested too deeply for an annotation file") from error
    except BadDocument:
        raise
    except ValueError as error:  # its grammar, or a number of thousands of digits
        raise BadDocument(path, f"not JSON ({error})") from error


def read_text(path: str, *, max_mb: int) -> str:
    """The text of a UTF-8 file (or UTF-16 or -32 with a mark). Raises BadDocument when it is none, or too large."""
    data = read_document(path, max_mb=max_mb)
    try:
        return data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _not_text(path, f"byte {error.object[error.start]:#04x} at {error.start:,}") from error


def _not_text(path: str, found: str) -> BadDocument:
    return BadDocument(path, f"not a text in UTF-8 ({found})", remedy="save it as UTF-8")


def read_lines(path: str, *, lines: slice, max_mb: int) -> list[str]:
    """The lines of a text file that are not blank, without spaces around them, and of those `lines`.

    Raises BadDocument when none is left or it is no text.
    """
    found = [line.strip() for line in read_text(path, max_mb=max_mb).splitlines()]
    found = [line for line in found if line][lines]
    if not found:
        raise BadDocument(path, "the list is empty", remedy="write one name a line")
    return found


def read_document(path: str, *, max_mb: int) -> bytes:
    """The bytes of an annotation file. Raises BadDocument when it is larger than max_mb: nothing of it is read then."""
    _require_size(path, max_mb=max_mb)
    return read_bytes(path)


def _require_size(path: str, *, max_mb: int) -> None:
    size = size_of(path)
    if size > max_mb * 1_000_000:
        reason = f"{size / 1e6:,.0f} MB, more than max_json_mb {max_mb}"
        raise BadDocument(path, reason, remedy="raise max_json_mb of the data set if it is really this large")


def clean(value: object) -> str:
    """A name out of JSON as text that can be printed and stored: half a surrogate pair becomes ?."""
    return str(value).encode("utf-8", "replace").decode()


def of_one_image(path: str, *, max_mb: int) -> Any | Problem:
    """The tree of the JSON file of a single image; one that is absent or cannot be used is a Problem of that image."""
    try:
        return read_json(path, max_mb=max_mb)
    except BadDocument as error:
        return error.problem
    except NotFound:
        return Problem(path, "the annotation file is missing", "add the file, or take the image out")
