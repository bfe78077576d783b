"""Token ids of records, made once: kept in a file that is mapped into memory, so that neither a start nor an epoch
copies them.

Invariant: rows that come from the cache are those that the encoder would make now. A file's name is a digest of all
that decides its content (the records' contents in their order, the tokenizer, `max_length`, the task, the truncation,
the format); it is written under another name, synced and renamed; its checksum is read whole before it is used, and a
damaged one is made anew. Of several processes that need the same file one makes it while the others wait; the lock dies
with its holder. All files together stay within `MOST_BYTES`: the ones that were used longest ago go first.

File: ids (uint16 or uint32), then lengths, num_prompt, uncut (int32, aligned to 8 bytes), then a JSON footer, and last
its CRC-32, its size, MAGIC."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mltrack.cache import cache_folder, is_locked, locked
from mltrack.data.encoding import EncodedRows, Encoder, Progress
from mltrack.records.record import Record
from mltrack.records.row_cache import written_whole
from mltrack.records.table import keys_of

FORMAT_VERSION = 1
FEWEST_RECORDS = 2000
"""Smaller data sets are tokenized in a second; they get no file."""
MOST_BYTES = 4 * 2**30
"""Of all files of token ids in the cache folder."""

_MAGIC = b"mltktok1"
_TAIL = struct.Struct("<II8s")  # CRC-32 and size of the footer
_COLUMNS = ("lengths", "num_prompt", "uncut")
_BLOCK = 1 << 20
log = logging.getLogger("mltrack.data")


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The token ids of some records."""

    ids: np.ndarray
    """uint16 or uint32 [all tokens], read-only where they are mapped from a file."""
    starts: np.ndarray
    """Where each row begins in `ids`, int64 [rows]."""
    lengths: np.ndarray
    """int32 [rows]."""
    num_prompt: np.ndarray
    """Leading tokens that are no target, int32 [rows]."""
    uncut: np.ndarray
    """Tokens before `max_length` was applied, int32 [rows]."""
    marks: np.ndarray | None = None
    """For each token the number of its word, uint32 [all tokens]."""
    path: Path | None = None
    """The file that `ids` are mapped from."""

    def row(self, index: int) -> np.ndarray:
        """A copy of one row, int64 [its length]."""
        start = int(self.starts[index])
        return self.ids[start : start + int(self.lengths[index])].astype(np.int64)

    def marks_of(self, index: int) -> np.ndarray:
        """For each token of a row the number of its word, from 1; 0 for none: int64 [its length]."""
        if self.marks is None:
            raise ValueError("the task's encoding marks no words")
        start = int(self.starts[index])
        return self.marks[start : start + int(self.lengths[index])].astype(np.int64)

    def select(self, indices: np.ndarray) -> TokenRows:
        """Some of the rows; the ids are shared."""
        return replace(self, starts=self.starts[indices], **{name: getattr(self, name)[indices] for name in _COLUMNS})

    def __getstate__(self) -> dict[str, Any]:
        """A worker process maps the file again instead of getting a copy."""
        state = dict(self.__dict__)
        if self.path is not None and self.path.exists():
            state["ids"] = (self.ids.dtype.str, len(self.ids))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.ids, tuple):
            dtype, count = self.ids
            assert self.path is not None
            self.__dict__["ids"] = np.frombuffer(_mapped(self.path), dtype=dtype, count=count)


def token_rows(
    records: Sequence[Record], encoder: Encoder, *, cache: bool = True, progress: Progress | None = None
) -> TokenRows:
    """The rows of these records, from the cache where they are there.

    Args:
        cache: False makes them and keeps no file.
        progress: called while they are made, unless they are few.

    Raises:
        DatasetError: the tokenizer makes no token of a record.
    """
    if len(records) < FEWEST_RECORDS:
        return _in_memory(encoder.rows(records), encoder)
    if not cache or encoder.marks_words:
        return _in_memory(encoder.rows(records, progress), encoder)
    key = {"format_version": FORMAT_VERSION, "contents": _ordered_digest(records), **encoder.facts()}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_folder() / f"tokens-{name}.bin"
    found = _read(path, key)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_file = path.with_suffix(".lock").open("ab")
    except OSError as error:
        warnings.warn(
            f"{path.parent}: cannot be written ({error.strerror}), so token ids are made each time and held in memory",
            stacklevel=2,
        )
        return _in_memory(encoder.rows(records, progress), encoder)
    with lock_file, locked(lock_file.fileno()):
        found = _read(path, key)  # another process may have made it while this one waited
        if found is None:
            found = _made(path, key, records, encoder, progress)
    return found


def _made(
    path: Path, key: dict[str, Any], records: Sequence[Record], encoder: Encoder, progress: Progress | None
) -> TokenRows:
    for left in path.parent.glob(f".{path.stem}.*"):  # of a builder that was killed: it would hold the lock
        left.unlink(missing_ok=True)
    try:
        _write(path, key, encoder.rows(records, progress), _dtype(encoder))
    except OSError as error:
        warnings.warn(f"{path}: not kept ({error.strerror}); token ids are held in memory", stacklevel=3)
        return _in_memory(encoder.rows(records, progress), encoder)
    _make_room(path)
    found = _read(path, key)
    return found if found is not None else _in_memory(encoder.rows(records, progress), encoder)


def _in_memory(parts: Iterable[EncodedRows], encoder: Encoder) -> TokenRows:
    made = list(parts)
    dtype = _dtype(encoder) if made else np.dtype("<u2")
    lengths, num_prompt, uncut = (
        np.concatenate([getattr(part, name) for part in made] or [np.empty(0, np.int32)]) for name in _COLUMNS
    )
    ids = np.concatenate([part.ids.astype(dtype) for part in made] or [np.empty(0, dtype)])
    marks = np.concatenate([part.marks for part in made if part.marks is not None]) if encoder.marks_words else None
    return TokenRows(ids, _starts(lengths), lengths, num_prompt, uncut, marks)


def _dtype(encoder: Encoder) -> np.dtype[Any]:
    return np.dtype("<u2") if encoder.largest_id() < 1 << 16 else np.dtype("<u4")


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths, dtype=np.int64) - lengths


def _ordered_digest(records: Sequence[Record]) -> str:
    """sha256 (hex) of the contents in their order, 16 bytes a record."""
    return hashlib.sha256(keys_of(records).tobytes()).hexdigest()


def _write(path: Path, key: dict[str, Any], parts: Iterable[EncodedRows], dtype: np.dtype[Any]) -> None:
    """Write the file in one pass; whatever ends it, no half file is left under `path`."""
    with written_whole(path) as stream:
        columns: list[list[np.ndarray]] = [[], [], []]
        checksum = num_tokens = 0
        for part in parts:
            checksum = _append(stream, part.ids.astype(dtype).tobytes(), checksum)
            num_tokens += len(part.ids)
            for column, name in zip(columns, _COLUMNS, strict=True):
                column.append(getattr(part, name).astype("<i4"))
        checksum = _append(stream, bytes(-stream.tell() % 8), checksum)
        for column in columns:
            checksum = _append(stream, np.concatenate(column).tobytes(), checksum)
        num_rows = sum(map(len, columns[0]))
        footer = json.dumps(
            {
                "key": key,
                "dtype": dtype.str,
                "tokens": num_tokens,
                "rows": num_rows,
                "bytes": stream.tell(),
                "crc32": checksum,
            }
        ).encode()
        stream.write(footer + _TAIL.pack(zlib.crc32(footer), len(footer), _MAGIC))


def _append(stream: BinaryIO, data: bytes, checksum: int) -> int:
    stream.write(data)
    return zlib.crc32(data, checksum)


def _read(path: Path, key: dict[str, Any]) -> TokenRows | None:
    """The rows of a whole and undamaged file; None where there is none."""
    try:
        with path.open("rb") as stream:
            footer = _checked_footer(stream, key)
        if footer is None:
            log.warning("%s is damaged and is made anew", path)
            return None
        held = _mapped(path)
        with contextlib.suppress(OSError):
            os.utime(path)
    except OSError:
        return None
    ids = np.frombuffer(held, dtype=footer["dtype"], count=footer["tokens"])
    first, rows = ids.nbytes + -ids.nbytes % 8, footer["rows"]
    lengths, num_prompt, uncut = (
        np.frombuffer(held, dtype="<i4", count=rows, offset=first + 4 * rows * number)
        for number in range(len(_COLUMNS))
    )
    return TokenRows(ids, _starts(lengths), lengths, num_prompt, uncut, path=path)


def _checked_footer(stream: BinaryIO, key: dict[str, Any]) -> dict[str, Any] | None:
    """What stands at the file's end, once every byte of the file is known to be as it was written.

    The file is read, not mapped: its pages then do not count as this process's memory.
    """
    size = stream.seek(0, os.SEEK_END)
    if size < _TAIL.size:
        return None
    stream.seek(size - _TAIL.size)
    checksum, length, magic = _TAIL.unpack(stream.read(_TAIL.size))
    if magic != _MAGIC or length > size - _TAIL.size:
        return None
    stream.seek(size - _TAIL.size - length)
    text = stream.read(length)
    if zlib.crc32(text) != checksum:
        return None
    footer: dict[str, Any] = json.loads(text)
    if footer["key"] != key or footer["bytes"] != size - _TAIL.size - length:
        return None
    stream.seek(0)
    found = 0
    for block in _blocks(stream, footer["bytes"]):
        found = zlib.crc32(block, found)
    return footer if found == footer["crc32"] else None


def _blocks(stream: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    while num_bytes:
        block = stream.read(min(_BLOCK, num_bytes))
        if not block:
            return
        num_bytes -= len(block)
        yield block


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _make_room(kept: Path) -> None:
    """Remove what killed builders left, and the files that were used longest ago until all are within `MOST_BYTES`; a
    mapped one stays readable.
    """
    for left in kept.parent.glob(".tokens-*"):
        if not is_locked(kept.parent / f"{left.stem.removeprefix('.')}.lock"):
            left.unlink(missing_ok=True)
    held = []
    for path in kept.parent.glob("tokens-*.bin"):
        with contextlib.suppress(OSError):  # another process makes room too
            found = path.stat()
            held.append((path == kept, found.st_mtime_ns, found.st_size, path))
    held.sort(key=lambda one: (not one[0], -one[1]))  # the new one first, then the newest
    total = 0
    for is_new, _, size, path in held:
        total += size
        if total > MOST_BYTES and not is_new:
            with contextlib.suppress(OSError):
                path.unlink()
                path.with_suffix(".lock").unlink()
