"""The user's cache folder, and the locks of its files.

The folder is `MLTRACK_CACHE_DIR`, else the platform's (on Linux ~/.cache/mltrack); deleting it loses nothing but time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Cached:
    """One thing in the cache folder."""

    kind: str
    """model, tokens, records, rows."""
    name: str
    num_bytes: int
    used: float
    """When it was last used, in seconds since 1970."""
    in_use: bool
    """A process is loading or making it now."""
    source: str = ""
    """Where it comes from."""


def cache_folder() -> Path:
    """The folder of cached files; it need not exist yet."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("MLTRACK_CACHE_DIR") or user_cache_dir("mltrack", appauthor=False)).expanduser()


@contextlib.contextmanager
def locked(descriptor: int) -> Iterator[None]:
    """Hold the file's lock until the file is closed; the system releases it when the process ends in any way."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError):
        # no locks here (some network folders): two processes may both do the work, the rename keeps the file whole
        pass
    yield


def is_locked(path: Path) -> bool:
    """True if a process holds the lock of that file, or if that cannot be known."""
    try:
        import fcntl

        with path.open("rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except (ImportError, OSError):
        return True
    return False
