"""JSON Lines, and JSON arrays of records.

Invariant: an array is read through a window that is as wide as its widest record; the file is never in memory as a
whole. An object in which a name stands twice is no record: JSON does not say which value counts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from mltrack.errors import DatasetError
from mltrack.records.readers.raw import MAX_RECORD_BYTES, Raw, not_utf8, one_line, too_long, unparsed

BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(r"[ \t\n\r]*")
_CHUNK_BYTES = 1 << 16
_ARRAY = "accepted: a JSON array of records"
_LINE = "accepted: one JSON object a line"


def json_lines(name: str, stream: BinaryIO) -> Iterator[Raw]:
    """A record a line; blank lines count but hold none."""
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES):
        number += 1
        line = line.removeprefix(BOM)  # of any line: files are put together as they are
        if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            beginning = line[:1000]
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_RECORD_BYTES)
            yield unparsed(number, too_long(name, number), beginning)
        elif line.strip():
            yield _parsed_line(name, number, line)


def _parsed_line(name: str, number: int, line: bytes) -> Raw:
    try:
        return _as_raw(name, number, _DECODER.decode(line.decode()), line, _LINE)
    except UnicodeDecodeError as error:
        problem = not_utf8(error, name, number)
    except json.JSONDecodeError as error:
        problem = DatasetError(f"bad JSON at column {error.colno} ({error.msg}); {_LINE}", path=name, record=number)
    except (ValueError, RecursionError) as error:
        problem = DatasetError(f"bad JSON ({_told(error)}); {_LINE}", path=name, record=number)
    return unparsed(number, problem, line)


def json_array(name: str, stream: BinaryIO) -> Iterator[Raw]:
    """The elements of one array; or the lines, where the file begins with a line that is a whole object (many .json
    files are JSON Lines).
    """
    window = _Window(name, stream)
    first = window.next_character()
    if not first:
        return
    if first != "[":
        seen = {"{": "an object", '"': "text"}.get(first, repr(window.text[window.position : window.position + 10]))
        raise DatasetError(f"starts with {seen}; {_ARRAY} (one record a line: name the file .jsonl)", path=name)
    window.position += 1
    number = 0
    while window.next_character() != "]" or number:
        number += 1
        yield window.record(number)
        following = window.next_character(number)
        if following == "]":
            break
        if following != ",":
            raise window.bad("Expecting ',' or ']'", number)
        window.position += 1
        window.next_character(number + 1)
    window.position += 1
    if window.next_character():
        raise window.bad("Extra data after the array", None)


def holds_lines(head: bytes) -> bool:
    """Whether a file with this beginning (some thousand bytes) is JSON Lines: its first line is a whole object, and
    another one follows or it ends.
    """
    line, end, rest = head.removeprefix(BOM).lstrip().partition(b"\n")
    if not line.startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(line), dict) and (not rest.strip() or rest.lstrip().startswith(b"{"))
    except (ValueError, RecursionError):
        return not end and len(head) >= _CHUNK_BYTES  # a first line longer than what was looked at


class _Window:
    """The part of a text file around the place that is parsed: grows at the end, is cut at the front."""

    def __init__(self, name: str, stream: BinaryIO):
        self.text, self.position = "", 0
        self._name, self._stream = name, stream
        self._bytes = b""
        """Read, and not decoded yet: the beginning of a character, or what is no UTF-8."""
        self._offset = 0
        """Bytes decoded so far."""
        self._lines, self._columns = 0, 0
        """Of the text that was cut away: line ends, and characters behind the last one."""
        self._ended = False

    def next_character(self, number: int | None = None) -> str:
        """The next character that is not blank, moved to; "" at the end of the file."""
        while True:
            found = _BLANK.match(self.text, self.position)
            self.position = found.end() if found else self.position
            if self.position < len(self.text) or not self._grow(number):
                return self.text[self.position : self.position + 1]

    def record(self, number: int) -> Raw:
        """The element that stands here, moved behind."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                if self._grow(number):
                    continue
                raise self.bad(error.msg, number, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise DatasetError(f"bad JSON ({_told(error)}); {_ARRAY}", path=self._name, record=number) from None
            if end == len(self.text) and self._grow(number):  # a number may go on
                continue
            start, self.position = self.position, end
            return _as_raw(
                self._name, number, value, self.text[start:end] if isinstance(value, _Doubled) else "", _ARRAY
            )

    def bad(self, problem: str, number: int | None, position: int | None = None) -> DatasetError:
        """The error for a place of the text."""
        place = self.position if position is None else position
        line = self.text.count("\n", 0, place)
        column = place - self.text.rfind("\n", 0, place) + (0 if line else self._columns)
        return DatasetError(
            f"bad JSON at line {self._lines + line + 1}, column {column} ({problem}); {_ARRAY}",
            path=self._name,
            record=number,
        )

    def _cut(self) -> None:
        gone = self.text[: self.position]
        lines = gone.count("\n")
        self._lines += lines
        self._columns = len(gone) - gone.rfind("\n") - 1 if lines else self._columns + len(gone)
        self.text, self.position = self.text[self.position :], 0

    def _grow(self, number: int | None) -> bool:
        """Cut what is done, append about as much as is left; False where the file had ended before."""
        if self._ended:
            if self._bytes:
                self._decoded(number, final=True)
            return False
        room = len(self.text) - self.position
        if room > MAX_RECORD_BYTES:
            raise too_long(self._name, number)
        self._cut()
        data = self._stream.read(max(_CHUNK_BYTES, room))
        self._ended = not data
        if not self._offset and not self._bytes:
            data = data.removeprefix(BOM)
        self._bytes += data
        self.text += self._decoded(number, final=self._ended)
        return True

    def _decoded(self, number: int | None, *, final: bool) -> str:
        """What of the bytes can be decoded; wrong ones are met once the parser has come to them."""
        try:
            text, used = self._bytes.decode(), len(self._bytes)
        except UnicodeDecodeError as error:
            cut = len(self._bytes) - error.start < 4 and error.reason == "unexpected end of data" and not final
            if not cut and error.start == 0:
                raise not_utf8(error, self._name, number, offset=self._offset) from None
            text, used = self._bytes[: error.start].decode(), error.start
        self._offset, self._bytes = self._offset + used, self._bytes[used:]
        return text


class _Doubled(dict[str, Any]):
    """An object in which a name stands twice."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__()
        self.name = ""
        for name, value in pairs:
            self.name = name if name in self else self.name
            self[name] = value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Doubled(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _as_raw(name: str, number: int, value: object, text: bytes | str, accepted: str) -> Raw:
    """What was parsed; objects deeper in it are further columns, which may be what they are."""
    if isinstance(value, _Doubled):
        return unparsed(
            number,
            DatasetError(
                f"stands twice in the record; {accepted}, each name once",
                path=name,
                record=number,
                field=value.name[:40],
            ),
            text,
        )
    return Raw(number, value)


def _told(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
