"""What took long to make, kept in the user's cache folder.

Invariant: a reader sees a whole file or none: it is written under a temporary name, synced and renamed; of several
processes that need the same file one makes it while the others wait, and a damaged or half-written one is made anew.
Where the folder cannot be written the work is done each time, with a warning."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mltrack.cache import Cached, cache_folder, is_locked, locked

FORMAT_VERSION = 1
"""Part of every file's name: another version never reads it. Whatever changes the rows that are made raises it."""
_PATTERNS = {"tokens": "tokens-*.bin", "records": "records-*.arrow", "rows": "*-f[0-9]*.jsonl.gz"}
"""{kind: names} of what is kept of data sets."""


def cached_rows(name: str, build: Callable[[], list[Any]]) -> list[Any]:
    """The JSON rows kept under `name`; where there are none yet, those that `build` returns, which are kept.

    Args:
        name: says all that the rows depend on, such as versions; letters that a file name may have.
        build: makes the rows; called at most once, and by one process at a time.
    """
    path = cache_folder() / f"{name}-f{FORMAT_VERSION}.jsonl.gz"
    rows = _read(path)
    if rows is not None:
        return rows
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_file = path.with_suffix(".lock").open("ab")
    except OSError as error:
        warnings.warn(
            f"{path.parent}: cannot be written ({error.strerror}), so the built-in source is scanned each time; set"
            " MLTRACK_CACHE_DIR to a folder that can",
            stacklevel=2,
        )
        return build()
    with lock_file, locked(lock_file.fileno()):
        rows = _read(path)  # another process may have made it while this one waited
        if rows is None:
            rows = build()
            try:
                _write(path, rows)
            except OSError as error:
                warnings.warn(f"{path}: not kept ({error.strerror})", stacklevel=2)
    return rows


def _read(path: Path) -> list[Any] | None:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            header, *rows = [json.loads(line) for line in stream]
        return rows if header == {"rows": len(rows)} else None
    except (OSError, EOFError, ValueError, zlib.error):
        return None  # not there, or damaged: gzip checks its own sum


def _write(path: Path, rows: list[Any]) -> None:
    lines = [json.dumps({"rows": len(rows)}), *(json.dumps(row) for row in rows)]
    with written_whole(path) as stream:
        stream.write(gzip.compress("\n".join(lines).encode(), mtime=0))


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A stream whose bytes are `path` once they are all on the disk; whatever ends the writing, no half file is
    left.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def kept_files() -> list[Cached]:
    """What is kept of data sets; other files of the folder are somebody else's."""
    return [
        Cached(
            kind=kind,
            name=path.name,
            num_bytes=found.st_size,
            used=found.st_mtime,
            in_use=is_locked(path.with_suffix(".lock")),
        )
        for kind, pattern in _PATTERNS.items()
        for path in sorted(cache_folder().glob(pattern))
        if (found := path.stat())
    ]


def remove_file(name: str) -> None:
    """Remove one of `kept_files`, with its lock and its seal; a process that has mapped it still reads it."""
    path = cache_folder() / name
    for one in (path, path.with_suffix(".lock"), path.with_name(f"{name}.json")):
        one.unlink(missing_ok=True)
