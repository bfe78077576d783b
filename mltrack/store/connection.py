"""Connects to an MLflow store.

Invariant: no call blocks for minutes (MLflow's retries are off, time-outs are short and ours), and every error is one
of `mltrack.store.refusal`. Only the client sees credentials in a URI.

    store = connect(default_tracking_uri(None))
    with translated(store, "reading the run"):
        store.client.get_run(run_id)
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from mltrack.addresses import escaped, is_ambiguous, with_credentials, without_secrets
from mltrack.errors import printable
from mltrack.store.database import (
    SERVED,
    SQLITE,
    alone,
    answering,
    database_file,
    database_uri,
    own_artifact_root,
    patient_while_made,
    unquoted,
)
from mltrack.store.refusal import NO_FILE_STORE, StoreRejected, StoreUnavailable, translated
from mltrack.store.settings import SHORTEST_TIMEOUT_S, own_settings

ARTIFACT_TIMEOUT_S = 120
"""Seconds that a file transfer may be silent, in addition to those for its bytes."""
SLOWEST_BYTES_PER_S = 1_000_000
"""A server answers an upload only after storing all of it; a slower storage behind it counts as hanging."""
_DATABASES = ("sqlite", *SERVED)
_INDIRECT = ("", "file", "runs", "models")
"""Schemes of artifact URIs that name, or lead to, a folder on this machine."""


class ServersOwnFolder(StoreRejected):
    """A server keeps artifacts in a folder of its own machine, which does not exist here.

    Args:
        store: the server.
        uri: the folder, as the server names it.
    """

    def __init__(self, store: Store, uri: str):
        super().__init__(
            f"{store.shown_uri} keeps these artifacts in {printable(uri)!r}, a folder of its own machine, so nothing is"
            " read or written there from here; start the server with --artifacts-destination FOLDER and choose a new"
            " --experiment-name, or on the server's machine give its database as --tracking-uri"
        )


@dataclass
class Store:
    """A connection: the store's address and a client for it."""

    tracking_uri: str = field(repr=False)
    """With the user's credentials; `shown_uri` is for messages and files."""
    client: Any
    """mlflow.MlflowClient"""
    request_timeout_s: float = SHORTEST_TIMEOUT_S
    artifact_roots: dict[str, str] = field(default_factory=dict)
    """run id -> artifact URI, which never changes"""
    server_version: str | None = None
    """Of a server that was asked (`store.server_version`); empty where it did not say."""

    @property
    def is_local(self) -> bool:
        """True for a database file on this machine, which needs no server."""
        return self.tracking_uri.startswith(("sqlite:", "sqlite+"))

    @property
    def is_database(self) -> bool:
        """True if this process reads the tables itself, and no server says where files are."""
        return self.tracking_uri.partition(":")[0].partition("+")[0] in _DATABASES

    @property
    def shown_uri(self) -> str:
        """The URI without credentials, for messages and files."""
        return without_secrets(self.tracking_uri)


def default_tracking_uri(given: str | None = None) -> str:
    """`given`, else MLFLOW_TRACKING_URI, else mlflow.db in the working directory; sqlite paths become absolute.

    If `given` names the server of MLFLOW_TRACKING_URI without credentials, as a run directory does, those of the
    variable are used. A plain path (./mlruns, file:...) is returned unchanged; connect says what to use instead.

    Raises:
        StoreRejected: no URI can hold the working directory's name.
    """
    environment = os.environ.get("MLFLOW_TRACKING_URI")
    uri = with_credentials(given, environment) if given else environment or "sqlite:///mlflow.db"
    match = SQLITE.match(uri)
    if match is None or match[2].startswith(("/", ":memory:", "file:")) or not match[2]:
        return uri
    return database_uri(Path(unquoted(match[2].partition("?")[0])).absolute(), like=uri)


def served_uri(given: str | None = None) -> str:
    """The URI of `default_tracking_uri`, after checking that MLflow serves it; does not connect.

    Raises:
        StoreRejected: it names a folder, or its password and path cannot be told apart.
    """
    uri = default_tracking_uri(given)
    if is_ambiguous(uri):
        raise StoreRejected(
            f"tracking URI '{without_secrets(uri)}': a '/' comes before the '@', so that a password and a path look"
            " alike; write '/' as %2F in a password, or '@' as %40 in a path"
        )
    if "://" not in uri and not uri.startswith(("sqlite:", "databricks", "uc:")):
        raise StoreRejected(f"tracking URI '{without_secrets(uri)}' names a folder: {NO_FILE_STORE}")
    if uri.startswith("file:"):
        raise StoreRejected(f"tracking URI '{uri}': {NO_FILE_STORE}")
    return uri


def connect(tracking_uri: str, *, request_timeout_s: float = SHORTEST_TIMEOUT_S, create: bool = True) -> Store:
    """A client of `tracking_uri`; a missing database is created, unless `create` is false.

    Args:
        request_timeout_s: how long one request may take, inside `translated`. MLflow itself, its environment variables
            and other uses of MLflow in this process are not affected.

    Raises:
        StoreUnavailable: the database cannot be opened, or is being created. Only `ping` or the first request finds a
            dead server.
        StoreRejected: MLflow does not serve the URI, or the database is of another MLflow version.
    """
    uri = served_uri(tracking_uri)
    if (file := database_file(uri)) is not None:
        if not create and not file.exists():
            raise StoreUnavailable(
                f"{without_secrets(uri)}: the database is gone; if it was moved, give its new place with --tracking-uri"
            )
        if not file.parent.is_dir():
            raise StoreUnavailable(
                f"{without_secrets(uri)}: the folder {file.parent} does not exist; make it, or set MLFLOW_TRACKING_URI"
                " to a database that exists"
            )
    uri = escaped(uri)
    with patient_while_made(file), translated(uri, "connecting"):
        from mlflow.tracking import MlflowClient

        with alone(uri):
            if file is not None and (root := own_artifact_root()) is not None:
                from mlflow.tracking._tracking_service.utils import _get_store

                _get_store(uri, root)  # a new database stores this place for its first experiment
            address = answering(uri, request_timeout_s)
            client: Any = MlflowClient(tracking_uri=address, registry_uri=address)
            client._raise_if_prompt = _ask_nothing
            return Store(tracking_uri=uri, client=client, request_timeout_s=request_timeout_s)


def _ask_nothing(name: str) -> None:
    """Replaces a check in MLflow's client, which reads all versions of a model before each write to see that it is no
    prompt; `registry.register` checks that.
    """


def import_client(tracking_uri: str) -> None:
    """Import in advance what a connection needs, which takes two seconds; nothing is requested or written."""
    with translated(tracking_uri, "importing mlflow"):
        import mlflow.tracking

        if tracking_uri.partition("+")[0].partition(":")[0] in _DATABASES:
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def ping(store: Store) -> None:
    """Send one small request.

    Raises:
        StoreUnavailable: no answer; the message says what to start or which variable to set.
    """
    try:
        with translated(store, "asking for an experiment"):
            store.client.search_experiments(max_results=1)
    except StoreUnavailable as error:
        remedy = (
            "check that nothing else holds the database"
            if store.is_local
            else "start it, or set MLFLOW_TRACKING_URI to where it runs, or use --offline true"
        )
        raise StoreUnavailable(f"{error}; {remedy}") from error


def check_writable(store: Store) -> None:
    """Set the tag mltrack.doctor on the oldest experiment.

    Raises:
        StoreUnavailable, StoreRejected: the store can be read but not written.
    """
    with translated(store, "writing a tag"):
        experiments = store.client.search_experiments(max_results=1, order_by=["experiment_id ASC"])
        if experiments:
            store.client.set_experiment_tag(experiments[0].experiment_id, "mltrack.doctor", "was here")


class ActiveRun(NamedTuple):
    """The MLflow run that is active in this thread."""

    run_id: str
    tracking_uri: str
    experiment_id: str


def active_run() -> ActiveRun | None:
    """The MLflow run that is active in this thread; None if mlflow is not imported yet."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or not hasattr(mlflow, "active_run"):
        return None
    run = mlflow.active_run()
    return (
        None
        if run is None
        else ActiveRun(run.info.run_id, default_tracking_uri(mlflow.get_tracking_uri()), str(run.info.experiment_id))
    )


@contextmanager
def without_autologging() -> Iterator[None]:
    """Inside, MLflow logs nothing by itself: its autologging of scikit-learn would make a run and a pickled model of
    each baseline.

    The switch is for the whole process, so it is used only around the one call that needs it.
    """
    if "mlflow" not in sys.modules:
        yield
        return
    from mlflow.utils.autologging_utils import disable_autologging

    with disable_autologging():
        yield


@contextmanager
def artifact_timeout(store: Store, num_bytes: int = 0) -> Iterator[None]:
    """For file transfers: inside, a request may take ARTIFACT_TIMEOUT_S plus the time of `num_bytes` at
    SLOWEST_BYTES_PER_S.
    """
    with own_settings(
        MLFLOW_HTTP_REQUEST_TIMEOUT=max(
            ARTIFACT_TIMEOUT_S + num_bytes // SLOWEST_BYTES_PER_S, math.ceil(store.request_timeout_s)
        )
    ):
        yield


@contextmanager
def without_parts() -> Iterator[None]:
    """Inside, a large file goes through the server in one piece."""
    with own_settings(MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=False):
        yield


@contextmanager
def as_default(store: Store) -> Iterator[None]:
    """Inside, in this thread, clients that MLflow makes without a tracking URI use the store; a few of its calls make
    such clients, whatever URI their own client has.
    """
    with own_settings(tracking_uri=store.client.tracking_uri):
        yield


def all_pages(request: Callable[[str | None], Any]) -> Iterator[Any]:
    """The items of all pages of a search that takes and returns page tokens."""
    token = None
    while True:
        page = request(token)
        yield from page
        token = page.token
        if not token:
            return


def local_path(store: Store, uri: str) -> Path | None:
    """The folder that an artifact URI names on this machine, or None if it names none.

    Raises:
        ServersOwnFolder: the URI is a folder on a server's machine.
    """
    parts = urlsplit(uri)
    if not store.is_database and parts.scheme in _INDIRECT:
        raise ServersOwnFolder(store, uri)
    if parts.scheme == "":
        return Path(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" and parts.netloc in ("", "localhost") else None
