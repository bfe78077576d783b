"""Records in a memory-mapped Arrow file: as many as the disk holds, at the memory of one.

Invariant: a table that can be opened is, byte for byte, what was written: its checksum stands in the file beside it,
written last. The file is an Arrow stream, as `datasets.Dataset.from_file` reads it.

    with TableWriter(path) as writer:
        for record in records:
            writer.add(record)
    table = RecordTable.open(path)
    table[3].text, len(table.select(np.array([5, 2]))), table.digest

What takes records takes a plain list of them too; `select`, `labels_of`, `files_of`, `keys_of` and `digest_of` serve
both."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np

from mltrack.errors import DatasetError
from mltrack.records.record import Record

FORMAT_VERSION = 1
"""Of the file; another one is not opened."""

_BATCH_ROWS = 4096
_BATCH_BYTES = 8 << 20
_CHECKED_BYTES = 1 << 20
_KEY_BYTES = 32
_COLUMNS = ("text", "label", "description", "file", "number", "extra", "key")


class RecordTable(Sequence[Record]):
    """Records that lie in a file; one is made each time it is asked for.

    Made by `open`; pickled as the path and the selection, so worker processes map the same file (as a list of records
    where the file has no name any more)."""

    def __init__(
        self, path: Path, batches: Sequence[_Batch], selection: np.ndarray | None = None, digest: str | None = None
    ):
        self.path = path
        self._sealed_digest = digest
        self._batches = batches
        self._starts = [0, *accumulate(len(batch) for batch in batches)]
        self._selection = selection

    @classmethod
    def open(cls, path: str | Path) -> RecordTable:
        """The table that a `TableWriter` wrote there.

        Raises:
            DatasetError: there is none, it is not whole, or it is of another format version.
        """
        path = Path(path)
        try:
            seal = json.loads(_seal_of(path).read_text(encoding="utf-8"))
            # before Arrow looks at it: a wrong length in its own headers would be a read beyond the end of the file
            whole = (seal["format_version"], seal["bytes"], seal["adler32"]) == (
                FORMAT_VERSION,
                path.stat().st_size,
                _checksum(path),
            )
            batches = list(_mapped(path)) if whole else []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, " ".join(str(error).split())[:120]) from None
        if not whole:
            raise _damaged(path, "it is not as it was written")
        return cls(path, batches, digest=seal["digest"])

    def __len__(self) -> int:
        return self._starts[-1] if self._selection is None else len(self._selection)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> Record | RecordTable:
        chosen = range(len(self))[index]
        return (
            self.select(np.arange(chosen.start, chosen.stop, chosen.step))
            if isinstance(chosen, range)
            else self._record(chosen)
        )

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopened, (self.path, self._selection)) if self.path.exists() else (list, (list(self),))

    def select(self, indices: np.ndarray | Sequence[int]) -> RecordTable:
        """The records at these positions, in this order; nothing is copied."""
        chosen = np.asarray(indices, dtype=np.int64)
        return RecordTable(self.path, self._batches, chosen if self._selection is None else self._selection[chosen])

    @cached_property
    def labels(self) -> np.ndarray:
        """The label of each record, or None: objects [N]; equal labels are one object."""
        words: dict[str | None, str | None] = {}
        found = np.array(
            [words.setdefault(label, label) for batch in self._batches for label in batch.labels()], dtype=object
        )
        return found if self._selection is None else found[self._selection]

    @cached_property
    def files(self) -> list[str]:
        """The files that the records come from, in the order of their first records."""
        names: dict[str | None, str | None] = {}
        found = np.array(
            [names.setdefault(name, name) for batch in self._batches for name in batch.files()], dtype=object
        )
        return list(dict.fromkeys(found if self._selection is None else found[self._selection]))

    @cached_property
    def content_keys(self) -> np.ndarray:
        """The first 16 bytes of each record's content key: V16 [N]. Records with the same key are duplicates."""
        return np.ascontiguousarray(self._whole_keys()[:, :16]).view("V16")[:, 0]

    @cached_property
    def digest(self) -> str:
        """What `content_digest` gives for these records; kept beside the file for the whole table."""
        return self._sealed_digest or _digest(self._whole_keys(), self.labels)

    def _whole_keys(self) -> np.ndarray:
        keys = np.concatenate([np.zeros((0, _KEY_BYTES), np.uint8), *(batch.keys() for batch in self._batches)])
        return keys if self._selection is None else keys[self._selection]

    def _record(self, index: int) -> Record:
        row = index if self._selection is None else int(self._selection[index])
        where = bisect_right(self._starts, row) - 1
        return self._batches[where].record(row - self._starts[where])


class TableWriter:
    """Writes records into a new file; leaving the `with` block without an error makes it a table."""

    def __init__(self, path: str | Path):
        import pyarrow as pa

        self.path = Path(path)
        text, number, key = pa.string(), pa.int64(), pa.binary(_KEY_BYTES)
        self._schema = pa.schema(list(zip(_COLUMNS, (text, text, text, text, number, text, key), strict=True)))
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0
        self._sink = self.path.open("wb")
        self._stream = pa.ipc.new_stream(self._sink, self._schema)

    def add(self, record: Record) -> None:
        """Append a record."""
        extra = json.dumps(record.extra) if record.extra else None
        key = bytes.fromhex(record.content_key)
        self._rows.append((record.text, record.label, record.description, record.file, record.number, extra, key))
        self._bytes += 4 * (len(record.text) + len(record.description or "") + len(extra or ""))
        if len(self._rows) >= _BATCH_ROWS or self._bytes >= _BATCH_BYTES:
            self._flush()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._stream.close()
        self._sink.flush()
        os.fsync(self._sink.fileno())
        self._sink.close()
        if kind is None:
            self._write_seal()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._rows:
            return
        columns = dict(zip(_COLUMNS, zip(*self._rows, strict=True), strict=True))
        arrays = [_text_array(columns[name]) for name in _COLUMNS[:-3]]
        numbers = np.array(columns["number"], dtype=np.int64)
        arrays.append(pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)]))
        arrays.append(_text_array(columns["extra"]))
        arrays.append(
            pa.Array.from_buffers(pa.binary(_KEY_BYTES), len(numbers), [None, pa.py_buffer(b"".join(columns["key"]))])
        )
        self._stream.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._rows, self._bytes = [], 0

    def _write_seal(self) -> None:
        table = RecordTable(self.path, list(_mapped(self.path)))
        seal = {
            "format_version": FORMAT_VERSION,
            "bytes": self.path.stat().st_size,
            "records": len(table),
            "adler32": _checksum(self.path),
            "digest": table.digest,
        }
        _seal_of(self.path).write_text(json.dumps(seal), encoding="utf-8")


def _text_array(values: Sequence[str | None]) -> Any:
    """A column of texts, made of its buffers: `pa.array` would import pandas, which takes longer than the whole
    table.
    """
    import pyarrow as pa

    encoded = [(value or "").encode() for value in values]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in encoded])]).astype(np.int32)
    there = np.array([value is not None for value in values])
    bitmap = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
    return pa.Array.from_buffers(
        pa.string(), len(encoded), [bitmap, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    )


class _Batch:
    """The columns of some thousand rows as views of the mapped file."""

    def __init__(self, batch: Any):
        self._batch = batch
        columns = dict(zip(_COLUMNS, batch.columns, strict=True))
        self._texts = {name: _texts(columns[name]) for name in ("text", "label", "description", "file", "extra")}
        self._numbers = memoryview(columns["number"].buffers()[1]).cast("B").cast("q")
        self._keys = memoryview(columns["key"].buffers()[1]).cast("B")

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def record(self, row: int) -> Record:
        """The record of a row."""
        text, label, description, file, extra = (column[row] for column in self._texts.values())
        return Record(
            text or "", label, description, file or "", self._numbers[row], json.loads(extra) if extra else {}
        )

    def labels(self) -> list[str | None]:
        column = self._batch.column(1)
        if column.null_count:
            return list(column.to_pylist())
        coded = column.dictionary_encode()  # a word is made once, not once a row
        words: list[str | None] = coded.dictionary.to_pylist()
        return [words[code] for code in memoryview(coded.indices.buffers()[1]).cast("B").cast("i")[: len(column)]]

    def files(self) -> list[str | None]:
        found: list[str | None] = self._batch.column(3).to_pylist()
        return found

    def keys(self) -> np.ndarray:
        return np.frombuffer(self._keys, np.uint8, len(self) * _KEY_BYTES).reshape(-1, _KEY_BYTES)


class _Texts:
    """A column of texts, each decoded when it is asked for."""

    def __init__(self, column: Any):
        _, offsets, data = column.buffers()
        self._offsets = memoryview(offsets).cast("B").cast("i")
        self._data = memoryview(data if data is not None else b"")

    def __getitem__(self, row: int) -> str:
        return str(self._data[self._offsets[row] : self._offsets[row + 1]], "utf-8")


class _Nones:
    """A column without values."""

    def __getitem__(self, row: int) -> None:
        return None


class _Mixed:
    """A column in which some rows have no value."""

    def __init__(self, column: Any):
        self._column = column

    def __getitem__(self, row: int) -> str | None:
        value: str | None = self._column[row].as_py()
        return value


def _texts(column: Any) -> _Texts | _Nones | _Mixed:
    if column.null_count == 0:
        return _Texts(column)
    return _Nones() if column.null_count == len(column) else _Mixed(column)


def _mapped(path: Path) -> Iterator[_Batch]:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
        for batch in stream:
            yield _Batch(batch)


def _reopened(path: Path, selection: np.ndarray | None) -> RecordTable:
    table = RecordTable.open(path)
    return table if selection is None else table.select(selection)


def _seal_of(path: Path) -> Path:
    """Written last: how large the table is, what is in it."""
    return path.with_name(path.name + ".json")


def _checksum(path: Path) -> int:
    """Adler-32 of a file: 3 GB/s here, where CRC-32 has 2; no single wrong byte escapes it."""
    total, block = 1, bytearray(_CHECKED_BYTES)
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(block):
            total = zlib.adler32(memoryview(block)[:size], total)
    return total


def _damaged(path: Path, problem: str) -> DatasetError:
    return DatasetError(f"no whole table of records ({problem}); accepted: one that mltrack wrote", path=path)


def _digest(keys: np.ndarray, labels: np.ndarray) -> str:
    """`content_digest` from the keys, uint8 [N, 32], and labels: the lines "key, NUL, label" in their order, hashed."""
    words = np.array([label or "" for label in labels], dtype=object)
    first = np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0].astype(np.uint64)
    order = np.argsort(first, kind="stable")
    # keys that begin alike are copies almost always: only those need the rest of the key, and the label
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
    """The records at these positions: of a table a table, of a list a list."""
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
    """What `content_digest` gives, without a copy of the records' keys as text."""
    return records.digest if isinstance(records, RecordTable) else _digest(_listed_keys(records), labels_of(records))


def _listed_keys(records: Sequence[Record]) -> np.ndarray:
    joined = b"".join(bytes.fromhex(record.content_key) for record in records)
    return np.frombuffer(joined, np.uint8).reshape(-1, _KEY_BYTES)
