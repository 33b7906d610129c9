"""What tar archives of a bucket hold, kept in the cache: an archive that is still the same costs one question."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from sum.storage import keep, recall

log = logging.getLogger(__name__)
Place = tuple[str, int, int]  # name, offset and size in bytes of the content


@dataclass(frozen=True, slots=True)
class Contents:
    """The regular files of an archive in their order, and what was refused: (name, reason)."""

    places: tuple[Place, ...]
    refused: tuple[tuple[str, str], ...]


def kept_listing(uri: str, version: str, read: Callable[[], Contents]) -> Contents:
    """What `read` gives for this version of an archive, from the cache when it is there and sound.

    version: ETag and size. An archive that is damaged as a whole is not kept: a wrong byte on the way looks the same.
    """
    address = f"{uri}!/"  # of no member
    data = recall(address, version)
    if data:
        try:
            return _contents(data, size=int(version.rpartition(" ")[2]))
        except (ValueError, TypeError, KeyError) as error:
            log.warning("%s: its listing in the cache is unsound (%s): it is listed again.", uri, error)
    elif data is not None:
        log.warning("%s: its listing is gone from the cache, or damaged: it is listed again.", uri)
    found = read()
    if all(name for name, _ in found.refused):
        keep(address, version, json.dumps({"places": found.places, "refused": found.refused}).encode())
    return found


def _contents(data: bytes, *, size: int) -> Contents:
    """Raises ValueError, TypeError or KeyError when it is no listing of an archive of `size` bytes."""
    tree = json.loads(data)
    places = tuple((name, offset, length) for name, offset, length in tree["places"])
    refused = tuple((name, reason) for name, reason in tree["refused"])
    end = 0
    for name, offset, length in places:
        if not (type(name) is str and name and type(offset) is int and type(length) is int):
            raise ValueError("an entry is no name with offset and size")
        if offset < end or length < 0 or offset + length > size:
            raise ValueError(f"'{name}' lies outside of it")
        end = offset + length
    if len({name for name, _, _ in places}) < len(places):
        raise ValueError("a name is there twice")
    if not all(type(text) is str for row in refused for text in row):
        raise ValueError("a refusal is no text")
    return Contents(places, refused)
