"""A run's files: put, listed, fetched, deleted.

Invariant: every verb can be repeated. On a local root nothing is seen half written and large files cost a hard link; elsewhere (the server's proxy, S3)
MLflow's own repository carries them. `delete` deletes bytes, not only the entry.
"""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from mltrack.store import placement
from mltrack.store.connection import Store, StoreRejected, StoreUnavailable, database_file, is_missing, local_path, patient, translated


def put_file(store: Store, run_id: str, path: str | os.PathLike[str], artifact_path: str | None = None) -> None:
    """The file under its own name in the folder `artifact_path` (None: the run's root), replacing what is there."""
    source = Path(path)
    with translated(store, f"storing {source.name}"):
        root = _root(store, run_id)
        local = writable_root(store, root)
        if local is not None:
            placement.place_file(source, _inside(local, artifact_path) / source.name)
        else:
            with patient(store):
                repository(store, root).log_artifact(str(source), _checked(artifact_path))


def put_folder(store: Store, run_id: str, path: str | os.PathLike[str], artifact_path: str) -> None:
    """The folder's contents as the folder `artifact_path`; on a local root what is there is replaced as a whole."""
    source = Path(path)
    if not source.is_dir():
        raise StoreRejected(f"{source} is not a folder")
    with translated(store, f"storing the folder {source.name}"):
        root = _root(store, run_id)
        local = writable_root(store, root)
        if local is not None:
            target = _inside(local, _named(artifact_path))
            target.parent.mkdir(parents=True, exist_ok=True)
            placement.place_tree(source, target)
        else:
            with patient(store):
                repository(store, root).log_artifacts(str(source), _named(artifact_path))


def put_text(store: Store, run_id: str, text: str, artifact_file: str) -> None:
    """A text file at `artifact_file`, as "checkpoints/index.json"."""
    name = _named(artifact_file)
    with translated(store, f"storing {name}"):
        root = _root(store, run_id)
        local = writable_root(store, root)
        if local is not None:
            placement.place_text(text, _inside(local, name))
            return
        with tempfile.TemporaryDirectory(prefix="mltrack-") as folder, patient(store):
            file = Path(folder) / Path(name).name
            file.write_text(text, encoding="utf-8")
            parent = str(Path(name).parent.as_posix())
            repository(store, root).log_artifact(str(file), None if parent == "." else parent)


def put_json(store: Store, run_id: str, value: Any, artifact_file: str) -> None:
    """A value as JSON at `artifact_file`."""
    put_text(store, run_id, json.dumps(value, indent=2, ensure_ascii=False) + "\n", artifact_file)


def delete(store: Store, run_id: str, artifact_path: str) -> None:
    """The file or folder and its bytes; what is gone already is no error."""
    name = _named(artifact_path)
    with translated(store, f"deleting {name}"):
        root = _root(store, run_id)
        local = local_path(root)
        if local is not None:
            placement.remove(_inside(local, name))
            return
        # MLflow up to 3.13, here or in the server, deletes on S3 all keys that begin with the name: checkpoints/10 with checkpoints/1.
        repo = repository(store, root)
        siblings = _names(repo, str(Path(name).parent.as_posix()).removeprefix("."))
        if any(sibling.startswith(name) for sibling in siblings if sibling != name):
            for file in _listed(repo, name) or ([name] if name in siblings else []):
                delete_tree(store, root, file)
        elif name in siblings:
            delete_tree(store, root, name)


def delete_tree(store: Store, uri: str, name: str | None = None) -> None:
    """Deletes the bytes at an artifact URI that is not a local folder; what is gone already is no error."""
    try:
        with patient(store):
            repository(store, uri).delete_artifacts(name)
    except Exception as error:
        if not is_missing(error) and "No such file or directory" not in str(error):  # the second is Azure's word for it, without a code
            raise


def list_names(store: Store, run_id: str, path: str | None = None) -> list[str]:
    """The names of the files and folders right in the folder `path` (None: the run's root); none where it does not exist."""
    with translated(store, f"listing {path or 'files'}"):
        return sorted(name.rsplit("/", 1)[-1] for name in _names(repository(store, _root(store, run_id)), _checked(path)))


def list_files(store: Store, run_id: str, path: str | None = None) -> dict[str, int]:
    """All files at and below `path`: their paths in the run, with their sizes in bytes."""
    with translated(store, "listing files"):
        return _listed(repository(store, _root(store, run_id)), _checked(path))


def download(store: Store, run_id: str, path: str, dst: str | os.PathLike[str]) -> Path:
    """A copy of the file or folder under `dst`; the path of the copy."""
    Path(dst).mkdir(parents=True, exist_ok=True)
    with translated(store, f"fetching {path}"), patient(store):
        return Path(repository(store, _root(store, run_id)).download_artifacts(_named(path), str(dst)))


def check_root(store: Store, run_id: str) -> None:
    """Raises StoreUnavailable where the run's files can be written nowhere, because the local folder that holds its experiment is gone."""
    with translated(store, f"looking for the files of run {run_id}"):
        writable_root(store, _root(store, run_id))


def writable_root(store: Store, uri: str) -> Path | None:
    """The local folder of a run's or a logged model's files; None where they are not local.

    A folder that was moved is not made again: its experiment would be in two places, and files in the wrong one.

    Raises:
        StoreUnavailable: what holds the experiment's folder is not there.
    """
    local = local_path(uri)
    if local is None or local.exists():
        return local
    home = local.parents[2] if local.parents[1].name == "models" else local.parents[1]  # <home>/models/<model>/artifacts, <home>/<run>/artifacts
    home = home.parent if home.name.isdigit() or home.parent.name == "mlruns" else home  # <folder of all experiments>/<experiment>
    if home.parent.is_dir():
        return local
    database = database_file(store.tracking_uri)
    moved = database is not None and database.with_name(home.name).is_dir()
    link = shlex.join(["ln", "-s", str(database.parent), str(home.parent)]) if database is not None and moved else f"ln -s NEW_PLACE {home.parent}"
    raise StoreUnavailable(
        f"the files of this experiment lie in {home}, and {home.parent} is gone; if it was moved, make the old name a link to the new one ({link}), "
        "or take a new --experiment-name for new runs"
    )


def repository(store: Store, uri: str) -> Any:
    """MLflow's repository for an artifact URI, talking to this store's server."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri, tracking_uri=store.tracking_uri)


def _names(repo: Any, path: str | None) -> list[str]:
    try:
        entries = repo.list_artifacts(path or None)
    except Exception as error:
        if is_missing(error):
            return []
        raise
    return [entry.path for entry in entries if not entry.path.rsplit("/", 1)[-1].startswith(placement.TEMPORARY)]


def _listed(repo: Any, path: str | None) -> dict[str, int]:
    files: dict[str, int] = {}
    for entry in repo.list_artifacts(path):
        if entry.path.rsplit("/", 1)[-1].startswith(placement.TEMPORARY):
            continue
        if entry.is_dir:
            files.update(_listed(repo, entry.path))
        else:
            files[entry.path] = int(entry.file_size or 0)
    return files


def _root(store: Store, run_id: str) -> str:
    if run_id not in store.artifact_roots:
        store.artifact_roots[run_id] = store.client.get_run(run_id).info.artifact_uri
    return store.artifact_roots[run_id]


def _checked(path: str | None) -> str | None:
    if path is None:
        return None
    parts = path.strip("/").split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise StoreRejected(f"artifact path '{path}' is not inside the run; a relative path without '..' is accepted")
    return "/".join(parts)


def _named(path: str) -> str:
    name = _checked(path)
    if not name:
        raise StoreRejected("an empty artifact path; a relative path is accepted")
    return name


def _inside(root: Path, path: str | None) -> Path:
    return root / (_checked(path) or "")
