"""CSV files.

Invariant: one row is held at a time, so memory follows the widest record, not the file. A row that cannot be read
costs only itself; the next one begins on the next line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO

from mltrack.errors import DatasetError
from mltrack.records.readers.json_files import BOM
from mltrack.records.readers.raw import MAX_RECORD_BYTES, Raw, check_once, not_utf8, one_line, too_long, unparsed


def csv_rows(name: str, stream: BinaryIO) -> Iterator[Raw]:
    """One record per row, with the names of the header; every value is text.

    If the quotes of a row are wrong, its end is unknown: the next row begins on the line after the wrong quote, or
    after the line of a quote that is never closed."""
    lines = _Lines(stream)
    held = lines.row
    header: list[str] | None = None
    number = 0
    # a cell may be a whole program; the module's limit of 131,072 characters is global, so it is restored
    limit = csv.field_size_limit(MAX_RECORD_BYTES)
    try:
        while not lines.ended:
            problem, endless = "", False
            try:
                for row in csv.reader(lines.texts(), strict=True):
                    if header is None:
                        header = _header(name, row, lines.wrong)
                    elif row:
                        number += 1
                        if lines.wrong is not None:
                            yield unparsed(number, not_utf8(lines.wrong, name, number), bytes(held))
                        elif len(row) == len(header):
                            yield Raw(number, dict(zip(header, row, strict=True)))
                        else:
                            yield unparsed(
                                number, DatasetError(_cells(row, header), path=name, record=number), bytes(held)
                            )
                        lines.wrong = None
                    held.clear()
            except csv.Error as error:
                problem, endless = (
                    f'bad CSV ({one_line(error)}); separate cells with commas, and quote them with "',
                    lines.ended,
                )
            except _TooLongError:
                problem, endless = too_long(name, None).problem, True
            if problem and header is None:
                raise DatasetError(problem, path=name)
            if problem:
                number += 1
                yield unparsed(number, DatasetError(problem, path=name, record=number), lines.given_up(endless=endless))
    finally:
        csv.field_size_limit(limit)


def _header(name: str, row: list[str], wrong: UnicodeDecodeError | None) -> list[str]:
    if wrong is not None:
        raise not_utf8(wrong, name, None)
    header = [column.strip() for column in row]  # as people write "code, label"
    check_once(name, header)
    return header


def _cells(row: list[str], header: list[str]) -> str:
    return f"has {len(row)} cells, but the header has {len(header)}; quote cells that have commas or line ends"


class _TooLongError(Exception):
    """The current row is longer than `MAX_RECORD_BYTES`."""


class _Lines:
    """The lines of a CSV file as text, and the bytes of the current row's lines, which are read at most twice."""

    def __init__(self, stream: BinaryIO):
        self.row = bytearray()
        self.wrong: UnicodeDecodeError | None = None
        """The first decoding error in the current row."""
        self.ended = False
        self._stream = stream
        self._before = io.BytesIO(stream.readline(MAX_RECORD_BYTES + 1).removeprefix(BOM))
        """Lines to read before the rest of the file."""
        self._read_again = False
        """Whether the current row began in lines that were read before."""

    def texts(self) -> Iterator[str]:
        """The remaining lines; wrong bytes as half surrogate pairs.

        Raises:
            _TooLongError: the current row is too long; the rest of a single line that is too long is skipped.
        """
        row = self.row
        for stream in (self._before, self._stream):
            readline = stream.readline
            while line := readline(MAX_RECORD_BYTES + 1):
                row += line
                if len(row) > MAX_RECORD_BYTES:
                    self._pass_over(line)
                    raise _TooLongError
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    self.wrong = self.wrong or error
                    text = line.decode(errors="surrogateescape")
                yield text
            self._read_again = self._read_again and bool(row)
        self.ended = True

    def given_up(self, *, endless: bool) -> bytes:
        """The bytes of the current, invalid row. If it has no end: only its first line; the others are read again, but
        only once.
        """
        given_up = bytes(self.row)
        first, end, further = given_up.partition(b"\n")
        if endless and further and not self._read_again:
            given_up = first + end
            self._before, self._read_again, self.ended = io.BytesIO(further), True, False
        self.row.clear()
        self.wrong = None
        return given_up

    def _pass_over(self, line: bytes) -> None:
        """Skip the rest of a line that alone is too long; the row keeps the lines before it, or its beginning."""
        if len(line) > MAX_RECORD_BYTES:
            del self.row[len(self.row) - len(line) or 1000 :]
            while line and not line.endswith(b"\n"):
                line = self._stream.readline(MAX_RECORD_BYTES)
