"""Parquet files.

Invariant: some rows are held at a time, fewer where they are wide, so memory follows the widest record and the row
group, not the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from mltrack.errors import DatasetError
from mltrack.records.readers.arrow_rows import batch_rows, rows_at_once
from mltrack.records.readers.class_names import Names, named, names_of
from mltrack.records.readers.raw import Raw, check_once, one_line


def parquet_names(stream: BinaryIO) -> tuple[Names, list[str]]:
    """(class names, columns); both empty of a file that is not readable, whose rows say so."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(stream)
    except (pa.ArrowException, OSError):
        return {}, []
    return names_of(schema.metadata), list(schema.names)


def parquet_rows(name: str, stream: BinaryIO, names: Names | None = None) -> Iterator[Raw]:
    """A record a row; a class by its name, where the file says it, else by `names`, or nowhere where these are None."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        file = pq.ParquetFile(stream)
        check_once(name, file.schema_arrow.names)
        classes = {} if names is None else {**names, **names_of(file.schema_arrow.metadata)}
        for group in range(file.num_row_groups):  # one by one: a reader over all of them keeps what it has decoded
            for batch in file.iter_batches(
                batch_size=_rows_at_once(file, group), row_groups=[group], use_threads=False
            ):
                raws = batch_rows(name, batch, number)
                yield from (named(raw, classes) for raw in raws) if classes else raws
                number += batch.num_rows
    except (pa.ArrowException, OSError) as error:  # pyarrow's own errors of broken pages are OSErrors without a number
        if isinstance(error, OSError) and error.errno:
            raise
        raise DatasetError(
            f"not a readable Parquet file ({one_line(error)}); accepted: a Parquet file", path=name
        ) from None


def _rows_at_once(file: Any, group: int) -> int:
    """Told by the group's size when unpacked, and by its first row: a value that stands in every row is in the file
    once.
    """
    about = file.metadata.row_group(group)
    first = next(file.iter_batches(batch_size=1, row_groups=[group], use_threads=False), None)
    return rows_at_once(
        about.num_rows, max(about.total_byte_size, about.num_rows * (0 if first is None else first.nbytes))
    )
