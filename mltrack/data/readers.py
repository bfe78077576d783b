"""Data files: a JSON array, JSON Lines, CSV or Parquet, the first three also gzipped, into records.

Invariant: whatever the bytes are, the outcome is a list of good records or one `DatasetError` that names the file and,
where one record is at fault, its number and field. Only one record at a time is held in its raw form, JSON arrays excepted.

    read_records("data.jsonl", "text_classification", on_bad_record="skip", on_skip=print)
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mltrack.data.records import Record, as_task, check_record
from mltrack.errors import ConfigurationError, DatasetError, did_you_mean

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
"""Accepted file extensions; each but the last may be followed by .gz."""

_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(r"[ \t\n\r]*")


class _Raw(NamedTuple):
    """What stands at one place of a file: an object to check, or the error of a record that is none."""

    number: int
    value: object


def read_records(path: str | Path, task: str, *, on_bad_record: str = "stop", on_skip: Callable[[DatasetError], None] | None = None) -> list[Record]:
    """All records of a file, in its order.

    Args:
        path: the file; its extension tells the format.
        task: a `TaskType` or its name.
        on_bad_record: "stop" raises at the first bad record, "skip" leaves it out.
        on_skip: called with the error of each record that is left out.

    Raises:
        DatasetError: the file cannot be read, holds no records, or holds a bad one.
        ConfigurationError: an unknown task or `on_bad_record`.
    """
    kind = as_task(task)
    if on_bad_record not in ("stop", "skip"):
        raise ConfigurationError(f"on_bad_record: seen {on_bad_record!r}; {did_you_mean(str(on_bad_record), ('stop', 'skip'))}")
    records: list[Record] = []
    first_bad: DatasetError | None = None
    num_bad = 0
    for number, value in _raw_records(Path(path)):
        try:
            if isinstance(value, DatasetError):
                raise value
            records.append(check_record(value, kind, str(path), number))
        except DatasetError as error:
            if on_bad_record == "stop":
                raise
            num_bad += 1
            first_bad = first_bad or error
            if on_skip is not None:
                on_skip(error)
    if first_bad is not None and not records:
        raise DatasetError(f"none of the {num_bad} records is good; the first: {first_bad}", path=path)
    if not records:
        raise DatasetError("holds no records; accepted: at least one", path=path)
    return records


def _raw_records(path: Path) -> Iterator[_Raw]:
    gzipped = path.suffix.lower() == ".gz"
    suffix = (Path(path.stem) if gzipped else path).suffix.lower()
    _check_path(path, suffix, gzipped)
    reader = {".json": _json_array, ".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}[suffix]
    try:
        with _opened(path, gzipped) as stream:
            yield from reader(path, stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DatasetError(f"not a whole gzip file ({_one_line(error)}); accepted: the output of gzip", path=path) from None
    except OSError as error:
        raise DatasetError(f"cannot be read: {error.strerror or _one_line(error)}; accepted: a readable file", path=path) from None


def _check_path(path: Path, suffix: str, gzipped: bool) -> None:
    accepted = "a " + ", ".join(SUFFIXES[:-1]) + f" (each also .gz) or {SUFFIXES[-1]} file"
    try:
        if not path.exists():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = did_you_mean(path.name, siblings).rpartition(" (did you mean ")
            raise DatasetError(f"no such file{' (did you mean ' + hint[2] if hint[1] else ''}; accepted: {accepted}, or stdlib", path=path)
        if path.is_dir():
            raise DatasetError(f"is a folder; accepted: {accepted}", path=path)
    except OSError as error:
        raise DatasetError(f"cannot be read: {error.strerror}; accepted: {accepted}", path=path) from None
    if suffix not in SUFFIXES or (gzipped and suffix == ".parquet"):
        seen = f"the extension '{''.join(path.suffixes[-2:]) if gzipped else path.suffix}'" if path.suffix else "no extension"
        raise DatasetError(f"seen {seen}; accepted: {accepted}", path=path)


def _opened(path: Path, gzipped: bool) -> BinaryIO:
    return gzip.open(path, "rb") if gzipped else path.open("rb")  # type: ignore[return-value]


def _json_lines(path: Path, stream: BinaryIO) -> Iterator[_Raw]:
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(_BOM)
        if line.strip():
            yield _Raw(number, _json_line(path, number, line))


def _json_line(path: Path, number: int, line: bytes) -> object:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return _not_utf8(error, path, number)
    except json.JSONDecodeError as error:
        return DatasetError(f"bad JSON at column {error.colno} ({error.msg}); accepted: one JSON object a line", path=path, record=number)
    except (ValueError, RecursionError) as error:
        return DatasetError(f"bad JSON ({_one_line(error)}); accepted: one JSON object a line", path=path, record=number)


def _json_array(path: Path, stream: BinaryIO) -> Iterator[_Raw]:
    try:
        text = stream.read().removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(error, path, None) from None
    position = _skip_blank(text, 0)
    if position == len(text):
        return
    if text[position] != "[":
        seen = {"{": "an object", '"': "text"}.get(text[position], repr(text[position : position + 10]))
        raise DatasetError(f"starts with {seen}; accepted: a JSON array of records (one record a line: name the file .jsonl)", path=path)
    decoder, number = json.JSONDecoder(), 0
    position = _skip_blank(text, position + 1)
    while number or text[position : position + 1] != "]":
        number += 1
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise _bad_array(text, error.pos, error.msg, path, number) from None
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"bad JSON ({_one_line(error)}); accepted: a JSON array of records", path=path, record=number) from None
        yield _Raw(number, value)
        position = _skip_blank(text, position)
        if text[position : position + 1] == "]":
            break
        if text[position : position + 1] != ",":
            raise _bad_array(text, position, "Expecting ',' or ']'", path, number)
        position = _skip_blank(text, position + 1)
    end = _skip_blank(text, position + 1)
    if end < len(text):
        raise _bad_array(text, end, "Extra data after the array", path, None)


def _skip_blank(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    return found.end() if found else position


def _bad_array(text: str, position: int, problem: str, path: Path, number: int | None) -> DatasetError:
    line, column = text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)
    return DatasetError(f"bad JSON at line {line}, column {column} ({problem}); accepted: a JSON array of records", path=path, record=number)


def _csv_rows(path: Path, stream: BinaryIO) -> Iterator[_Raw]:
    # a cell may be a whole program; the module's limit of 131,072 characters is global, so it is put back
    limit = csv.field_size_limit(sys.maxsize)
    number = 0
    try:
        rows = csv.reader(_decoded_lines(stream), strict=True)
        header = next(rows, None)
        if header is None:
            return
        doubled = next((name for name in header if header.count(name) > 1), None)
        if doubled is not None:
            raise DatasetError(f"the column '{doubled}' stands twice in the header; accepted: each column once", path=path)
        for row in rows:
            if not row:
                continue
            number += 1
            if len(row) == len(header):
                yield _Raw(number, dict(zip(header, row, strict=True)))
            else:
                problem = f"seen {len(row)} cells, the header has {len(header)}; accepted: as many cells as the header (cells with commas or line ends quoted)"
                yield _Raw(number, DatasetError(problem, path=path, record=number))
    except UnicodeDecodeError as error:
        raise _not_utf8(error, path, number + 1) from None
    except csv.Error as error:
        raise DatasetError(f'bad CSV ({_one_line(error)}); accepted: comma-separated cells, quoted with "', path=path, record=number + 1) from None
    finally:
        csv.field_size_limit(limit)


def _decoded_lines(stream: BinaryIO) -> Iterator[str]:
    # line by line, so that a wrong byte is met in its own record
    for number, line in enumerate(stream):
        yield (line if number else line.removeprefix(_BOM)).decode()


def _parquet_rows(path: Path, stream: BinaryIO) -> Iterator[_Raw]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=1000):
            for value in batch.to_pylist():
                number += 1
                yield _Raw(number, value)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DatasetError(f"not a readable Parquet file ({_one_line(error)}); accepted: a Parquet file", path=path) from None


def _not_utf8(error: UnicodeDecodeError, path: Path, number: int | None) -> DatasetError:
    return DatasetError(f"not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {error.start}); accepted: UTF-8", path=path, record=number)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
