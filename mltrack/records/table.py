"""Records in a memory-mapped Arrow file: as many as the disk holds, with one in memory.

Invariant: a table that can be opened is, byte for byte, the one written: its checksum is in the file beside it, which
is written last. The file is an Arrow stream, as `datasets.Dataset.from_file` reads it.

    table = write_table(path, records)
    table[3].text, len(table.select(np.array([5, 2]))), table.digest

Functions that take records also take a plain list; `select`, `labels_of`, `files_of`, `keys_of` and `digest_of` serve
both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from mltrack.errors import DatasetError
from mltrack.records.record import Record
from mltrack.records.row_cache import checksum

FORMAT_VERSION = 2
"""Version of the file; other versions are not opened."""

_BATCH_ROWS = 4096
_BATCH_BYTES = 8 << 20
_KEY_BYTES = 32
_PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)


class RecordTable(Sequence[Record]):
    """Records in a file, each created on access.

    Created by `write_table` and `open`; pickled as the path and the selection, so worker processes map the same file
    (or as a list of records, if the file has been deleted)."""

    def __init__(self, path: Path, rows: Any, selection: np.ndarray | None = None, digest: str | None = None):
        self.path = path
        self._rows = rows
        self._columns = rows.columns[:-1]
        self._selection = selection
        self._sealed_digest = digest

    @classmethod
    def open(cls, path: str | Path) -> RecordTable:
        """The table that `write_table` wrote there.

        Raises:
            DatasetError: it is missing or incomplete, or has another format version.
        """
        path = Path(path)
        try:
            seal = json.loads(_seal_of(path).read_text(encoding="utf-8"))
            # before Arrow reads it: a wrong length in its headers would read beyond the end of the file
            if (seal["format_version"], seal["checksum"]) != (FORMAT_VERSION, checksum(path)):
                raise ValueError("it is not as it was written")
            return cls(path, _mapped(path), digest=seal["digest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = " ".join(str(error).split())[:120]
            raise DatasetError(f"is not a whole table of records that mltrack wrote ({problem})", path=path) from None

    def __len__(self) -> int:
        return int(self._rows.num_rows) if self._selection is None else len(self._selection)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> Record | RecordTable:
        chosen = range(len(self))[index]
        return self.select(np.array(chosen, dtype=np.int64)) if isinstance(chosen, range) else self._record(chosen)

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (self.path, self._selection)) if self.path.exists() else (list, (list(self),))

    def select(self, indices: np.ndarray | Sequence[int]) -> RecordTable:
        """The records at these positions, in this order; nothing is copied."""
        chosen = np.asarray(indices, dtype=np.int64)
        return RecordTable(self.path, self._rows, chosen if self._selection is None else self._selection[chosen])

    @cached_property
    def labels(self) -> np.ndarray:
        """The label of each record, or None: objects [N]; equal labels are one object."""
        return self._words("label")

    @cached_property
    def files(self) -> list[str]:
        """The files that the records come from, in the order of their first records."""
        return list(dict.fromkeys(self._words("file")))

    @cached_property
    def content_keys(self) -> np.ndarray:
        """The first 16 bytes of each record's content key: V16 [N]. Records with the same key are duplicates."""
        return np.ascontiguousarray(self._keys()[:, :16]).view("V16")[:, 0]

    @cached_property
    def digest(self) -> str:
        """The `content_digest` of these records; for the whole table it is kept beside the file."""
        return self._sealed_digest or _digest(self._keys(), self.labels)

    def _keys(self) -> np.ndarray:
        """uint8 [N, 32]."""
        chunks = [np.frombuffer(chunk.buffers()[1], np.uint8) for chunk in self._rows.column("key").chunks]
        return self._selected(np.concatenate([np.zeros(0, np.uint8), *chunks]).reshape(-1, _KEY_BYTES))

    def _words(self, name: str) -> np.ndarray:
        """A column with many equal texts: objects [N]."""
        words: dict[str | None, str | None] = {}
        chunks = self._rows.column(name).chunks
        return self._selected(
            np.array([words.setdefault(word, word) for chunk in chunks for word in chunk.to_pylist()], dtype=object)
        )

    def _selected(self, values: np.ndarray) -> np.ndarray:
        return values if self._selection is None else values[self._selection]

    def _record(self, index: int) -> Record:
        row = index if self._selection is None else int(self._selection[index])
        text, label, description, file, number, extra = (column[row].as_py() for column in self._columns)
        return Record(text, label, description, file, number, json.loads(extra) if extra else {})


def write_table(path: Path, records: Iterable[Record]) -> RecordTable:
    """Write the records one by one into a new file."""
    import pyarrow as pa

    names = ("text", "label", "description", "file", "number", "extra", "key")
    kinds = (*[pa.string()] * 4, pa.int64(), pa.string(), pa.binary(_KEY_BYTES))
    schema = pa.schema(list(zip(names, kinds, strict=True)))
    with path.open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for rows in _batches(records):
            arrays = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)]
            stream.write_batch(pa.record_batch(arrays, schema=schema))
    table = RecordTable(path, _mapped(path))
    seal = {"format_version": FORMAT_VERSION, "checksum": checksum(path), "digest": table.digest}
    _seal_of(path).write_text(json.dumps(seal), encoding="utf-8")
    return table


def _batches(records: Iterable[Record]) -> Iterator[list[tuple[Any, ...]]]:
    """Rows of the file, some thousand at a time."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    for record in records:
        extra = json.dumps(record.extra) if record.extra else None
        key = bytes.fromhex(record.content_key)
        rows.append((record.text, record.label, record.description, record.file, record.number, extra, key))
        size += 4 * (len(record.text) + len(record.description or "") + len(extra or ""))
        if len(rows) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _mapped(path: Path) -> Any:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
        return stream.read_all()


def _reopened(path: Path, selection: np.ndarray | None) -> RecordTable:
    table = RecordTable.open(path)
    return table if selection is None else table.select(selection)


def _seal_of(path: Path) -> Path:
    """Written last: the table's checksum and what is in it."""
    return path.with_name(path.name + ".json")


def _digest(keys: np.ndarray, labels: np.ndarray) -> str:
    """`content_digest` from the keys, uint8 [N, 32], and labels: the lines "key, NUL, label" in their order, hashed."""
    words = np.array([label or "" for label in labels], dtype=object)
    first = np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0].astype(np.uint64)
    order = np.argsort(first, kind="stable")
    # keys with the same beginning are nearly always copies: only those need the rest of the key, and the label
    same = first[order][1:] == first[order][:-1]
    tied = (
        np.flatnonzero(np.concatenate([same, [False]]) | np.concatenate([[False], same]))
        if len(order)
        else np.zeros(0, int)
    )
    order[tied] = sorted(order[tied], key=lambda row: (keys[row].tobytes(), words[row]))
    digest = hashlib.sha256()
    for start in range(0, len(order), _BATCH_ROWS):
        lines = (f"{keys[row].tobytes().hex()}\0{words[row]}" for row in order[start : start + _BATCH_ROWS])
        digest.update((("\n" if start else "") + "\n".join(lines)).encode())
    return digest.hexdigest()


def select(records: Sequence[Record], indices: np.ndarray | Sequence[int]) -> Sequence[Record]:
    """The records at these positions: a table from a table, a list from a list."""
    return records.select(indices) if isinstance(records, RecordTable) else [records[int(index)] for index in indices]


def labels_of(records: Sequence[Record]) -> np.ndarray:
    """The label of each record, or None: objects [N]."""
    return (
        records.labels
        if isinstance(records, RecordTable)
        else np.array([record.label for record in records], dtype=object)
    )


def files_of(records: Sequence[Record]) -> list[str]:
    """The files that the records come from, in the order of their first records."""
    return records.files if isinstance(records, RecordTable) else list(dict.fromkeys(record.file for record in records))


def keys_of(records: Sequence[Record]) -> np.ndarray:
    """The first 16 bytes of each record's content key: V16 [N]."""
    return (
        records.content_keys
        if isinstance(records, RecordTable)
        else _listed_keys(records)[:, :16].copy().view("V16")[:, 0]
    )


def digest_of(records: Sequence[Record]) -> str:
    """The `content_digest`, without a copy of the records' keys as text."""
    return records.digest if isinstance(records, RecordTable) else _digest(_listed_keys(records), labels_of(records))


def _listed_keys(records: Sequence[Record]) -> np.ndarray:
    joined = b"".join(bytes.fromhex(record.content_key) for record in records)
    return np.frombuffer(joined, np.uint8).reshape(-1, _KEY_BYTES)


def percentiles(values: Sequence[int] | np.ndarray) -> dict[str, int]:
    """Some percentiles by name, min and max included; each is one of the values."""
    found = np.percentile(np.asarray(values), _PERCENTILES, method="higher")
    return {
        "min" if p == 0 else "max" if p == 100 else f"p{p}": int(value)
        for p, value in zip(_PERCENTILES, found, strict=True)
    }
