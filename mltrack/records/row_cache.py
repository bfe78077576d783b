"""Results of slow work, kept in the user's cache folder.

Invariant: a reader sees a whole file or none, because it is written under a temporary name and renamed. If several
processes need the same file, one makes it while the others wait; a damaged file is rebuilt. If the folder cannot be
written, the work is done each time, with a warning."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash

from mltrack.cache import Cached, cache_folder, is_locked, locked

FORMAT_VERSION = 1
"""Part of every file's name, so no other version reads it. Raise it with any change of the rows."""
_PATTERNS = {"tokens": "tokens-*", "records": "records-*.arrow", "rows": "*-f[0-9]*.jsonl.gz"}
"""{kind: names} of cached data sets."""


def cached_rows(name: str, build: Callable[[], list[Any]]) -> list[Any]:
    """The JSON rows cached under `name`, or else those that `build` returns, which are then cached.

    Args:
        name: a valid file name that contains all that the rows depend on, such as versions.
        build: makes the rows; called at most once, and by one process at a time.
    """
    path = cache_folder() / f"{name}-f{FORMAT_VERSION}.jsonl.gz"
    rows = _read(path)
    if rows is not None:
        return rows
    with only_builder(path):
        rows = _read(path)  # another process may have made it while this one waited
        if rows is None:
            rows = build()
            try:
                _write(path, rows)
            except OSError as error:
                warnings.warn(
                    f"{path}: not kept ({error.strerror}), so it is made each time; set MLTRACK_CACHE_DIR to a folder"
                    " that can be written",
                    stacklevel=2,
                )
    return rows


@contextlib.contextmanager
def only_builder(path: Path) -> Iterator[None]:
    """Wait until no other process makes `path`, and lock it; does nothing if the folder cannot be written."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_suffix(".lock").open("ab"))
            stack.enter_context(locked(lock.fileno()))
        yield


def _read(path: Path) -> list[Any] | None:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            header, *rows = [json.loads(line) for line in stream]
        return rows if header == {"rows": len(rows)} else None
    except (OSError, EOFError, ValueError, zlib.error):
        return None  # missing, or damaged: gzip has a checksum


def _write(path: Path, rows: list[Any]) -> None:
    lines = [json.dumps({"rows": len(rows)}), *(json.dumps(row) for row in rows)]
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(gzip.compress("\n".join(lines).encode(), mtime=0))
        os.replace(temporary, path)
    finally:
        remove(Path(temporary))


def checksum(path: Path) -> str:
    """XXH3 (hex) of a file; it is read, since mapped pages would count as this process's memory."""
    with path.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def num_bytes(path: Path) -> int:
    """Size of a file, or of the files in a folder."""
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))


def remove(path: Path) -> None:
    """Delete a file or folder as far as possible; a process that has mapped it can still read it."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def kept_files() -> list[Cached]:
    """The cached data sets; other files in the folder are ignored."""
    return [
        Cached(
            kind=kind,
            name=path.name,
            num_bytes=num_bytes(path),
            used=path.stat().st_mtime,
            in_use=is_locked(path.with_suffix(".lock")),
        )
        for kind, pattern in _PATTERNS.items()
        for path in sorted(cache_folder().glob(pattern))
        if path.suffix != ".lock"
    ]


def remove_file(name: str) -> None:
    """Delete one of `kept_files`, with its lock and its seal."""
    path = cache_folder() / name
    for one in (path, path.with_suffix(".lock"), path.with_name(f"{name}.json")):
        remove(one)
