"""Models fetched from a store or made from a GGUF file, kept in the user's cache folder.

Invariant: a model is there whole or not at all (fetched under another name, then renamed). Each use compares all its
bytes with the hashes recorded at the fetch; a damaged model is fetched again. The total size stays within
`MLTRACK_MODEL_CACHE_GB` (20): the least recently used models are removed first, but never one that a process uses: it
holds a lock until it ends.

    <cache folder>/models/<key>/files.json     {"source": ..., "files": {name: {"bytes", "sha256"}}}; its modification
                                               time is the last use
    <cache folder>/models/<key>/model/         the store's files; MLflow may add a file when it loads
    <cache folder>/models/.fetching-<key>/     what has arrived of an interrupted fetch
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mltrack.cache import Cached, cache_folder, is_locked, locked
from mltrack.errors import ConfigurationError, TrackingError
from mltrack.store import fetching
from mltrack.store.connection import Store

LIMIT_VARIABLE, DEFAULT_GB = "MLTRACK_MODEL_CACHE_GB", 20.0
_FILES, _MODEL, _FETCHING, _DELETING = "files.json", "model", ".fetching-", ".deleting-"
_held: dict[Path, int] = {}
"""Descriptors of the models that this process uses, open until it ends."""
_temporary: list[tempfile.TemporaryDirectory[str]] = []
"""Folders of models that could not be cached, removed when this process ends."""
log = logging.getLogger("mltrack.store")


def folder_of(store: Store, location: str, source: str, identity: str | None = None) -> Path:
    """A folder with the files that the store holds at `location`: from the cache, else fetched into it.

    Args:
        location: an artifact URI, not of a local folder.
        source: the model's name for messages.
        identity: identifies these exact bytes in this store for ever, like the id of a logged model; None: a digest of
            what the store lists.

    Raises:
        StoreUnavailable: the store does not answer; what has arrived is kept, and the next call continues from there.
        TrackingError: there are no files, or no room.
    """
    names = None if identity else _listed(store, location, source)
    where = [store.shown_uri] if identity else [store.shown_uri, location, *sorted((names or {}).items())]
    key = f"{identity or 'files'}-{hashlib.sha256(json.dumps(where).encode()).hexdigest()[:16]}"
    folder = _folder() / key
    if (found := _used(folder)) is not None:
        return found
    listed = names or _listed(store, location, source)
    if not _is_writable(folder.parent):
        fetching.fetch(store, location, listed, temporary := _not_kept(folder.parent, source, "fetched"))
        return temporary

    def fetch() -> None:
        free_space(sum(listed.values()), but=folder)
        _fetch(store, location, source, listed, folder)

    return _kept(folder, source, fetch)


def made_once(key: str, source: str, make: Callable[[Path, Callable[[int], None]], None]) -> Path:
    """A folder with what `make` writes: from the cache, else made and cached.

    Args:
        key: identifies these exact bytes for ever, and is a file name.
        source: what they are made from, for messages.
        make: called with an empty folder and a function that makes room for that many bytes in the cache.

    Raises:
        TrackingError: there is no room.
    """
    folder = _folder() / key
    if (found := _used(folder)) is not None:
        return found
    if not _is_writable(folder.parent):
        make(temporary := _not_kept(folder.parent, source, "made"), lambda num_bytes: None)
        return temporary

    def fill() -> None:
        making = folder.with_name(f"{_FETCHING}{folder.name}")
        shutil.rmtree(making, ignore_errors=True)
        (making / _MODEL).mkdir(parents=True)
        make(making / _MODEL, lambda num_bytes: free_space(num_bytes, but=folder))
        files = [path for path in sorted((making / _MODEL).rglob("*")) if path.is_file()]
        held = {
            path.relative_to(making / _MODEL).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in files
        }
        _write(making / _FILES, {"source": source, "files": held})
        _put_in_place(making, folder)

    return _kept(folder, source, fill)


def _not_kept(folder: Path, source: str, done: str) -> Path:
    """A temporary folder for a model if the cache folder cannot be written."""
    warnings.warn(
        f"{folder}: cannot be written, so {source} is {done} each time; set MLTRACK_CACHE_DIR to a writable folder",
        stacklevel=3,
    )
    _temporary.append(tempfile.TemporaryDirectory(prefix="mltrack-model-"))
    return Path(_temporary[-1].name)


def _kept(folder: Path, source: str, fill: Callable[[], None]) -> Path:
    """The model that `fill` puts into `folder`; only one process does so at a time."""
    with _alone(folder):
        if (found := _used(folder)) is None:  # another process may have filled it while this one waited
            try:
                fill()
            except OSError as error:
                raise TrackingError(
                    f"{folder.parent}: {source} cannot be kept there: {error.strerror or error}; make room, or set"
                    " MLTRACK_CACHE_DIR"
                ) from error
            found = _used(folder)
    if found is None:
        raise TrackingError(
            f"{folder}: {source} was damaged right after it was written; check the disk, or set MLTRACK_CACHE_DIR to"
            " another one"
        )
    return found


def cached_models() -> list[Cached]:
    """The cached models, most recently used first; an interrupted fetch counts as a model."""
    found = []
    for folder in _entries():
        with contextlib.suppress(OSError):  # removed by another process meanwhile
            notes = folder / _FILES
            used = notes if notes.exists() else folder
            num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            found.append(
                Cached(
                    kind="model",
                    name=folder.name,
                    num_bytes=num_bytes,
                    used=used.stat().st_mtime,
                    in_use=_in_use(folder),
                    source=_notes(folder).get("source", ""),
                )
            )
    return sorted(found, key=lambda one: -one.used)


def remove_model(name: str) -> bool:
    """Remove one of `cached_models`; False if a process uses it."""
    folder = _folder() / name
    with _exclusive(folder) as free:
        if free:
            _delete(folder)
            lock = _lock_of(folder)
            if name.startswith(_FETCHING) or not is_locked(lock):  # the lock of a fetch is held by this call
                lock.unlink(missing_ok=True)
    return free


def free_space(num_bytes: int, *, but: Path | None = None) -> None:
    """Remove the least recently used models until that many bytes fit within the limit."""
    for left in _folder().glob(f"{_DELETING}*"):
        shutil.rmtree(left, ignore_errors=True)
    kept = [one for one in cached_models() if but is None or one.name not in (but.name, f"{_FETCHING}{but.name}")]
    limit = _limit()
    total = num_bytes + sum(one.num_bytes for one in kept)
    for one in reversed(kept):
        if total > limit and remove_model(one.name):
            total -= one.num_bytes


def _fetch(store: Store, location: str, source: str, names: Mapping[str, int], folder: Path) -> None:
    making = folder.with_name(f"{_FETCHING}{folder.name}")
    making.mkdir(exist_ok=True)
    fetching.persistently(lambda: _fetch_files(store, location, source, names, making), making, log.warning)
    _put_in_place(making, folder)


def _put_in_place(making: Path, folder: Path) -> None:
    if folder.exists():
        _delete(folder)
    making.rename(folder)


def _fetch_files(store: Store, location: str, source: str, names: Mapping[str, int], making: Path) -> None:
    """Fetch each file and record its hash at once; a file of an earlier try is fetched again if it does not match."""
    held = _notes(making).get("files", {})
    for name, size in names.items():
        if name not in held or not _agrees(making / _MODEL / name, held[name]):
            (making / _MODEL / name).unlink(missing_ok=True)
            fetching.fetch(store, location, {name: size}, making / _MODEL)
            held[name] = {"bytes": size, "sha256": _sha256(making / _MODEL / name)}
            _write(making / _FILES, {"source": f"{source} of {store.shown_uri}", "files": held})


def _used(folder: Path) -> Path | None:
    """The model's folder, kept while this process lives, if every byte is as it was fetched; else None."""
    notes = folder / _FILES
    try:
        descriptor = os.open(notes, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        with contextlib.suppress(OSError):  # no locks on this file system
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        same = os.path.samestat(notes.stat(), os.fstat(descriptor))  # else it was removed before it was locked
        files = _notes(folder).get("files", {})
        if same and files and all(_agrees(folder / _MODEL / name, held) for name, held in files.items()):
            os.utime(notes)
            descriptor, _held[folder] = _held.pop(folder, -1), descriptor
            return folder / _MODEL
        return None
    except OSError:
        return None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process fetches this model."""
    path = _lock_of(folder)
    while True:
        with path.open("ab") as lock, locked(lock.fileno()):
            # else the lock was removed while this process waited
            if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                yield
                return


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[bool]:
    """Inside, no other process begins to use or fetch the model; False if one does already."""
    lock = _lock_of(folder) if folder.name.startswith(_FETCHING) else folder / _FILES
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except OSError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)


def _in_use(folder: Path) -> bool:
    with _exclusive(folder) as free:
        return not free


def _delete(folder: Path) -> None:
    """Rename and remove it: its name is free at once, and processes can still read files that they have open."""
    doomed = folder.with_name(f"{_DELETING}{uuid.uuid4().hex}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _listed(store: Store, location: str, source: str) -> dict[str, int]:
    names = fetching.listed(store, location)
    if not names:
        raise TrackingError(f"{source} in {store.shown_uri} has no files in {location}; they were deleted")
    return names


def _agrees(path: Path, held: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == held["bytes"] and _sha256(path) == held["sha256"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _notes(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / _FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.replace(path)


def _entries() -> list[Path]:
    folder = _folder()
    return (
        [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(_DELETING)]
        if folder.is_dir()
        else []
    )


def _folder() -> Path:
    return cache_folder() / "models"


def _lock_of(folder: Path) -> Path:
    """The file that a process locks while it fetches this model."""
    return folder.with_name(f"{folder.name.removeprefix(_FETCHING)}.lock")


def _is_writable(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return os.access(folder, os.W_OK)


def _limit() -> float:
    given = os.environ.get(LIMIT_VARIABLE) or DEFAULT_GB
    with contextlib.suppress(ValueError):
        if 0 <= (limit := float(given)) < math.inf:
            return limit * 1e9
    raise ConfigurationError(f"{LIMIT_VARIABLE} is {given!r}; set it to a number of gigabytes, such as 20")
