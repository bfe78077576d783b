"""Rows of Arrow batches as plain values.

Invariant: a value that Python cannot hold costs only its row; at most `SLICE_BYTES` of rows, or one row of at most
`MAX_RECORD_BYTES`, are Python objects at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mltrack.errors import DatasetError
from mltrack.records.readers.raw import MAX_RECORD_BYTES, SHOWN_BYTES, Raw, one_line

SLICE_BYTES = 8 << 20
"""Arrow memory that becomes Python objects at once."""

MOST_ROWS, FEWEST_ROWS = 256, 64
"""Rows to request at once: the first if all data fits into a few slices, else at most the second, fewer if wide."""


def rows_at_once(rows: int, size: int) -> int:
    """How many of `rows` rows, with `size` bytes in total, to request at once."""
    if size <= 4 * SLICE_BYTES:
        return MOST_ROWS
    return max(1, min(FEWEST_ROWS, SLICE_BYTES * rows // size))


def batch_rows(name: str, batch: Any, before: int) -> Iterator[Raw]:
    """The rows of a RecordBatch that follows `before` others."""
    size = _size(batch)
    if size > SLICE_BYTES and batch.num_rows > 1:
        half = batch.num_rows // 2
        yield from batch_rows(name, batch.slice(0, half), before)
        yield from batch_rows(name, batch.slice(half), before + half)
    elif size > MAX_RECORD_BYTES:
        yield _too_long(name, batch, before + 1)
    else:
        try:
            values = batch.to_pylist()
        except Exception:  # each type has its own errors: text that is not UTF-8, the year 10000, an unknown time zone
            yield from (_row(name, batch.slice(row, 1), before + row + 1) for row in range(batch.num_rows))
        else:
            yield from (Raw(number, value) for number, value in enumerate(values, before + 1))


def _size(batch: Any) -> int:
    """Bytes of the values; a value shared by several rows counts in each, as much as the longest could be."""
    import pyarrow as pa

    size = int(batch.nbytes)
    for column in batch.columns:
        if isinstance(column, pa.DictionaryArray):
            size += (
                len(column) * column.dictionary.nbytes
                if len(column) > 1
                else column.dictionary_decode().nbytes - column.dictionary.nbytes
            )
    return size


def _row(name: str, row: Any, number: int) -> Raw:
    value: dict[str, Any] = {}
    for column in row.schema.names:
        try:
            value[column] = row.column(column)[0].as_py()
        except Exception as error:
            problem = DatasetError(
                f"has a value that Python cannot hold ({one_line(error)})",
                path=name,
                record=number,
                field=column,
            )
            return Raw(number, problem, json.dumps(value, default=str))
    return Raw(number, value)


def _too_long(name: str, row: Any, number: int) -> Raw:
    sizes = {column: int(row.column(column).nbytes) for column in row.schema.names}
    widest = max(sizes, key=lambda column: sizes[column])
    problem = DatasetError(
        f"has {sizes[widest]:,} of the record's {sum(sizes.values()):,} bytes; a record must have at most"
        f" {MAX_RECORD_BYTES:,}",
        path=name,
        record=number,
        field=widest,
    )
    rest = _row(
        name, row.select([column for column, size in sizes.items() if size <= SHOWN_BYTES // len(sizes)]), number
    )
    return Raw(number, problem, rest.text if rest.text is not None else json.dumps(rest.value, default=str))
