"""A JSON document read piece by piece: json's own parser, given one element of a list at a time.

The same values, the same errors at the same places as `json.loads` of the whole text, without ever holding it.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

BLOCK = 2**20  # bytes read at a time; an element that is longer lets the buffer grow
_LONGEST = 16  # characters of a token that json may take for finished, or refuse, because the rest was not read yet
_SPACE = re.compile(r"[ \t\n\r]*")
_OPEN, _COLON, _COMMA = '{"a":', '{"a"', '{"a":"",'  # of a text that json would have read before it came to an error
Pairs = list[tuple[str, Any]]
Member = Callable[[str, Iterator[tuple[Any, str]]], Any]


class NotText(ValueError):
    """Bytes that are no text in the encoding of the document."""

    def __init__(self, byte: int, place: int) -> None:
        """place: of the byte in the document, the mark of UTF-8 not counted."""
        super().__init__(f"byte {byte:#04x} at {place:,}")


class JsonStream:
    """One document. Raises what json raises: ValueError (NotText), RecursionError, and what `whole` does."""

    def __init__(self, file: BinaryIO, whole: Callable[[Pairs], Any]) -> None:
        """whole: as object_pairs_hook of json; it may be called again for an object that was read in part."""
        self._file, self._whole = file, whole
        decoder: Any = json.JSONDecoder(object_pairs_hook=whole)
        self._scan = decoder.scan_once  # what its raw_decode calls, with the places of json's errors
        first = file.read(BLOCK)
        self._encoding = json.detect_encoding(first)
        self._decoder = codecs.getincrementaldecoder(self._encoding)()
        self._bytes, self._ended = 0, False
        self._text = self._decoded(first).removeprefix("\ufeff")
        self._at = 0  # in the text of the buffer
        self._before, self._lines, self._line = 0, 0, 0  # characters and lines dropped; where the line begins

    def walk(self, member: Member) -> Any:
        """The tree, where `member` is asked for the value of each top-level key that has a list.

        member: given the key and an iterator over (element, its text), which it may leave unfinished. What it returns
        stands in the tree for the list. Of a document that is no object: the same with key ''.
        """
        try:
            self._skip_space()
            if self._peek() == "{":
                tree = self._object(member)
            else:
                tree = self._value("", member, before="")
            self._skip_space()
            if self._peek():
                raise json.JSONDecodeError("Extra data", self._text, self._at)
        except NotText:
            raise
        except (ValueError, RecursionError) as error:
            while not self._ended:  # bytes that are no text are told first, wherever they are
                self._decoded(self._file.read(BLOCK))
            if isinstance(error, json.JSONDecodeError):
                raise self._told(error) from error
            raise
        return tree

    def _object(self, member: Member) -> Any:
        pairs: Pairs = []
        self._at += 1
        self._skip_space()
        before = "{"
        while before != "{" or self._peek() != "}":
            if self._peek() != '"':
                raise self._refused(before)
            name, _ = self._element(before)
            self._skip_space()
            if self._peek() != ":":
                raise self._refused(_COLON)
            self._at += 1
            self._skip_space()
            pairs.append((name, self._value(name, member, before=_OPEN)))
            self._skip_space()
            if self._peek() == "}":
                break
            if self._peek() != ",":
                raise self._refused('{"a":""')
            self._at += 1
            self._skip_space()
            before = _COMMA
        self._at += 1
        return self._whole(pairs)

    def _value(self, name: str, member: Member, *, before: str) -> Any:
        if self._peek() != "[":
            return self._element(before)[0]
        elements = self._list()
        tree = member(name, elements)
        for _ in elements:  # what the member did not want must be JSON all the same
            pass
        return tree

    def _list(self) -> Iterator[tuple[Any, str]]:
        self._at += 1
        self._skip_space()
        if self._peek() == "]":
            self._at += 1
            return
        before = "["
        while True:
            yield self._element(before)
            self._skip_space()
            if self._peek() == "]":
                break
            if self._peek() != ",":
                raise self._refused('[""')
            self._at += 1
            self._skip_space()
            before = '["",'
        self._at += 1

    def _element(self, before: str) -> tuple[Any, str]:
        """The value at the cursor and its text; before: what json would have read, for the words of its error."""
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except StopIteration as error:
                if self._is_whole(error.value):
                    raise self._no_value(before, error.value) from error
            except ValueError as error:
                if self._is_sure(error):
                    raise
            else:
                if self._is_whole(end):
                    text = self._text[self._at : end]
                    self._at = end
                    return value, text
            self._more()

    def _is_whole(self, end: int) -> bool:
        """Whether nothing that is still to come can change what json says of the text up to `end`."""
        return self._ended or end < len(self._text) - _LONGEST

    def _is_sure(self, error: ValueError) -> bool:
        """Whether json would say so of the whole text too."""
        if isinstance(error, json.JSONDecodeError):
            return self._ended or (self._is_whole(error.pos) and not error.msg.startswith("Unterminated"))
        number = type(error) is ValueError  # of thousands of digits, of which the last may not be there yet
        return self._ended or not (number and self._text[-1:].isdigit())

    def _no_value(self, before: str, at: int) -> json.JSONDecodeError:
        if at == self._at:
            return self._refused(before)
        return json.JSONDecodeError("Expecting value", self._text, at)

    def _refused(self, before: str) -> json.JSONDecodeError:
        """json's own error for what is at the cursor, after `before`."""
        ahead = self._text[self._at : self._at + _LONGEST]
        try:
            json.loads(before + ahead)
        except json.JSONDecodeError as error:
            return json.JSONDecodeError(error.msg, self._text, max(0, self._at + error.pos - len(before)))
        raise AssertionError(f"json takes {before + ahead!r}")

    def _told(self, error: json.JSONDecodeError) -> json.JSONDecodeError:
        """The error with its place in the document instead of in the buffer."""
        place, line = self._before + error.pos, self._lines + error.lineno
        column = error.colno if error.lineno > 1 else place - self._line + 1
        told = json.JSONDecodeError(error.msg, "", place)
        told.args = (f"{error.msg}: line {line} column {column} (char {place})",)
        return told

    def _peek(self) -> str:
        """The character at the cursor, '' at the end."""
        return self._text[self._at : self._at + 1]

    def _skip_space(self) -> None:
        """To the next character that is no space; more is read until there is one."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches anything
            if self._at < len(self._text) or self._ended:
                return
            self._more()

    def _more(self) -> None:
        """Read on: as much as is still needed, so that a long element is looked at a few times only."""
        gone = self._text[: self._at]
        lines = gone.count("\n")
        if lines:
            self._lines, self._line = self._lines + lines, self._before + gone.rindex("\n") + 1
        self._before += len(gone)
        self._text, self._at = self._text[self._at :], 0
        wanted = 2 * len(self._text) + 1
        parts, length = [self._text], len(self._text)
        while length < wanted and not self._ended:
            parts.append(self._decoded(self._file.read(BLOCK)))
            length += len(parts[-1])
        self._text = "".join(parts)

    def _decoded(self, data: bytes) -> str:
        self._ended = not data
        held = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            mark = 3 if self._encoding == "utf-8-sig" and self._bytes else 0  # which its own places do not count
            raise NotText(error.object[error.start], self._bytes - held - mark + error.start) from error
        self._bytes += len(data)
        return text
