"""A run's files: put, listed, fetched, deleted.

Invariant: every verb can be repeated. On a local root no reader finds a file half written; elsewhere (the server's
proxy, S3) MLflow's own repository transfers the files. `delete` deletes bytes, not only the entry. An unreadable file
is UnreadableFile, whatever the store does; if the store cannot take a readable file, the error is StoreUnavailable."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mltrack.errors import TrackingError
from mltrack.store import placement
from mltrack.store.connection import Store, artifact_timeout, local_path, without_parts
from mltrack.store.database import database_file
from mltrack.store.refusal import StoreRejected, StoreUnavailable, is_missing, translated

SURE_FROM_BYTES = 1 << 20
"""A smaller file is always sent: checking for it costs more than it saves, and some are rewritten in the same size."""
_OF_THE_NAME = {errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.EFBIG}
"""Errors of a local root that can take files, but not this one under this name."""
log = logging.getLogger("mltrack.store")


class UnreadableFile(TrackingError):
    """A local file that cannot be read, whatever store it was for."""


def check_readable(path: Path, *, whole: bool = False) -> None:
    """Return if this is a regular file that can be opened.

    Args:
        whole: also read all of it.

    Raises:
        UnreadableFile: it is gone, may not be read, is no regular file (a folder, a socket, a pipe), or the disk fails.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise UnreadableFile(f"{path}: is no regular file")
        with path.open("rb") as file:
            while whole and file.read(1 << 20):
                pass
    except (OSError, ValueError) as error:  # the second for a name with a null character
        raise UnreadableFile(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


@contextmanager
def reading(path: Path, root: Path | None = None) -> Iterator[None]:
    """While one file is sent to a store: tell errors of the file from errors of the store.

    Args:
        root: the store's folder, if it is on this machine.

    Raises:
        UnreadableFile: as `check_readable`.
        StoreRejected: this root takes files, but not under this name.
        StoreUnavailable: any other OSError, such as a full disk, if the file can be read to its end.
    """
    check_readable(path)
    try:
        yield
    except OSError as error:
        if type(error).__module__ != "builtins":  # of requests: these OSErrors carry the server's answer
            raise
        check_readable(path, whole=True)
        line = f"{path.name} cannot be stored: {error.strerror or error}"
        if error.errno in _OF_THE_NAME and root is not None and root.is_dir():
            raise StoreRejected(line) from error
        raise StoreUnavailable(line) from error


def put_file(
    store: Store,
    run_id: str,
    path: str | os.PathLike[str],
    artifact_path: str | None = None,
    *,
    goes_on: bool = False,
    immutable: bool = False,
) -> None:
    """Put the file under its own name into the folder `artifact_path` (None: the run's root), replacing one there.

    Args:
        goes_on: resume an interrupted upload: a large file that is there with the same size is not sent again.
        immutable: the file is never rewritten in place, like a checkpoint's: on a local root it may become a hard link.

    Raises:
        UnreadableFile: see `reading`.
    """
    source = Path(path)
    with translated(store, f"storing {source.name}"):
        root, local = _place(store, run_id, to_write=True)
        with reading(source, local):
            if local is not None:
                placement.place_file(source, _inside(local, artifact_path) / source.name, immutable=immutable)
            elif not (goes_on and _is_there(store, root, source, _checked(artifact_path))):
                _send(store, root, source, _checked(artifact_path))


def put_text(store: Store, run_id: str, text: str, artifact_file: str) -> None:
    """Write a text file at `artifact_file`, such as "checkpoints/index.json"."""
    name = _named(artifact_file)
    with translated(store, f"storing {name}"):
        root, local = _place(store, run_id, to_write=True)
        if local is not None:
            placement.place_text(text, _inside(local, name))
            return
        with tempfile.TemporaryDirectory(prefix="mltrack-") as folder:
            file = Path(folder) / Path(name).name
            file.write_text(text, encoding="utf-8")
            _send(store, root, file, _folder_of(name))


def delete(store: Store, run_id: str, artifact_path: str) -> None:
    """Delete the file or folder and its bytes; it may be gone already."""
    name = _named(artifact_path)
    with translated(store, f"deleting {name}"):
        root, local = _place(store, run_id)
        if local is not None:
            placement.remove(_inside(local, name))
            return
        # MLflow up to 3.13, here or in the server, deletes all S3 keys that begin with the name: checkpoints/10 with
        # checkpoints/1.
        repo = repository(store, root)
        siblings = _names(repo, str(Path(name).parent.as_posix()).removeprefix("."))
        if any(sibling.startswith(name) for sibling in siblings if sibling != name):
            for file in list_below(repo, name) or ([name] if name in siblings else []):
                delete_tree(store, root, file)
        elif name in siblings:
            delete_tree(store, root, name)


def delete_tree(store: Store, uri: str, name: str | None = None) -> None:
    """Delete the bytes at an artifact URI that is not a local folder; they may be gone already."""
    try:
        with artifact_timeout(store):
            repository(store, uri).delete_artifacts(name)
    except Exception as error:
        # Azure says it in words, without a code.
        if not is_missing(error) and "No such file or directory" not in str(error):
            raise


def list_names(store: Store, run_id: str, path: str | None = None) -> list[str]:
    """Names of the files and folders directly in the folder `path` (None: the run's root); none if it is missing."""
    with translated(store, f"listing {path or 'files'}"):
        return sorted(
            name.rsplit("/", 1)[-1] for name in _names(repository(store, _place(store, run_id)[0]), _checked(path))
        )


def list_files(store: Store, run_id: str, path: str | None = None) -> dict[str, int]:
    """{path in the run: size in bytes} of all files at and below `path`."""
    with translated(store, "listing files"):
        return list_below(repository(store, _place(store, run_id)[0]), _checked(path))


def download(store: Store, run_id: str, path: str, dst: str | os.PathLike[str]) -> Path:
    """Copy the file or folder to `dst`/`path` and return that path."""
    name = _named(path)
    with translated(store, f"fetching {name}"), artifact_timeout(store):
        repo = repository(store, _place(store, run_id)[0])
        for file in list_below(repo, name) or [name]:
            target = _inside(Path(dst), file)
            target.parent.mkdir(parents=True, exist_ok=True)
            # download_artifacts would use its own threads, with MLflow's own retries
            repo._download_file(file, str(target))
    return Path(dst) / name


def check_root(store: Store, run_id: str) -> None:
    """Raise StoreUnavailable if the run's files cannot be written, because its experiment's local folder is gone."""
    with translated(store, f"looking for the files of run {run_id}"):
        _place(store, run_id, to_write=True)


def writable_root(store: Store, uri: str) -> Path | None:
    """The local folder of a run's or a logged model's files; None if they are not local.

    A moved folder is not created again: the experiment would be in two places, and files in the wrong one.

    Raises:
        StoreUnavailable: the folder that holds the experiment's folder does not exist.
    """
    local = local_path(store, uri)
    if local is None or local.exists():
        return local
    # <home>/models/<model>/artifacts, <home>/<run>/artifacts
    home = local.parents[2] if local.parents[1].name == "models" else local.parents[1]
    # <folder of all experiments>/<experiment>
    home = home.parent if home.name.isdigit() or home.parent.name == "mlruns" else home
    if home.parent.is_dir():
        return local
    database = database_file(store.tracking_uri)
    moved = database is not None and database.with_name(home.name).is_dir()
    link = (
        shlex.join(["ln", "-s", str(database.parent), str(home.parent)])
        if database is not None and moved
        else f"ln -s NEW_PLACE {home.parent}"
    )
    raise StoreUnavailable(
        f"the files of this experiment lie in {home}, and {home.parent} is gone; if it was moved, make the old name a"
        f" link to the new one ({link}), or take a new --experiment-name for new runs"
    )


def repository(store: Store, uri: str) -> Any:
    """MLflow's repository for an artifact URI, talking to this store's server."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri, tracking_uri=store.tracking_uri)


def send_tree(store: Store, uri: str, folder: Path, artifact_path: str | None = None, *, goes_on: bool = False) -> None:
    """Send all files of a folder, one by one, to an artifact URI that is not a local folder.

    Args:
        artifact_path: the folder below the URI.
        goes_on: as for `put_file`.
    """
    there = _sizes(store, uri, artifact_path) if goes_on else {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.stat().st_size < SURE_FROM_BYTES or there.get(name) != path.stat().st_size:
            _send(store, uri, path, _folder_of(f"{artifact_path}/{name}" if artifact_path else name))


def _send(store: Store, uri: str, source: Path, artifact_path: str | None) -> None:
    """Send one file. If the server offers it, a large one goes in parts directly to the storage behind the server; if
    that fails, through the server.
    """
    repo = repository(store, uri)
    with artifact_timeout(store, source.stat().st_size):
        try:
            repo.log_artifact(str(source), artifact_path)
        except Exception as error:
            in_parts = getattr(repo, "_should_multipart_upload", None)
            if in_parts is None or isinstance(error, FileNotFoundError) or not in_parts(str(source)):
                raise
            log.warning("%s: %s; sent through the server instead", source.name, error)
            with without_parts():
                repo.log_artifact(str(source), artifact_path)


def _is_there(store: Store, uri: str, source: Path, path: str | None) -> bool:
    """True if the folder holds a large file of this name and size."""
    size = source.stat().st_size
    return size >= SURE_FROM_BYTES and _sizes(store, uri, path).get(source.name) == size


def _sizes(store: Store, uri: str, path: str | None) -> dict[str, int]:
    """{path from there: size} of the files below a folder; none if it does not exist."""
    try:
        files = list_below(repository(store, uri), path)
    except Exception as error:
        if is_missing(error):
            return {}
        raise
    return {(name.removeprefix(f"{path}/") if path else name): size for name, size in files.items()}


def _folder_of(name: str) -> str | None:
    parent = Path(name).parent.as_posix()
    return None if parent == "." else parent


def _names(repo: Any, path: str | None) -> list[str]:
    try:
        entries = repo.list_artifacts(path or None)
    except Exception as error:
        if is_missing(error):
            return []
        raise
    return [entry.path for entry in entries if not entry.path.rsplit("/", 1)[-1].startswith(placement.TEMPORARY)]


def list_below(repo: Any, path: str | None) -> dict[str, int]:
    """{path: bytes} of all files at and below `path` of one of MLflow's repositories."""
    files: dict[str, int] = {}
    for entry in repo.list_artifacts(path):
        if entry.path.rsplit("/", 1)[-1].startswith(placement.TEMPORARY):
            continue
        if entry.is_dir:
            files.update(list_below(repo, entry.path))
        else:
            files[entry.path] = int(entry.file_size or 0)
    return files


def _place(store: Store, run_id: str, *, to_write: bool = False) -> tuple[str, Path | None]:
    """The run's artifact URI, and the folder if it is on this machine.

    Args:
        to_write: raise StoreUnavailable like `writable_root`.
    """
    if run_id not in store.artifact_roots:
        store.artifact_roots[run_id] = store.client.get_run(run_id).info.artifact_uri
    root = store.artifact_roots[run_id]
    local = writable_root(store, root) if to_write else local_path(store, root)
    # MLflow names each run's folder so; another folder holds other files than this run's
    if local is not None and local.parts[-2:] != (run_id, "artifacts"):
        raise StoreRejected(
            f"{store.shown_uri} keeps the files of run {run_id} in {local}, which is not that run's folder;"
            f" .../{run_id}/artifacts is"
        )
    return root, local


def _checked(path: str | None) -> str | None:
    if path is None:
        return None
    parts = path.strip("/").split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise StoreRejected(f"artifact path '{path}' is not inside the run; use a relative path without '..'")
    return "/".join(parts)


def _named(path: str) -> str:
    name = _checked(path)
    if not name:
        raise StoreRejected("an artifact path must not be empty")
    return name


def _inside(root: Path, path: str | None) -> Path:
    target = root / (_checked(path) or "")
    if not target.resolve().is_relative_to(root.resolve()):
        raise StoreRejected(f"{target} leads out of {root}; use a folder without links")
    return target
