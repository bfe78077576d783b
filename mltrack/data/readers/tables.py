"""CSV and Parquet files.

Invariant: CSV is read line by line, Parquet some hundred rows at a time: memory follows the widest record and the row group, not the file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from mltrack.data.readers.json_files import BOM
from mltrack.data.readers.raw import MAX_RECORD_BYTES, Raw, not_utf8, one_line, too_long, unparsed
from mltrack.errors import DatasetError

_ROWS = 256


def csv_rows(name: str, stream: BinaryIO) -> Iterator[Raw]:
    """A record a row, with the names of the header; every value is text."""
    # a cell may be a whole program; the module's limit of 131,072 characters is global, so it is put back
    limit = csv.field_size_limit(MAX_RECORD_BYTES)
    number, header = 0, None
    try:
        rows = csv.reader(_decoded_lines(name, stream), strict=True)
        header = next(rows, None)
        if header is None:
            return
        header = [column.strip() for column in header]  # as people write "code, label"
        _check_once(name, header)
        for row in rows:
            if not row:
                continue
            number += 1
            if len(row) == len(header):
                yield Raw(number, dict(zip(header, row, strict=True)))
            else:
                problem = f"seen {len(row)} cells, the header has {len(header)}; accepted: as many cells as the header (cells with commas or line ends quoted)"
                yield unparsed(number, DatasetError(problem, path=name, record=number), ",".join(row))
    except UnicodeDecodeError as error:
        raise not_utf8(error, name, number + 1 if header else None) from None
    except csv.Error as error:
        raise DatasetError(
            f'bad CSV ({one_line(error)}); accepted: comma-separated cells, quoted with "', path=name, record=number + 1 if header else None
        ) from None
    finally:
        csv.field_size_limit(limit)


def _check_once(name: str, columns: list[str]) -> None:
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise DatasetError(f"the column {column[:40]!r} stands twice in the header; accepted: each column once", path=name)
        seen.add(column)


def _decoded_lines(name: str, stream: BinaryIO) -> Iterator[str]:
    # line by line, so that a wrong byte is met in its own record
    first = True
    while line := stream.readline(MAX_RECORD_BYTES):
        if len(line) == MAX_RECORD_BYTES:
            raise too_long(name, None)
        yield (line.removeprefix(BOM) if first else line).decode()
        first = False


def parquet_rows(name: str, stream: BinaryIO) -> Iterator[Raw]:
    """A record a row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(stream)
        _check_once(name, file.schema_arrow.names)
        for group in range(file.num_row_groups):  # one by one: a reader over all of them keeps what it has decoded
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], use_threads=False):
                yield from _rows(name, batch, number)
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:  # pyarrow's own errors of broken pages are OSErrors without a number
        if isinstance(error, OSError) and error.errno:
            raise
        raise DatasetError(f"not a readable Parquet file ({one_line(error)}); accepted: a Parquet file", path=name) from None


def _rows(name: str, batch: Any, before: int) -> Iterator[Raw]:
    """The rows behind `before` others; where a value is none that Python has (text that is no UTF-8, a year 10000) its row alone is bad."""
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):
        yield from (_row(name, batch.slice(row, 1), before + row + 1) for row in range(batch.num_rows))
    else:
        yield from (Raw(number, value) for number, value in enumerate(values, before + 1))


def _row(name: str, row: Any, number: int) -> Raw:
    value: dict[str, Any] = {}
    for column in row.schema.names:
        try:
            value[column] = row.column(column)[0].as_py()
        except (ValueError, OverflowError) as error:
            problem = DatasetError(f"cannot be read ({one_line(error)}); accepted: a value that Python can hold", path=name, record=number, field=column)
            return Raw(number, problem, json.dumps(value, default=str))
    return Raw(number, value)
