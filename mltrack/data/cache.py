"""What took long to make, kept in the user's cache folder.

Invariant: a reader sees a whole file or none: it is written under a temporary name, synced and renamed; of several processes
that need the same file one makes it while the others wait, and a damaged or half-written one is made anew. Where the
folder cannot be written the work is done each time, with a warning.

The folder is `MLTRACK_CACHE_DIR`, else the platform's (on Linux ~/.cache/mltrack); deleting it loses nothing but time.
"""

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

FORMAT_VERSION = 1
"""Part of every file's name: another version never reads it. Whatever changes the rows that are made raises it."""


def cache_folder() -> Path:
    """Where cached files lie; it need not exist yet."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("MLTRACK_CACHE_DIR") or user_cache_dir("mltrack", appauthor=False)).expanduser()


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
            f"{path.parent}: cannot be written ({error.strerror}), so the built-in source is scanned each time; set MLTRACK_CACHE_DIR to a folder that can",
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
    """A stream whose bytes are `path` once they are all on the disk; whatever ends the writing, no half file is left."""
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


@contextlib.contextmanager
def locked(descriptor: int) -> Iterator[None]:
    """Hold the file's lock until the file is closed; the system lets go of it when the process ends, however that happens."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass  # no locks here (some network folders): two processes may both do the work, the rename keeps the file whole
    yield


def is_locked(path: Path) -> bool:
    """True where a process holds the lock of that file, or where it cannot be known."""
    try:
        import fcntl

        with path.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (ImportError, OSError):
        return True
    return False
