"""The model registry in verbs: register, alias, list, resolve, load.

Invariant: a version is made from models:/m-... and once per logged model. An error about a missing object says in one
line where it was looked for.

    version = register(store, "mltrack-code_generation", model_id, tags={}, description="")
    set_alias(store, "mltrack-code_generation", "champion", version)
    folder = resolve(store, "models:/mltrack-code_generation@champion")
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

from mltrack.errors import TrackingError
from mltrack.store import fetching, model_cache, run_models
from mltrack.store.artifacts import writable_root
from mltrack.store.connection import Store, all_pages, as_default, local_path
from mltrack.store.refusal import StoreRejected, already_exists, is_missing, translated
from mltrack.store.runs import cut, legal_name, parsed

MAX_RACES = 5
PAGE = 200
"""Versions per request: each has a model card of up to 5 kB."""
MAX_DESCRIPTION_LENGTH = 5000
"""Size of MLflow's column; sqlite takes more, other databases refuse the version."""
_MAX_TAG_LENGTH = 8000
VERSIONS_TAG = "mlflow.modelVersions"
MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_SOURCE = re.compile(r"models:/(m-[^/]+)$")


class ModelUri(NamedTuple):
    """The parts of a models:/ URI; exactly one of model_id, alias and version is set."""

    model_id: str | None = None
    name: str | None = None
    version: str | None = None
    alias: str | None = None


def parse_uri(uri: str) -> ModelUri:
    """Parse models:/m-..., models:/name/3, models:/name/latest or models:/name@alias."""
    match = re.fullmatch(
        r"models:/+(?:(?P<id>m-[0-9a-f]{32})|(?P<name>[^/@]+)(?:/(?P<version>\d+|latest)|@(?P<alias>[\w-]+)))", uri
    )
    if match is None:
        raise StoreRejected(
            f"'{uri}' names no model; use models:/name@alias, models:/name/3, models:/name/latest or models:/m-..."
        )
    return ModelUri(match["id"], match["name"], match["version"], match["alias"])


def register(
    store: Store, name: str, model_id: str, tags: Mapping[str, Any] | None = None, description: str | None = None
) -> str:
    """The version of `name` made from this logged model, as "1", "2", ...; it and the registered model are created if
    missing.
    """
    of_run = run_models.is_run_model(model_id)
    with translated(store, f"registering {model_id} as {name}"):
        run_id, source = run_models.place_of(store, model_id) if of_run else (None, f"models:/{model_id}")
        held = [version for version in search_versions(store, f"source_path='{source}'") if version.name == name]
        if held:
            number = str(min(held, key=lambda version: int(version.version)).version)
            _link_back(store, model_id, name, number)
            return number
        if of_run:
            run_models.check_ready(store, model_id)
        else:
            run_id = _run_of_ready(store, model_id)
        try:
            store.client.create_registered_model(name)
        except Exception as error:
            if not already_exists(error):
                raise
            if not newest_versions(store, name, 1):
                _refuse_prompt(store, name)
        with as_default(store):  # with a database file MLflow looks the logged model up with a client of its own
            version = store.client.create_model_version(
                name,
                source=source,
                run_id=run_id,
                tags={legal_name(key): cut(str(value), _MAX_TAG_LENGTH) for key, value in (tags or {}).items()},
                description=None if description is None else cut(description, MAX_DESCRIPTION_LENGTH),
                await_creation_for=0,
                model_id=None if of_run else model_id,
            )
        _link_back(store, model_id, name, str(version.version))
        return str(version.version)


def _run_of_ready(store: Store, model_id: str) -> str | None:
    model = store.client.get_logged_model(model_id)
    if str(model.status) != "READY":
        raise StoreRejected(
            f"{store.shown_uri}: {model_id} is {model.status}, so its files are not complete; only a READY model can be"
            " registered"
        )
    return model.source_run_id or None


def _refuse_prompt(store: Store, name: str) -> None:
    try:
        store.client.get_registered_model(name)
    except Exception as error:
        if is_missing(error):  # though the name is taken
            raise StoreRejected(f"{store.shown_uri}: {name} is a prompt, not a model; choose another name") from error
        raise


def _link_back(store: Store, model_id: str, name: str, number: str) -> None:
    """Write the version into the tag by which MLflow's pages link a logged model to its versions: a server writes it,
    MLflow with a database file does not.
    """
    if run_models.is_run_model(model_id):
        return
    try:
        known = parsed(store.client.get_logged_model(model_id).tags.get(VERSIONS_TAG, "[]"), list)
    except Exception as error:
        if is_missing(error):  # deleted after it was registered
            return
        raise
    mine = {"name": name, "version": number}
    if mine not in known:
        store.client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps([*known, mine])})


def set_alias(store: Store, name: str, alias: str, version: str | int) -> None:
    """Move the alias to the version; it has letters, digits, '_' and '-', and is not "latest" or "v3"."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", alias) or re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
        raise StoreRejected(
            f"alias '{alias}' must have letters, digits, '_' and '-' only, and not be 'latest' or 'v' with a number"
        )
    with _looked_for(store, f"models:/{name}/{version}"), translated(store, f"setting {name}@{alias}"):
        also_where_raced(lambda: store.client.set_registered_model_alias(name, alias, str(version)))


def also_where_raced(write: Callable[[], object]) -> None:
    """Do a write that replaces; repeat it if another process inserted the row after MLflow had looked for it."""
    for attempt in range(MAX_RACES):
        try:
            write()
            return
        except Exception as error:
            raced = re.search(r"unique constraint|duplicate (entry|key)", str(error), re.IGNORECASE)
            if not raced or attempt == MAX_RACES - 1:
                raise


def delete_version(store: Store, name: str, version: str | int) -> None:
    """Remove the version and its aliases from the registry; the bytes stay."""
    with _looked_for(store, f"models:/{name}/{version}"), translated(store, f"deleting {name}/{version}"):
        store.client.delete_model_version(name, str(version))


def delete_model(store: Store, name: str) -> None:
    """Remove a registered model with all its versions and tags from the registry; the bytes stay."""
    with _looked_for(store, f"models:/{name}"), translated(store, f"deleting {name}"):
        store.client.delete_registered_model(name)


def delete_alias(store: Store, name: str, alias: str) -> None:
    """Remove the alias, if it exists."""
    with _looked_for(store, f"models:/{name}@{alias}"), translated(store, f"removing {name}@{alias}"):
        store.client.delete_registered_model_alias(name, alias)


def get_alias(store: Store, name: str, alias: str) -> str | None:
    """The version with the alias; None if there is no such alias or model."""
    with translated(store, f"reading {name}@{alias}"):
        return _aliases(store, name).get(alias)


def list_models(store: Store) -> list[dict[str, Any]]:
    """The registered models: name, aliases {alias: version}, description, tags, created_ms, updated_ms."""
    with translated(store, "listing the registered models"):
        return [
            {
                "name": model.name,
                "aliases": {alias: str(version) for alias, version in dict(model.aliases).items()},
                "description": model.description or "",
                "tags": dict(model.tags),
                "created_ms": model.creation_timestamp,
                "updated_ms": model.last_updated_timestamp,
            }
            for model in all_pages(lambda token: store.client.search_registered_models(page_token=token))
        ]


def list_versions(store: Store, name: str) -> list[dict[str, Any]]:
    """The versions of a model, newest first: name, version, aliases, model_id, run_id, tags, metrics, description,
    status, created_ms.

    Raises:
        TrackingError: no registered model of this name.
    """
    with _looked_for(store, f"models:/{name}"), translated(store, f"listing the versions of {name}"):
        aliases = _aliases(store, name, must_exist=True)
        rows = []
        for version in search_versions(store, named(name)):
            model_id = model_id_of(version)
            rows.append(
                {
                    "name": name,
                    "version": str(version.version),
                    "aliases": sorted(alias for alias, number in aliases.items() if number == str(version.version)),
                    "model_id": model_id,
                    "run_id": version.run_id or None,
                    "tags": dict(version.tags),
                    "metrics": _metrics(store, model_id),
                    "description": version.description or "",
                    "status": str(version.status),
                    "created_ms": version.creation_timestamp,
                }
            )
        return sorted(rows, key=lambda row: -int(row["version"]))


def resolve(store: Store, uri: str, dst: str | Path | None = None) -> Path:
    """A local folder with the model's files (MLmodel, config.json, model.safetensors, tokenizer).

    On a local artifact root it is the store's own folder, elsewhere a folder in the user's cache (`model_cache`), which
    is kept while this process lives. Do not write to either.

    Args:
        dst: where to fetch the files instead of the cache.

    Raises:
        TrackingError: no such model, version, alias or file; the message names the database and MLFLOW_TRACKING_URI.
    """
    with _looked_for(store, uri), translated(store, f"looking for {uri}"):
        location, identity = _location(store, parse_uri(uri))
        local = local_path(store, location)
        if local is not None:
            writable_root(store, location)  # if the whole project was moved, the error says what to do
            if not local.is_dir():
                raise TrackingError(
                    f"{uri} in {store.shown_uri} lies in {local}, and that folder is gone; its files were deleted or"
                    " are on another machine"
                )
            return local
        if dst is None:
            return model_cache.folder_of(store, location, uri, identity)
        fetching.fetch(store, location, fetching.listed(store, location), Path(dst))
        return Path(dst)


def load_pyfunc(store: Store, uri: str) -> Any:
    """The model as mlflow.pyfunc.PyFuncModel: .predict(["..."])."""
    folder = resolve(store, uri)
    import mlflow.pyfunc

    with as_default(store):
        return mlflow.pyfunc.load_model(str(folder))


def load_folder(folder: str | Path, serving_file: Path) -> Any:
    """The model of a Hugging Face folder that mltrack trained: .predict(["..."], params) answers like its registered
    version.

    Args:
        serving_file: of the task's `Serving`.
    """
    spec = spec_from_file_location(serving_file.stem, serving_file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{serving_file} is no Python file")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._load_pyfunc(str(folder))


def _location(store: Store, wanted: ModelUri) -> tuple[str, str | None]:
    """Where the files are, and the id of the logged model, whose files never change."""
    if wanted.model_id:
        return str(store.client.get_logged_model(wanted.model_id).artifact_location), wanted.model_id
    assert wanted.name
    number = _aliases(store, wanted.name, must_exist=True).get(wanted.alias) if wanted.alias else wanted.version
    if number == "latest":
        number = next((str(version.version) for version in newest_versions(store, wanted.name, 1)), None)
    if number is None:
        aliases = ", ".join(sorted(_aliases(store, wanted.name))) or "none"
        asked = f"alias '{wanted.alias}'" if wanted.alias else "version"
        raise TrackingError(
            f"{wanted.name} in {store.shown_uri} has no {asked}; its aliases: {aliases}; if it is in another database,"
            " set MLFLOW_TRACKING_URI"
        )
    version = store.client.get_model_version(wanted.name, number)
    model_id = model_id_of(version)
    if model_id and not run_models.is_run_model(model_id):
        return str(store.client.get_logged_model(model_id).artifact_location), (
            model_id if MODEL_ID.fullmatch(model_id) else None
        )
    return str(store.client.get_model_version_download_uri(wanted.name, number)), None


def named(name: str) -> str:
    """MLflow's filter for the versions of one model; its strings have no escapes."""
    quote = '"' if "'" in name else "'"
    return f"name={quote}{name}{quote}"


def _aliases(store: Store, name: str, *, must_exist: bool = False) -> dict[str, str]:
    try:
        return {alias: str(version) for alias, version in dict(store.client.get_registered_model(name).aliases).items()}
    except Exception as error:
        if must_exist or not is_missing(error):
            raise
        return {}


def search_versions(store: Store, where: str) -> list[Any]:
    """MLflow's own entities, all pages."""
    return list(pages(store, where, "version_number ASC"))


def newest_versions(store: Store, name: str, count: int) -> list[Any]:
    """MLflow's own entities, the newest first."""
    return list(store.client.search_model_versions(named(name), max_results=count, order_by=["version_number DESC"]))


def pages(store: Store, where: str, order: str) -> Iterator[Any]:
    """MLflow's own entities, page by page."""
    search = store.client.search_model_versions
    return all_pages(lambda token: search(where, max_results=PAGE, order_by=[order], page_token=token))


def model_id_of(version: Any) -> str | None:
    """The logged model that a version was made from, or the model of a run (`run_models`)."""
    match = _SOURCE.match(version.source or "")
    if match:
        return match[1]
    return run_models.id_of_source(version.run_id, version.source or "") or getattr(version, "model_id", None)


def _metrics(store: Store, model_id: str | None) -> dict[str, float]:
    if model_id is None:
        return {}
    if run_models.is_run_model(model_id):
        return run_models.metrics_of(store, model_id)
    try:
        return {metric.key: metric.value for metric in store.client.get_logged_model(model_id).metrics or []}
    except Exception as error:
        if is_missing(error):
            return {}
        raise


class _looked_for:
    """Adds to an error about a missing object where it was looked for."""

    def __init__(self, store: Store, uri: str):
        self.store, self.uri = store, uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and is_missing(error):
            raise StoreRejected(
                f"no {self.uri} in {self.store.shown_uri}; if it is in another database, set MLFLOW_TRACKING_URI or"
                " give --tracking-uri"
            ) from error
