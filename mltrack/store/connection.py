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
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mltrack.errors import MltrackError, TrackingError

ARTIFACT_TIMEOUT_S = 120
"""Seconds that one transfer of a file may be silent: the server answers an upload only when it has stored all of it."""

_TRY_AGAIN = {408, 425, 429}
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?):///(.*)$", re.DOTALL)
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
    request_timeout_s: float = 5.0
    artifact_roots: dict[str, str] = field(default_factory=dict)
    """run id -> artifact URI, which never changes"""

    @property
    def is_local(self) -> bool:
        """True for a database file on this machine: nobody to wait for, no server to start."""
        return self.tracking_uri.startswith(("sqlite:", "sqlite+"))

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

    Raises:
        StoreRejected: the working directory has a name that no URI can hold.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    match = _SQLITE.match(uri)
    if match is None or match[2].startswith(("/", ":memory:", "file:")) or not match[2]:
        return uri
    return database_uri(Path(_unquoted(match[2].partition("?")[0])).absolute(), like=uri)


def database_uri(file: Path, *, like: str) -> str:
    """The URI of an sqlite file, with driver and query of another one."""
    match = _SQLITE.match(like)
    assert match is not None
    path, query = _quoted(file), "".join(match[2].partition("?")[1:])
    quoted = path != file.as_posix() and match[1] == "sqlite"
    driver = "sqlite+pysqlite" if quoted else match[1]  # for a URI with no driver MLflow makes the folder of the path as it is quoted, too
    return f"{driver}:///{path}{query}"


def database_file(uri: str) -> Path | None:
    """The file of an sqlite database; None for any other store, and for a database in memory."""
    match = _SQLITE.match(uri)
    if match is None or not match[2] or match[2].startswith((":memory:", "file:")):
        return None
    return Path(_unquoted(match[2].partition("?")[0]))


def own_artifact_root() -> str | None:
    """The URI of the folder `mlruns` here, for the files of an embedded database's runs; None where MLflow finds it by its plain path.

    MLflow decodes a path like a URI, and writes that of the first experiment into an SQL statement as Python writes a string.
    """
    here = Path.cwd() / "mlruns"
    return here.as_uri() if re.search(r"[%?#\\'\"]", str(here)) or not str(here).isprintable() else None


def connect(tracking_uri: str, *, request_timeout_s: float = 5.0, create: bool = True) -> Store:
    """A client of `tracking_uri`; a database that does not exist yet is made, unless `create` is false.

    Sets MLflow's environment variables for this process and the processes it starts: no retries, `request_timeout_s` a request, no progress bars.
    Telemetry stays as the user set it.

    Raises:
        StoreUnavailable: the database cannot be opened. A dead server is found by `ping` or by the first request.
        StoreRejected: a URI that MLflow does not serve, a database of another MLflow version.
    """
    uri = default_tracking_uri(tracking_uri)
    if "://" not in uri and not uri.startswith(("sqlite:", "databricks", "uc:")):
        raise StoreRejected(f"tracking URI '{uri}' names a folder: {_FILE_STORE}")
    if uri.startswith("file:"):
        raise StoreRejected(f"tracking URI '{uri}': {_FILE_STORE}")
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, math.ceil(request_timeout_s)))
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    if (file := database_file(uri)) is not None:
        if not create and not file.exists():
            raise StoreUnavailable(f"{shown(uri)}: the database is gone; if it was moved, give its new place with --tracking-uri")
        if not file.parent.is_dir():
            raise StoreUnavailable(f"{shown(uri)}: the folder {file.parent} does not exist; make it, or set MLFLOW_TRACKING_URI to a database that exists")
    with translated(uri, "connecting"):
        import logging

        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        # mlflow shows the creation of a database's tables, and tracebacks of what we translate, at these loggers.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with _alone(uri):
            if file is not None and (root := own_artifact_root()) is not None:
                from mlflow.tracking._tracking_service.utils import _get_store

                _get_store(uri, root)  # a new database is made with this place for its first experiment
            return Store(tracking_uri=uri, client=MlflowClient(tracking_uri=uri), request_timeout_s=request_timeout_s)


def import_client(tracking_uri: str) -> None:
    """Import what a connection will need: two seconds of which nothing is asked, made or written."""
    with translated(tracking_uri, "importing mlflow"):
        import mlflow.tracking

        if tracking_uri.partition("+")[0].partition(":")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
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
def without_autologging() -> Iterator[None]:
    """Inside, MLflow logs nothing by itself: its autologging of scikit-learn would make a run and a pickled model of each baseline."""
    if "mlflow" not in sys.modules:
        yield
        return
    from mlflow.utils.autologging_utils import disable_autologging

    with disable_autologging():
        yield


@contextmanager
def translated(where: Store | str, doing: str) -> Iterator[None]:
    """Turns what goes wrong inside into StoreUnavailable or StoreRejected: "<uri>: <doing>: <first line of the reason>"."""
    uri = where.shown_uri if isinstance(where, Store) else shown(where)
    try:
        yield
    except (MltrackError, KeyboardInterrupt):
        raise
    except Exception as error:
        kind, reason = _judged(error)
        if kind is None:
            raise
        if _http_status(error) in (401, 403):
            reason = _denied(_http_status(error), doing)
        raise kind(f"{uri}: {doing}: {reason}") from error


@contextmanager
def patient(store: Store) -> Iterator[None]:
    """Inside, a request may take ARTIFACT_TIMEOUT_S: for transfers of files."""
    before = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT")
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(ARTIFACT_TIMEOUT_S, math.ceil(store.request_timeout_s)))
    try:
        yield
    finally:
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = before or str(max(1, math.ceil(store.request_timeout_s)))


@contextmanager
def as_process_default(store: Store) -> Iterator[None]:
    """Inside, MLflow's process-wide tracking URI is the store's: the few calls that look there, whatever their client was given."""
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    before = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        with _use_tracking_uri(store.tracking_uri):
            yield
    finally:
        if before is not None:  # MLflow takes the variable away where the URI had not been set by a call
            os.environ["MLFLOW_TRACKING_URI"] = before


def is_missing(error: BaseException) -> bool:
    """True where the store said that the thing asked for does not exist."""
    cause = error.__cause__ if isinstance(error, StoreRejected) else error
    return getattr(cause, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND") or _http_status(cause) == 404


def is_denied(error: BaseException) -> bool:
    """True where the store said that this user may not."""
    return _http_status(error.__cause__ if isinstance(error, StoreRejected) else error) == 403


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


@cache
def _paths_are_quoted() -> bool:
    """SQLAlchemy decodes the path in a URI since 2.1; before, it takes it as it is, and nothing can be said for a '?'."""
    major, minor = metadata.version("sqlalchemy").split(".")[:2]
    return (int(major), int(minor)) >= (2, 1)


def _quoted(path: Path) -> str:
    text = path.as_posix()
    if (not text.isascii() and text != os.fsencode(path).decode("utf-8", "replace")) or ("?" in text and not _paths_are_quoted()):
        raise StoreRejected(
            f"MLflow cannot keep a database in a folder of this name: {ascii(text)[1:-1]}; use another folder, set MLFLOW_TRACKING_URI, or use --offline true"
        )
    return re.sub(r"[%?\x00-\x1f\x7f]", lambda match: f"%{ord(match[0]):02X}", text) if _paths_are_quoted() else text


def _unquoted(path: str) -> str:
    return unquote(path) if _paths_are_quoted() else path


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """One process at a time opens a database file: two that make its tables at once both fail, and MLflow's own lock leaves a gap (seen)."""
    if not uri.startswith(("sqlite:", "sqlite+")) or os.name != "posix":
        yield
        return
    import fcntl
    import hashlib
    import tempfile

    name = f"mltrack-{os.getuid()}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
    with open(Path(tempfile.gettempdir()) / name, "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _denied(status: int | None, doing: str) -> str:
    """What a server with users means by 401 and 403: MLflow's client repeats its endpoint and its status, and names no permission."""
    if status == 401:
        return "not authenticated (401); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    needed = {"looking": "READ", "reading": "READ", "listing": "READ", "fetching": "READ", "asking": "READ", "deleting": "MANAGE", "removing": "MANAGE"}
    permission = needed.get(doing.partition(" ")[0], "EDIT")
    return f"permission denied (403){f' for user {user}' if user else ''}; it takes the permission {permission}, which its owner or an administrator grants"


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
        return (StoreUnavailable if later else StoreRejected), reason
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return StoreUnavailable, reason
    if isinstance(error, ModuleNotFoundError):
        return StoreRejected, f"{reason}; install the package that this kind of store needs"
    if isinstance(error, UnicodeError | OverflowError) or (isinstance(error, ValueError) and "out of range" in reason):  # a value that no request can carry
        return StoreRejected, reason
    return None, reason


def _later(text: str, code: str) -> type[StoreUnavailable]:
    """Which kind of unavailable: MLflow calls its client's transport errors INTERNAL_ERROR too, and an unknown HTTP status of a gateway."""
    if "timed out" in text or "timeout exception" in text or code == "DEADLINE_EXCEEDED":
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
