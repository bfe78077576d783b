"""JSON Lines, and JSON arrays of records.

Invariant: an array is read through a window as wide as its widest record; the whole file is never in memory. An object
with a repeated name is not a record: JSON does not define which value counts."""

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
_ARRAY = "the file must be a JSON array of records"
_LINE = "each line must be one JSON object"


def json_lines(name: str, stream: BinaryIO) -> Iterator[Raw]:
    """One record per line; blank lines are counted but skipped."""
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES):
        number += 1
        line = line.removeprefix(BOM)  # on any line: concatenated files keep theirs
        if len(line) == MAX_RECORD_BYTES and not line.endswith(b"\n"):
            beginning = line[:1000]
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_RECORD_BYTES)
            yield unparsed(number, too_long(name, number), beginning)
        elif line.strip():
            yield _parsed_line(name, number, line)


def _parsed_line(name: str, number: int, line: bytes) -> Raw:
    try:
        return _as_raw(name, number, _DECODER.decode(line.decode()), line)
    except UnicodeDecodeError as error:
        problem = not_utf8(error, name, number)
    except json.JSONDecodeError as error:
        problem = DatasetError(f"bad JSON at column {error.colno} ({error.msg}); {_LINE}", path=name, record=number)
    except (ValueError, RecursionError) as error:
        problem = DatasetError(f"bad JSON ({_told(error)}); {_LINE}", path=name, record=number)
    return unparsed(number, problem, line)


def json_array(name: str, stream: BinaryIO) -> Iterator[Raw]:
    """The elements of one array."""
    window = _Window(name, stream)
    first = window.next_character()
    if not first:
        return
    if first != "[":
        start = {"{": "an object", '"': "text"}.get(first, repr(window.text[window.position : window.position + 10]))
        raise DatasetError(f"starts with {start}; {_ARRAY} (for one record a line, name it .jsonl)", path=name)
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
    """Whether a file with this beginning (some thousand bytes) is JSON Lines, as many .json files are: its first line
    is a whole object, and another object or the end follows.
    """
    line, end, rest = head.removeprefix(BOM).lstrip().partition(b"\n")
    if not line.startswith(b"{"):
        return False
    try:
        return isinstance(json.loads(line), dict) and (not rest.strip() or rest.lstrip().startswith(b"{"))
    except (ValueError, RecursionError):
        return not end and len(head) >= _CHUNK_BYTES  # the first line is longer than the beginning


class _Window:
    """The part of a text file around the parser's position: grows at the end, is cut at the front."""

    def __init__(self, name: str, stream: BinaryIO):
        self.text, self.position = "", 0
        self._name, self._stream = name, stream
        self._bytes = b""
        """Read but not decoded yet: the beginning of a character, or invalid UTF-8."""
        self._offset = 0
        """Bytes decoded so far."""
        self._lines, self._columns = 0, 0
        """Of the text cut away: line ends, and characters after the last one."""
        self._ended = False

    def next_character(self, number: int | None = None) -> str:
        """Move to the next character that is not blank and return it; "" at the end of the file."""
        while True:
            found = _BLANK.match(self.text, self.position)
            self.position = found.end() if found else self.position
            if self.position < len(self.text) or not self._grow(number):
                return self.text[self.position : self.position + 1]

    def record(self, number: int) -> Raw:
        """Return the element at this position, and move behind it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.position)
            except json.JSONDecodeError as error:
                if self._grow(number):
                    continue
                raise self.bad(error.msg, number, error.pos) from None
            except (ValueError, RecursionError) as error:
                raise DatasetError(f"bad JSON ({_told(error)}); {_ARRAY}", path=self._name, record=number) from None
            if end == len(self.text) and self._grow(number):  # a number may continue
                continue
            start, self.position = self.position, end
            return _as_raw(self._name, number, value, self.text[start:end] if isinstance(value, _Doubled) else "")

    def bad(self, problem: str, number: int | None, position: int | None = None) -> DatasetError:
        """The error for a place in the text."""
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
        """Drop the parsed text and read about as much as is left; False if the file had ended before."""
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
        """The decodable beginning of the bytes; wrong bytes are reported once the parser reaches them."""
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
    """An object with a repeated name."""

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


def _as_raw(name: str, number: int, value: object, text: bytes | str) -> Raw:
    """The parsed record; nested objects may have repeated names."""
    if isinstance(value, _Doubled):
        return unparsed(
            number,
            DatasetError("appears twice in the record", path=name, record=number, field=value.name[:40]),
            text,
        )
    return Raw(number, value)


def _told(error: BaseException) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else one_line(error)
