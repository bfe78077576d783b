"""One way to an MLflow store, and the two errors that it can end in.

Invariant: no call blocks for minutes (MLflow's own retries are off, time-outs are short and ours), and no exception of mlflow, requests, sqlalchemy or
botocore leaves this package (a missing local file stays FileNotFoundError): what may work later is StoreUnavailable, what will be refused again is StoreRejected, each with one line of text.

    store = connect(default_tracking_uri(None))
    with translated(store, "reading the run"):
        store.client.get_run(run_id)
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mltrack.errors import MltrackError, TrackingError
from mltrack.store.settings import own_settings

SHORTEST_TIMEOUT_S = 5.0
ARTIFACT_TIMEOUT_S = 120
"""Seconds that one transfer of a file may be silent: the server answers an upload only when it has stored all of it."""

_TRY_AGAIN = {408, 425, 429}
_SERVED = ("postgresql", "mysql", "mssql")
"""Databases that MLflow talks to without a tracking server."""
_FILE_STORE = "the file store is no longer served by MLflow; use sqlite:///mlflow.db or a server, and move old data by 'mlflow migrate-filestore'"


class StoreUnavailable(TrackingError):
    """The store cannot be reached or cannot answer now: try again later."""


class StoreSlow(StoreUnavailable):
    """The store did not answer in time: a longer wait or a smaller request may do."""


class StoreFailed(StoreUnavailable):
    """The store answered that it failed on this request: its own trouble, or a value that it cannot hold. Others may go through."""


class StoreRejected(TrackingError):
    """The store answered and said no: the same request will be refused again."""


@dataclass
class Store:
    """A connection: where, and the client that talks to it."""

    tracking_uri: str
    client: Any
    """mlflow.MlflowClient"""
    request_timeout_s: float = SHORTEST_TIMEOUT_S
    artifact_roots: dict[str, str] = field(default_factory=dict)
    """run id -> artifact URI, which never changes"""

    @property
    def is_local(self) -> bool:
        """True for a database file on this machine: nobody to wait for, no server to start."""
        return self.tracking_uri.startswith("sqlite:")

    @property
    def shown_uri(self) -> str:
        """The URI for people: without a password."""
        return shown(self.tracking_uri)


def shown(uri: str) -> str:
    """`uri` with its password taken out."""
    return re.sub(r"(://[^:/@\s]+):[^/@\s]*@", r"\1:***@", uri)


def default_tracking_uri(given: str | None = None) -> str:
    """`given`, else MLFLOW_TRACKING_URI, else mlflow.db in the working directory; a relative sqlite path made absolute.

    A plain path (./mlruns, file:...) is returned as it is; connect says what to use instead.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    match = re.match(r"(sqlite(?:\+\w+)?):///(.*)$", uri, re.DOTALL)
    if match is None or match[2].startswith(("/", ":memory:", "file:")) or not match[2]:
        return uri
    path, question, query = match[2].partition("?")
    return f"{match[1]}:///{Path(path).absolute().as_posix()}{question}{query}"


def connect(tracking_uri: str, *, request_timeout_s: float = SHORTEST_TIMEOUT_S) -> Store:
    """A client of `tracking_uri`; a database that does not exist yet is made.

    Args:
        request_timeout_s: how long one request may take, inside `translated`. MLflow itself, its environment variables and what else this process does
            with MLflow stay as they are.

    Raises:
        StoreUnavailable: the database cannot be opened. A dead server is found by `ping` or by the first request.
        StoreRejected: a URI that MLflow does not serve, a database of another MLflow version.
    """
    uri = default_tracking_uri(tracking_uri)
    if "://" not in uri and not uri.startswith(("sqlite:", "databricks", "uc:")):
        raise StoreRejected(f"tracking URI '{uri}' names a folder: {_FILE_STORE}")
    if uri.startswith("file:"):
        raise StoreRejected(f"tracking URI '{uri}': {_FILE_STORE}")
    if uri.startswith("sqlite:"):
        parent = Path(uri.split(":///", 1)[1].partition("?")[0]).parent
        if not parent.is_dir():
            raise StoreUnavailable(f"{shown(uri)}: the folder {parent} does not exist; make it, or set MLFLOW_TRACKING_URI to a database that exists")
    with translated(uri, "connecting"):
        from mlflow.tracking import MlflowClient

        with _alone(uri):
            return Store(tracking_uri=uri, client=MlflowClient(tracking_uri=_answering(uri, request_timeout_s)), request_timeout_s=request_timeout_s)


def import_client(tracking_uri: str) -> None:
    """Import what a connection will need: two seconds of which nothing is asked, made or written."""
    with translated(tracking_uri, "importing mlflow"):
        import mlflow.tracking

        if tracking_uri.startswith(("sqlite", *_SERVED)):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def ping(store: Store) -> None:
    """One small request.

    Raises:
        StoreUnavailable: nobody answers; the message says how a server is started or which variable to set.
    """
    try:
        with translated(store, "asking for an experiment"):
            store.client.search_experiments(max_results=1)
    except StoreUnavailable as error:
        remedy = (
            "check that nothing else holds the database" if store.is_local else "start it, or set MLFLOW_TRACKING_URI to where it runs, or use --offline true"
        )
        raise StoreUnavailable(f"{error}; {remedy}") from error


def check_writable(store: Store) -> None:
    """Leave the tag mltrack.doctor on the oldest experiment.

    Raises:
        StoreUnavailable, StoreRejected: the store can be read but not written.
    """
    with translated(store, "writing a tag"):
        experiments = store.client.search_experiments(max_results=1, order_by=["experiment_id ASC"])
        if experiments:
            store.client.set_experiment_tag(experiments[0].experiment_id, "mltrack.doctor", "was here")


def active_run() -> tuple[str, str] | None:
    """(run id, tracking URI) of the MLflow run that is active in this thread; looked at only where mlflow is imported already."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or not hasattr(mlflow, "active_run"):
        return None
    run = mlflow.active_run()
    return None if run is None else (run.info.run_id, default_tracking_uri(mlflow.get_tracking_uri()))


@contextmanager
def translated(where: Store | str, doing: str) -> Iterator[None]:
    """Inside, MLflow neither retries nor waits longer than the store's time-out, and what goes wrong becomes StoreUnavailable or StoreRejected.

    The message is "<uri>: <doing>: <first line of the reason>".
    """
    uri = where.shown_uri if isinstance(where, Store) else shown(where)
    timeout_s = where.request_timeout_s if isinstance(where, Store) else SHORTEST_TIMEOUT_S
    try:
        with own_settings(MLFLOW_HTTP_REQUEST_TIMEOUT=max(1, math.ceil(timeout_s))):
            yield
    except (MltrackError, KeyboardInterrupt):
        raise
    except Exception as error:
        kind, reason = _judged(error)
        if kind is None:
            raise
        raise kind(f"{uri}: {doing}: {reason}") from error


@contextmanager
def patient(store: Store) -> Iterator[None]:
    """Inside, a request may take ARTIFACT_TIMEOUT_S: for transfers of files."""
    with own_settings(MLFLOW_HTTP_REQUEST_TIMEOUT=max(ARTIFACT_TIMEOUT_S, math.ceil(store.request_timeout_s))):
        yield


@contextmanager
def as_default(store: Store) -> Iterator[None]:
    """Inside, in this thread, clients that MLflow makes without a tracking URI talk to the store: the few calls that do so, whatever their client was given."""
    with own_settings(tracking_uri=store.client.tracking_uri):
        yield


def is_missing(error: BaseException) -> bool:
    """True where the store said that the thing asked for does not exist."""
    cause = error.__cause__ if isinstance(error, StoreRejected) else error
    return getattr(cause, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND") or _http_status(cause) == 404


def already_exists(error: BaseException) -> bool:
    """True where the store refused because somebody else was first."""
    cause = error.__cause__ if isinstance(error, StoreRejected) else error
    return getattr(cause, "error_code", "") in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")


def local_path(uri: str) -> Path | None:
    """The folder that an artifact URI names on this machine, or None."""
    parts = urlsplit(uri)
    if parts.scheme == "":
        return Path(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" and parts.netloc in ("", "localhost") else None


def _answering(uri: str, timeout_s: float) -> str:
    """The URI for MLflow: that of a database on a server with time-outs for its driver, once the server has answered.

    MLflow would try for 101 s to reach one that refuses, and wait without end for one that is silent.
    """
    if not uri.startswith(_SERVED):
        return uri
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    seconds = max(2, math.ceil(timeout_s))
    timeouts = {
        "postgresql": {"connect_timeout": seconds, "tcp_user_timeout": 4000 * seconds} if url.get_driver_name().startswith("psycopg") else {},
        "mysql": {"connect_timeout": seconds} if url.get_driver_name() in ("pymysql", "mysqldb") else {},
    }.get(url.get_backend_name(), {})
    url = url.update_query_dict({name: str(value) for name, value in timeouts.items() if name not in url.query})
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect():
        return url.render_as_string(hide_password=False)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time opens a database file: two that make its tables at once both fail, and MLflow's own lock leaves a gap (seen)."""
    if not uri.startswith("sqlite:") or os.name != "posix":
        yield
        return
    import fcntl
    import hashlib
    import tempfile

    name = f"mltrack-{os.getuid()}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
    with open(Path(tempfile.gettempdir()) / name, "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _judged(error: Exception) -> tuple[type[TrackingError] | None, str]:
    home = type(error).__module__.partition(".")[0]
    reason = _first_line(error)
    status = _http_status(error)
    if home == "mlflow":
        code = getattr(error, "error_code", "")
        if "out-of-date" in reason or code == "INVALID_STATE" or status == 501:
            return StoreRejected, reason
        if "file store" in str(error).lower() or "filesystem" in str(error).lower():
            return StoreRejected, f"{reason}: {_FILE_STORE}"
        if code == "TEMPORARILY_UNAVAILABLE" or status is None or status >= 500 or status in _TRY_AGAIN:
            return _later(str(error), code), reason
        return StoreRejected, reason
    if home in ("requests", "urllib3", "botocore", "boto3", "s3transfer"):
        permanent = status is not None and status < 500 and status not in _TRY_AGAIN
        return (StoreRejected if permanent else _later(str(error), "")), reason
    if home == "sqlalchemy":
        # Operational and interface errors: no server, a lock, a full disk. The others are about the statement or the driver.
        later = type(error).__name__ in ("OperationalError", "InterfaceError", "TimeoutError", "InternalError")
        return (_later(str(error), "") if later else StoreRejected), reason
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return StoreUnavailable, reason
    if isinstance(error, ModuleNotFoundError):
        return StoreRejected, f"{reason}; install the package that this kind of store needs"
    if isinstance(error, UnicodeError | OverflowError) or (isinstance(error, ValueError) and "out of range" in reason):  # a value that no request can carry
        return StoreRejected, reason
    return None, reason


def _later(text: str, code: str) -> type[StoreUnavailable]:
    """Which kind of unavailable: MLflow calls its client's transport errors INTERNAL_ERROR too, and an unknown HTTP status of a gateway."""
    if "timed out" in text or "timeout exception" in text or "timeout expired" in text or code == "DEADLINE_EXCEEDED":
        return StoreSlow
    answered = not text.startswith("API request to ") or "failed with error code 500 " in text or "too many 500 error responses" in text
    return StoreFailed if code == "INTERNAL_ERROR" and answered else StoreUnavailable


def _http_status(error: BaseException | None) -> int | None:
    if error is None:
        return None
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's ClientError
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = getattr(response, "status_code", None)
    if code is not None:
        return int(code)
    status = getattr(error, "get_http_status_code", None)
    return int(status()) if callable(status) else None


def _first_line(error: Exception) -> str:
    text = shown(str(error)).strip() or type(error).__name__
    text = re.sub(r"^\((?:[\w.]+)\)\s*", "", text.splitlines()[0].strip())
    refused = re.search(r"(Connection refused|timed out|Name or service not known|No route to host|Failed to resolve)", text)
    if refused and len(text) > 160:
        text = refused[1]
    return text if len(text) <= 300 else text[:297] + "..."
