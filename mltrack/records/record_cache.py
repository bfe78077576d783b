"""Records from a reader: a list if they are few, else a table in the cache folder.

Invariant: memory stays below `LIST_BYTES` of text. A named table is complete, without skipped records, and holds
the very state of the files in its name; changed files have another name. A table that cannot be opened is rebuilt."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path

from mltrack.cache import cache_folder
from mltrack.errors import DatasetError
from mltrack.records.record import Record
from mltrack.records.row_cache import remove
from mltrack.records.table import FORMAT_VERSION, RecordTable, write_table

LIST_BYTES = 32 << 20
"""Records with at most this much text are kept in a list."""

RECORD_BYTES = 500
"""Memory of a record in a list besides its text."""

ABANDONED_S = 3600.0
"""A half-written file that has not changed for this long belongs to a dead process."""


def table_name(what: str, state: str) -> str:
    """File name for the table of `what` (paths, reading options) in a `state`; the prefix depends on `what`."""
    return f"records-{_hashed(what)}-{_hashed(state)}-f{FORMAT_VERSION}.arrow"


def kept_table(name: str) -> RecordTable | None:
    """The table that was kept under a name, or None."""
    path = cache_folder() / name
    if not path.exists():
        return None
    try:
        return RecordTable.open(path)
    except DatasetError:
        return None


def gather(
    records: Iterable[Record], name: str | None, *, whole: Callable[[], bool] = lambda: True
) -> list[Record] | RecordTable:
    """All records: a list, or a table if they are many.

    Args:
        records: are read one by one.
        name: the table's name; None: it ends with the process.
        whole: called at the end; whether the table may be kept.

    Raises:
        DatasetError: the table cannot be written.
    """
    held: list[Record] = []
    size = 0
    arriving = iter(records)
    for record in arriving:
        held.append(record)
        size += len(record.text) + len(record.description or "") + RECORD_BYTES
        if size > LIST_BYTES:
            return _spilled(held, arriving, name, whole)
    return held


def _spilled(
    held: list[Record], arriving: Iterable[Record], name: str | None, whole: Callable[[], bool]
) -> RecordTable:
    folder = _folder()
    handle, unfinished = tempfile.mkstemp(dir=folder, prefix=".records-", suffix=".arrow")
    os.close(handle)
    path = Path(unfinished)
    seal = path.with_name(path.name + ".json")
    try:
        table = write_table(path, chain(held, arriving))
        if name is None or not whole():
            return table  # a mapped file stays readable after its name is deleted
        kept = folder / name
        for old in folder.glob(f"{name.rpartition('-f')[0].rpartition('-')[0]}-*"):  # of another state of the files
            remove(old)
        path.replace(kept)
        seal.replace(kept.with_name(kept.name + ".json"))
        table.path = kept
        return table
    except OSError as error:
        raise DatasetError(
            f"the records cannot be written there: {error.strerror or error}; free some space, or set"
            " MLTRACK_CACHE_DIR to another folder",
            path=folder,
        ) from None
    finally:
        remove(path)
        remove(seal)


def _folder() -> Path:
    """The cache folder, or the system's temporary folder; leftovers of killed processes are deleted."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir())
    if not os.access(folder, os.W_OK):
        return Path(tempfile.gettempdir())
    for left in folder.glob(".records-*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_S:
                left.unlink()
    return folder


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
