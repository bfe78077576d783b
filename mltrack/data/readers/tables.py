"""CSV and Parquet files.

Invariant: CSV is read line by line, Parquet some hundred rows at a time: memory follows the widest record and the row group, not the file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO

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
        doubled = next((column for column in header if header.count(column) > 1), None)
        if doubled is not None:
            raise DatasetError(f"the column {doubled[:40]!r} stands twice in the header; accepted: each column once", path=name)
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
        for group in range(file.num_row_groups):  # one by one: a reader over all of them keeps what it has decoded
            for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], use_threads=False):
                for value in batch.to_pylist():
                    number += 1
                    yield Raw(number, value)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:  # pyarrow's own errors of broken pages are OSErrors without a number
        if isinstance(error, OSError) and error.errno:
            raise
        raise DatasetError(f"not a readable Parquet file ({one_line(error)}); accepted: a Parquet file", path=name) from None
