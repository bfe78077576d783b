"""What stands at one place of a file, before it is checked; and the errors that all formats share."""

from __future__ import annotations

from typing import NamedTuple

from mltrack.errors import DatasetError

MAX_RECORD_BYTES = 32 << 20
"""Of a record in its file, escapes and further columns included; what is longer is never held in memory as a whole."""

SHOWN_BYTES = 1 << 20
"""Of a record that cannot be parsed, kept for the file of bad records."""


class Raw(NamedTuple):
    """An object to check, or the error of a record that is none."""

    number: int
    """Of the record in its file; the first is 1."""
    value: object
    """The object, or a `DatasetError`."""
    text: str | None = None
    """The beginning of what stands there, where it could not be parsed."""


def unparsed(number: int, error: DatasetError, data: bytes | str) -> Raw:
    """The place of a record that cannot be parsed."""
    shown = data[:SHOWN_BYTES]
    return Raw(number, error, shown.decode(errors="backslashreplace") if isinstance(shown, bytes) else shown)


def not_utf8(error: UnicodeDecodeError, name: str, number: int | None, *, offset: int = 0) -> DatasetError:
    """The error for bytes that are no UTF-8; `offset` is how many bytes stand before those that were decoded."""
    problem = f"not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start + offset}); accepted: UTF-8"
    return DatasetError(problem, path=name, record=number)


def too_long(name: str, number: int | None) -> DatasetError:
    """The error for a record longer than `MAX_RECORD_BYTES`."""
    return DatasetError(
        f"longer than {MAX_RECORD_BYTES:,} bytes; accepted: records up to that (is it one line end or bracket that is"
        " missing?)",
        path=name,
        record=number,
    )


def check_once(name: str, columns: list[str]) -> None:
    """Refuse a table that has two columns of one name.

    Raises:
        DatasetError: that column.
    """
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise DatasetError(
                f"the column {column[:40]!r} stands twice in the header; accepted: each column once", path=name
            )
        seen.add(column)


def one_line(error: BaseException) -> str:
    """A library's message, short and without line ends."""
    return " ".join(str(error).split())[:160]
