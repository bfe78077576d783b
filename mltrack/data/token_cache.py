"""Cache of the token ids of records, in files mapped into memory, so neither a start nor an epoch copies them.

Invariant: cached rows equal those that the encoder would make now. A folder's name is a digest of all that decides its
content (the records' contents in order, the tokenizer, `max_length`, the task, the truncation, the format). It is
written under another name and renamed; its checksums are verified before use, and a damaged one is rebuilt. If several
processes need the same folder, one makes it while the others wait; the lock ends with its process. All folders together
stay within `MOST_BYTES`; the least recently used ones are deleted first.

Folder: ids.npy (uint16 or uint32), lengths.npy, num_prompt.npy, full_lengths.npy (int32), marks.npy (uint32) if the
task marks words, and checksums.json."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mltrack.cache import cache_folder, is_locked
from mltrack.data.encoding import EncodedRows, Encoder, Progress
from mltrack.records.record import Record
from mltrack.records.row_cache import checksum, num_bytes, only_builder, remove
from mltrack.records.table import keys_of

FORMAT_VERSION = 2
FEWEST_RECORDS = 2000
"""Smaller data sets are tokenized quickly and not cached."""
MOST_BYTES = 4 * 2**30
"""Limit of all token ids in the cache folder."""

_COLUMNS = ("lengths", "num_prompt", "full_lengths")
_CHECKSUMS = "checksums.json"
log = logging.getLogger("mltrack.data")


@dataclass(frozen=True, eq=False)
class TokenRows:
    """The token ids of some records."""

    ids: np.ndarray
    """uint16 or uint32 [all tokens], read-only if mapped from a file."""
    starts: np.ndarray
    """Start of each row in `ids`, int64 [rows]."""
    lengths: np.ndarray
    """int32 [rows]."""
    num_prompt: np.ndarray
    """Leading tokens that are not targets, int32 [rows]."""
    full_lengths: np.ndarray
    """Tokens before truncation, int32 [rows]."""
    marks: np.ndarray | None = None
    """The word number of each token, uint32 [all tokens]."""
    path: Path | None = None
    """The folder that `ids` are mapped from."""

    def row(self, index: int) -> np.ndarray:
        """A copy of one row, int64 [its length]."""
        start = int(self.starts[index])
        return self.ids[start : start + int(self.lengths[index])].astype(np.int64)

    def marks_of(self, index: int) -> np.ndarray:
        """The word number of each token of a row, from 1; 0 for none: int64 [its length]."""
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
            del state["ids"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.path is not None and "ids" not in state:
            self.__dict__["ids"] = _mapped(self.path, "ids")


def token_rows(
    records: Sequence[Record], encoder: Encoder, *, cache: bool = True, progress: Progress | None = None
) -> TokenRows:
    """The rows of these records, from the cache if possible.

    Args:
        cache: False neither reads nor writes files.
        progress: called during tokenization, unless the records are few.

    Raises:
        DatasetError: the tokenizer makes no token of a record.
    """
    few = len(records) < FEWEST_RECORDS
    dtype = np.dtype("<u2") if encoder.largest_id() < 1 << 16 else np.dtype("<u4")

    def parts() -> Iterable[EncodedRows]:
        return encoder.rows(records, None if few else progress)

    if few or not cache:
        return _in_memory(parts(), dtype)
    key = {"format_version": FORMAT_VERSION, "contents": _ordered_digest(records), **encoder.facts()}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    folder = cache_folder() / f"tokens-{name}"
    found = _read(folder)
    if found is None:
        with only_builder(folder):
            found = _read(folder) or _made(folder, parts, dtype)
    return found


def _made(folder: Path, parts: Callable[[], Iterable[EncodedRows]], dtype: np.dtype[Any]) -> TokenRows:
    for left in folder.parent.glob(f".{folder.name}.*"):  # of a killed builder: a living one would hold the lock
        remove(left)
    try:
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            _write(unfinished, parts(), dtype)
            remove(folder)  # a damaged one
            unfinished.replace(folder)
        finally:
            remove(unfinished)
    except OSError as error:
        warnings.warn(
            f"{folder}: token ids are not kept ({error.strerror}) but held in memory; set MLTRACK_CACHE_DIR to a folder"
            " that can be written",
            stacklevel=3,
        )
        return _in_memory(parts(), dtype)
    _free_space(folder)
    return _read(folder) or _in_memory(parts(), dtype)


def _in_memory(parts: Iterable[EncodedRows], dtype: np.dtype[Any]) -> TokenRows:
    made = list(parts)
    lengths, num_prompt, full_lengths = (
        np.concatenate([getattr(part, name) for part in made] or [np.empty(0, np.int32)]) for name in _COLUMNS
    )
    ids = np.concatenate([part.ids.astype(dtype) for part in made] or [np.empty(0, dtype)])
    marks = [part.marks for part in made if part.marks is not None]
    return TokenRows(ids, _starts(lengths), lengths, num_prompt, full_lengths, np.concatenate(marks) if marks else None)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths, dtype=np.int64) - lengths


def _ordered_digest(records: Sequence[Record]) -> str:
    """sha256 (hex) of the contents in order, 16 bytes per record."""
    return hashlib.sha256(keys_of(records).tobytes()).hexdigest()


def _write(folder: Path, parts: Iterable[EncodedRows], dtype: np.dtype[Any]) -> None:
    """Write the folder's files in one pass over the parts."""
    columns: list[tuple[np.ndarray, ...]] = []
    marks: list[np.ndarray] = []

    def ids() -> Iterable[np.ndarray]:
        for part in parts:
            columns.append((part.lengths, part.num_prompt, part.full_lengths))
            if part.marks is not None:
                marks.append(part.marks)
            yield part.ids

    _save(folder / "ids.npy", dtype, ids())
    for name, column in zip(_COLUMNS, zip(*columns, strict=True), strict=True):
        _save(folder / f"{name}.npy", np.dtype("<i4"), column)
    if marks:
        _save(folder / "marks.npy", np.dtype("<u4"), marks)
    (folder / _CHECKSUMS).write_text(json.dumps(_checksums(folder)), encoding="utf-8")


def _save(path: Path, dtype: np.dtype[Any], parts: Iterable[np.ndarray]) -> None:
    """Write one array in NumPy's format without holding it; the length in the header is written last."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (0,)}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        start = stream.tell()
        for part in parts:
            stream.write(part.astype(dtype).tobytes())
        header["shape"] = ((stream.tell() - start) // dtype.itemsize,)
        stream.seek(0)
        np.lib.format.write_array_header_1_0(stream, header)  # NumPy leaves room for the longer number


def _checksums(folder: Path) -> dict[str, str]:
    return {path.stem: checksum(path) for path in sorted(folder.glob("*.npy"))}


def _mapped(folder: Path, name: str) -> np.ndarray:
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


def _read(folder: Path) -> TokenRows | None:
    """The rows of a complete folder; None if it is missing or damaged."""
    if not folder.exists():
        return None
    try:
        if json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8")) != _checksums(folder):
            raise ValueError
        os.utime(folder)
        ids, lengths, num_prompt, full_lengths = (_mapped(folder, name) for name in ("ids", *_COLUMNS))
        marks = _mapped(folder, "marks") if (folder / "marks.npy").exists() else None
    except (OSError, ValueError):
        log.warning("%s is damaged and is rebuilt", folder)
        return None
    return TokenRows(ids, _starts(lengths), lengths, num_prompt, full_lengths, marks, folder)


def _free_space(kept: Path) -> None:
    """Delete leftovers of killed builders, and the least recently used token ids beyond `MOST_BYTES`; mapped ones stay
    readable.
    """
    for left in kept.parent.glob(".tokens-*"):
        if not is_locked(kept.parent / f"{left.stem.removeprefix('.')}.lock"):
            remove(left)
    held = []
    for path in kept.parent.glob("tokens-*"):
        with contextlib.suppress(OSError):  # another process may free space too
            if path.suffix != ".lock":
                held.append((path == kept, path.stat().st_mtime_ns, num_bytes(path), path))
    held.sort(reverse=True)  # the new one first, then the newest
    total = 0
    for is_new, _, size, path in held:
        total += size
        if total > MOST_BYTES and not is_new:
            remove(path)
            path.with_suffix(".lock").unlink(missing_ok=True)
