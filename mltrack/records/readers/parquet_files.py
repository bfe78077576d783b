"""Parquet files.

Invariant: some rows are held at a time, fewer if they are wide, so memory follows the widest record and the row group,
not the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from mltrack.errors import DatasetError
from mltrack.records.readers.arrow_rows import batch_rows, rows_at_once
from mltrack.records.readers.class_names import Names, named, names_of
from mltrack.records.readers.raw import Raw, check_once, one_line


def parquet_names(stream: BinaryIO) -> tuple[Names, list[str]]:
    """(class names, columns); both empty if the file cannot be read, which `parquet_rows` reports."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(stream)
    except (pa.ArrowException, OSError):
        return {}, []
    return names_of(schema.metadata), list(schema.names)


def parquet_rows(name: str, stream: BinaryIO, names: Names | None = None) -> Iterator[Raw]:
    """One record per row; classes are named by the file, else by `names`; with None they stay numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(stream)
        check_once(name, file.schema_arrow.names)
        classes = {} if names is None else {**names, **names_of(file.schema_arrow.metadata)}
        for group in range(file.num_row_groups):  # one by one: a reader over all groups keeps all that it has decoded
            for batch in file.iter_batches(
                batch_size=_rows_at_once(file, group), row_groups=[group], use_threads=False
            ):
                raws = batch_rows(name, batch, number)
                yield from (named(raw, classes) for raw in raws) if classes else raws
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:  # pyarrow's errors for broken pages are OSErrors without a number
        if isinstance(error, OSError) and error.errno:
            raise
        raise DatasetError(f"is not a readable Parquet file ({one_line(error)})", path=name) from None


def _rows_at_once(file: Any, group: int) -> int:
    """By the group's unpacked size and its first row, since a value shared by all rows is stored only once."""
    about = file.metadata.row_group(group)
    first = next(file.iter_batches(batch_size=1, row_groups=[group], use_threads=False), None)
    return rows_at_once(
        about.num_rows, max(about.total_byte_size, about.num_rows * (0 if first is None else first.nbytes))
    )
