"""Fetches files from an artifact store; an interrupted fetch is resumed.

Invariant: a file has its name only once all its bytes have arrived. Until then they are in `<name>.part` beside it, and
the next try requests only the rest if the store can send it (an MLflow server that keeps the files itself can; from S3
the whole file is requested again).

    names = listed(store, location)                 # {"MLmodel": 1204, "model.safetensors": 5000000}
    fetch(store, location, names, folder)           # may be called again, with the same folder
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mltrack.store import placement
from mltrack.store.artifacts import list_below, repository
from mltrack.store.connection import Store, artifact_timeout, local_path
from mltrack.store.refusal import StoreRejected, StoreUnavailable, is_missing, translated

PART = ".part"
PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Pauses before the next tries of an interrupted fetch, counted since something last arrived."""
_CHUNK = 1 << 16
Fetched = TypeVar("Fetched")


def listed(store: Store, location: str, path: str | None = None) -> dict[str, int]:
    """{name below `path`: bytes} of the files at an artifact URI; none if there is no such folder.

    Raises:
        StoreRejected: a name leads out of the folder.
    """
    with translated(store, f"listing {path or 'files'}"):
        try:
            found = list_below(repository(store, location), path)
        except Exception as error:
            if is_missing(error):
                return {}
            raise
    start = len(path) + 1 if path else 0
    names = {name[start:]: size for name, size in found.items()}
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            raise StoreRejected(
                f"{store.shown_uri}: the file name {name!r} leads out of its folder; nothing was fetched"
            )
    return names


def fetch(store: Store, location: str, names: Mapping[str, int], folder: Path, *, path: str | None = None) -> None:
    """Fetch the files into `folder`, each whole or not at all; one that is there with all its bytes is kept.

    Args:
        location: an artifact URI.
        names: as `listed` gives them.
        path: below the location.

    Raises:
        StoreUnavailable: the transfer was interrupted; the same call resumes it.
        StoreRejected: there is no such file.
    """
    for name, size in names.items():
        target = folder / name
        if target.is_file() and target.stat().st_size == size:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with translated(store, f"fetching {name}"), artifact_timeout(store):
            _fetch_file(store, location, posixpath.join(path or "", name), size, target)


def persistently(fetch: Callable[[], Fetched], folder: Path, notice: Callable[[str], None]) -> Fetched:
    """The result of `fetch`, which is called again after a pause if the store is unavailable; the pauses start anew
    whenever something has arrived in the folder.

    Args:
        notice: takes a line before each pause.

    Raises:
        StoreUnavailable: the pauses are used up; the message says that the same command continues.
    """
    pauses, arrived = list(PAUSES_S), _num_bytes(folder)
    while True:
        try:
            return fetch()
        except StoreUnavailable as error:
            if (now := _num_bytes(folder)) > arrived:
                pauses, arrived = list(PAUSES_S), now
            if not pauses:
                raise StoreUnavailable(
                    f"{error}; {arrived / 1e6:,.1f} MB have arrived and stay in {folder}; the same command continues"
                    " from there"
                ) from error
            notice(f"{error}; trying again in {pauses[0]:.0f} s")
            time.sleep(pauses.pop(0))


def drop_parts(folder: Path) -> None:
    """Remove the incomplete files of a fetch that is no longer wanted."""
    for part in folder.rglob(f"*{PART}"):
        part.unlink(missing_ok=True)


def _fetch_file(store: Store, location: str, name: str, size: int, target: Path) -> None:
    part, root = target.with_name(target.name + PART), local_path(store, location)
    if root is not None:
        part.unlink(missing_ok=True)
        placement.link_or_copy(root / name, part, immutable=True)  # all fetched files are of a checkpoint or a model
    else:
        if part.is_file() and part.stat().st_size > size:
            part.unlink()
        if not (part.is_file() and part.stat().st_size == size):
            _receive(repository(store, location), name, part)
    arrived = part.stat().st_size
    if arrived != size:
        raise StoreUnavailable(f"{store.shown_uri}: fetching {name}: {arrived:,} of {size:,} bytes arrived")
    part.replace(target)


def _receive(repo: Any, name: str, part: Path) -> None:
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
    from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

    presigned = getattr(repo, "_is_multipart_download_enabled", lambda: False)
    if not isinstance(repo, HttpArtifactRepository) or presigned():
        repo._download_file(name, str(part))
        return
    there = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={there}-"} if there else {})}
    with http_request(repo._host_creds, posixpath.join("/", name), "GET", stream=True, extra_headers=headers) as reply:
        augmented_raise_for_status(reply)
        with part.open("ab" if reply.status_code == 206 else "wb") as file:
            for chunk in reply.iter_content(_CHUNK):
                file.write(chunk)


def _num_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
