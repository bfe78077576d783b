"""One unchecked record of a file, and the errors that all formats share."""

from __future__ import annotations

from typing import NamedTuple

from mltrack.errors import DatasetError

MAX_RECORD_BYTES = 32 << 20
"""Limit of a record in its file, escapes and other columns included; a longer one is never completely in memory."""

SHOWN_BYTES = 1 << 20
"""Bytes of an unparsable record that are kept for the file of bad records."""


class Raw(NamedTuple):
    """An object to check, or the error of an unreadable record."""

    number: int
    """Number of the record in its file; the first is 1."""
    value: object
    """The object, or a `DatasetError`."""
    text: str | None = None
    """The beginning of its text, if it could not be parsed."""


def unparsed(number: int, error: DatasetError, data: bytes | str) -> Raw:
    """A record that cannot be parsed."""
    shown = data[:SHOWN_BYTES]
    return Raw(number, error, shown.decode(errors="backslashreplace") if isinstance(shown, bytes) else shown)


def not_utf8(error: UnicodeDecodeError, name: str, number: int | None, *, offset: int = 0) -> DatasetError:
    """The error for bytes that are not UTF-8; `offset` is the number of bytes before the decoded ones."""
    problem = f"is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start + offset})"
    return DatasetError(problem, path=name, record=number)


def too_long(name: str, number: int | None) -> DatasetError:
    """The error for a record longer than `MAX_RECORD_BYTES`."""
    return DatasetError(
        f"is longer than {MAX_RECORD_BYTES:,} bytes, the most for a record (is a line end or bracket missing?)",
        path=name,
        record=number,
    )


def check_once(name: str, columns: list[str]) -> None:
    """Refuse a table with two columns of the same name.

    Raises:
        DatasetError: names the column.
    """
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise DatasetError(f"has the column {column[:40]!r} twice in its header", path=name)
        seen.add(column)


def one_line(error: BaseException) -> str:
    """A library's message, short and without line ends."""
    return " ".join(str(error).split())[:160]
