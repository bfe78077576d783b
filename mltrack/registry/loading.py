"""Finds a registered model: its files, its answers, its origin.

Invariant: mltrack itself runs no code from the model's folder, not even the loader in it, which is for MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltrack import store
from mltrack.errors import ConfigurationError, TrackingError
from mltrack.journal import read_json
from mltrack.store import Store, model_tags
from mltrack.store import registry as verbs
from mltrack.tasks import task_named

PARENT, PARENT_MODEL, PARENT_RUN = "mltrack.parent", "mltrack.parent_model_id", "mltrack.parent_run_id"


@dataclass(frozen=True)
class Parent:
    """The registered version that a training starts from."""

    uri: str
    """models:/name/version: the version that an alias named when the training began."""
    folder: str
    model_id: str | None = None
    run_id: str | None = None

    @property
    def tags(self) -> dict[str, str]:
        """Tags of the run and of its version."""
        known = {PARENT: self.uri, PARENT_MODEL: self.model_id, PARENT_RUN: self.run_id}
        return {key: value for key, value in known.items() if value}


def find_parent(model_name: str, tracking_uri: str | None = None, saved_config: Path | None = None) -> Parent | None:
    """The version that `models:/...` means; None for a model of any other kind.

    Args:
        model_name: as the user gave it.
        tracking_uri: of the store.
        saved_config: config.json of the resumed run, whose parent stays the same if the alias has moved.

    Raises:
        TrackingError: no such model; the message names the store.
    """
    if not model_name.startswith("models:/"):
        return None
    connected = connect_existing(tracking_uri, model_name)
    wanted = _saved_parent(saved_config, model_name) or model_name
    uri = verbs.parse_uri(wanted)
    if uri.model_id or uri.name is None:
        return Parent(wanted, str(store.resolve(connected, wanted)), model_id=uri.model_id)
    if uri.alias:
        head = model_tags.read_head(connected, uri.name)
        number = head.aliases.get(uri.alias) if head is not None else None
    else:
        number = (
            next(iter(model_tags.newest_numbers(connected, uri.name, 1)), None)
            if uri.version == "latest"
            else int(uri.version or 0)
        )
    version = model_tags.read_version(connected, uri.name, number) if number is not None else None
    if version is None:
        store.resolve(connected, wanted)  # raises an error that says what is missing
        raise TrackingError(f"no {wanted} in {connected.shown_uri}")
    pinned = f"models:/{uri.name}/{number}"
    return Parent(pinned, str(store.resolve(connected, pinned)), model_id=version.model_id, run_id=version.run_id)


def local_folder(uri: str, tracking_uri: str | None = None) -> str:
    """A local folder with the files of `models:/name@alias` or `models:/name/version`.

    Raises:
        TrackingError: no such model; the message names the store.
    """
    return str(store.resolve(connect_existing(tracking_uri, uri), uri))


def model_folder(uri: str, tracking_uri: str | None = None) -> str:
    """The local folder of a registered model, or `uri` itself if it is a folder.

    Raises:
        ConfigurationError: the folder holds no model.
        TrackingError: no such model.
    """
    from mltrack.models.other_formats import WHOLE, content_of

    if uri.startswith("models:/"):
        return local_folder(uri, tracking_uri)
    folder = Path(uri)
    if folder.is_dir() and not any((folder / file).exists() for file in WHOLE) and (said := content_of(folder)):
        raise ConfigurationError(f"model_uri: {uri} {said}")
    if not (folder / "config.json").is_file():
        raise ConfigurationError(
            f"model_uri must be models:/name@alias, models:/name/version, or a folder with config.json, not '{uri}'"
        )
    return uri


def connect_existing(tracking_uri: str | None, wanted: str) -> Store:
    """The store to read from; a missing database is not created.

    Raises:
        TrackingError: there is no such database; the message names MLFLOW_TRACKING_URI.
    """
    address = store.default_tracking_uri(tracking_uri)
    file = store.database_file(address)
    if file is not None and not file.exists():
        raise TrackingError(
            f"no {wanted}: there is no database {address}; if it is elsewhere, set MLFLOW_TRACKING_URI or give"
            " --tracking-uri"
        )
    return store.connect(address)


def load(uri: str, tracking_uri: str | None = None) -> Any:
    """A registered model, or a folder that mltrack trained: .predict(["..."], params) answers as through MLflow.

    Args:
        uri: models:/name@alias, models:/name/version, models:/m-..., or a folder with config.json.
        tracking_uri: of the store.

    Raises:
        ConfigurationError: mltrack did not train the folder's model.
        CheckpointError: the weights are damaged or do not fit the configuration.
        TrackingError: no such model.
    """
    folder = model_folder(uri, tracking_uri)
    from mltrack.models.foreign_errors import one_line
    from mltrack.models.inspection import inspect_trained

    task = task_named(inspect_trained(uri, folder)["task"])
    with one_line(f"model_uri: {uri}"):
        return store.load_folder(folder, task.serving.file)


def predict(
    uri: str, texts: Sequence[str], tracking_uri: str | None = None, params: Mapping[str, Any] | None = None
) -> list[Any]:
    """A model's answers to texts: {label, score, scores} for a classification, the completion for a generation.

    Raises:
        ConfigurationError: an invalid text or param, or an answer that is not a number; and the errors of `load`.
    """
    model = load(uri, tracking_uri)
    try:
        return list(model.predict(list(texts), dict(params) if params else None))
    except ValueError as error:
        raise ConfigurationError(f"{uri}: {' '.join(str(error).split())}") from error


def folder_task(folder: str | Path) -> str:
    """The task that a model folder of mltrack was trained for.

    Raises:
        ConfigurationError: the folder's config.json does not say.
    """
    from mltrack.models.inspection import inspect_trained

    return str(inspect_trained(str(folder), folder)["task"])


def _saved_parent(config: Path | None, model_name: str) -> str | None:
    saved = (read_json(config) if config is not None else None) or {}
    parent, wanted = saved.get("parent"), verbs.parse_uri(model_name)
    if saved.get("model_name") != model_name or not isinstance(parent, str):
        return None
    held = verbs.parse_uri(parent)
    return parent if (held.name, held.model_id) == (wanted.name, wanted.model_id) else None
