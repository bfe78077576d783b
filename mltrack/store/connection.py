"""One way to an MLflow store, and the two errors that it can end in.

Invariant: no call blocks for minutes (MLflow's own retries are off, time-outs are short and ours), and no exception of mlflow, requests, sqlalchemy or
botocore leaves this package (a missing local file stays FileNotFoundError): what may work later is StoreUnavailable, what will be refused again is StoreRejected, each with one line of text.
Credentials in a URI are for the client alone: no message holds them, the messages of the exceptions behind it neither.

    store = connect(default_tracking_uri(None))
    with translated(store, "reading the run"):
        store.client.get_run(run_id)
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from mltrack.addresses import escaped, is_ambiguous, redact, with_credentials, without_secrets
from mltrack.errors import MltrackError, TrackingError, printable
from mltrack.store.settings import own_settings

SHORTEST_TIMEOUT_S = 5.0
ARTIFACT_TIMEOUT_S = 120
"""Seconds that one transfer of a file may be silent, beside those for its bytes."""
SLOWEST_BYTES_PER_S = 1_000_000
"""A server answers an upload only when it has stored all of it; a slower storage behind it counts as one that hangs."""

_TRY_AGAIN = {408, 425, 429}
_LONGEST_WAIT_S = 60.0
"""For another process that makes the tables of a database, which takes seconds."""
_SERVED = ("postgresql", "mysql", "mssql")
"""Databases that MLflow talks to without a tracking server."""
_DATABASES = ("sqlite", *_SERVED)
_INDIRECT = ("", "file", "runs", "models")
"""Schemes of artifact URIs that are, or lead to, a folder of this machine."""
_DENIED = {401, 403, 407}
_DENIED_CODES = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestExpired", "RequestTimeTooSkewed"}
"""With S3 some of these are the status 400."""
_DENIED_NAMES = re.compile("Credential|Token|Unauthorized|Authentication|RefreshError|ProfileNotFound")
"""Of the errors of cloud libraries that have found no credentials to send, and so have no answer of a server."""
_STORE_WIDE_CODES = {"NoSuchBucket", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
"""A bucket that is missing or lies elsewhere: no file is to blame, and somebody may set it right."""
_CLOUDS = ("requests", "urllib3", "botocore", "boto3", "s3transfer", "google", "azure")
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?):///(.*)$", re.DOTALL)
_FILE_STORE = "the file store is no longer served by MLflow; use sqlite:///mlflow.db or a server, and move old data by 'mlflow migrate-filestore'"


class StoreUnavailable(TrackingError):
    """The store cannot be reached or cannot answer now: try again later."""


class StoreSlow(StoreUnavailable):
    """The store did not answer in time: a longer wait or a smaller request may do."""


class StoreFailed(StoreUnavailable):
    """The store answered that it failed on this request: its own trouble, or a value that it cannot hold. Others may go through."""


class StoreDenied(StoreUnavailable):
    """The store refuses the credentials, or they have expired: the same request may go through with others."""


class StoreRejected(TrackingError):
    """The store answered and said no: the same request will be refused again."""


class ServersOwnFolder(StoreRejected):
    """A server keeps artifacts in a folder of its own machine, which names nothing here.

    Args:
        store: the server.
        uri: the folder, as the server names it.
    """

    def __init__(self, store: Store, uri: str):
        super().__init__(
            f"{store.shown_uri} keeps these artifacts in {printable(uri)!r}, a folder of its own machine, so nothing is read or written there from here; "
            "start the server with --artifacts-destination FOLDER and choose a new --experiment-name, or on the server's machine give its database as "
            "--tracking-uri"
        )


@dataclass
class Store:
    """A connection: where, and the client that talks to it."""

    tracking_uri: str = field(repr=False)
    """With the user's credentials; `shown_uri` is what is shown and written."""
    client: Any
    """mlflow.MlflowClient"""
    request_timeout_s: float = SHORTEST_TIMEOUT_S
    artifact_roots: dict[str, str] = field(default_factory=dict)
    """run id -> artifact URI, which never changes"""

    @property
    def is_local(self) -> bool:
        """True for a database file on this machine: nobody to wait for, no server to start."""
        return self.tracking_uri.startswith(("sqlite:", "sqlite+"))

    @property
    def is_database(self) -> bool:
        """True where this process reads the tables itself, and no server says where files lie."""
        return self.tracking_uri.partition(":")[0].partition("+")[0] in _DATABASES

    @property
    def shown_uri(self) -> str:
        """The URI for people and files: without credentials."""
        return without_secrets(self.tracking_uri)


def default_tracking_uri(given: str | None = None) -> str:
    """`given`, else MLFLOW_TRACKING_URI, else mlflow.db in the working directory; a relative sqlite path made absolute.

    Where `given` names the server of MLFLOW_TRACKING_URI without credentials, as a run directory does, those of the variable are used.
    A plain path (./mlruns, file:...) is returned as it is; connect says what to use instead.

    Raises:
        StoreRejected: the working directory has a name that no URI can hold.
    """
    environment = os.environ.get("MLFLOW_TRACKING_URI")
    uri = with_credentials(given, environment) if given else environment or "sqlite:///mlflow.db"
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


def connect(tracking_uri: str, *, request_timeout_s: float = SHORTEST_TIMEOUT_S, create: bool = True) -> Store:
    """A client of `tracking_uri`; a database that does not exist yet is made, unless `create` is false.

    Args:
        request_timeout_s: how long one request may take, inside `translated`. MLflow itself, its environment variables and what else this process does
            with MLflow stay as they are.

    Raises:
        StoreUnavailable: the database cannot be opened. A dead server is found by `ping` or by the first request.
        StoreRejected: a URI that MLflow does not serve, a database of another MLflow version.
    """
    uri = default_tracking_uri(tracking_uri)
    if is_ambiguous(uri):
        raise StoreRejected(
            f"tracking URI '{without_secrets(uri)}': a '/' stands before the '@', so that a password and a path look alike; "
            "write '/' as %2F in a password, or '@' as %40 in a path"
        )
    if "://" not in uri and not uri.startswith(("sqlite:", "databricks", "uc:")):
        raise StoreRejected(f"tracking URI '{without_secrets(uri)}' names a folder: {_FILE_STORE}")
    if uri.startswith("file:"):
        raise StoreRejected(f"tracking URI '{uri}': {_FILE_STORE}")
    if (file := database_file(uri)) is not None:
        if not create and not file.exists():
            raise StoreUnavailable(f"{without_secrets(uri)}: the database is gone; if it was moved, give its new place with --tracking-uri")
        if not file.parent.is_dir():
            raise StoreUnavailable(
                f"{without_secrets(uri)}: the folder {file.parent} does not exist; make it, or set MLFLOW_TRACKING_URI to a database that exists"
            )
    uri = escaped(uri)
    with translated(uri, "connecting"):
        from mlflow.tracking import MlflowClient

        with _alone(uri):
            if file is not None and (root := own_artifact_root()) is not None:
                from mlflow.tracking._tracking_service.utils import _get_store

                _get_store(uri, root)  # a new database is made with this place for its first experiment
            client: Any = MlflowClient(tracking_uri=_answering(uri, request_timeout_s))
            client._raise_if_prompt = _ask_nothing
            return Store(tracking_uri=uri, client=client, request_timeout_s=request_timeout_s)


def _ask_nothing(name: str) -> None:
    """Before each write to a registered model MLflow's client reads all of its versions, to see that it is no prompt; `registry.register` looks."""


def import_client(tracking_uri: str) -> None:
    """Import what a connection will need: two seconds of which nothing is asked, made or written."""
    with translated(tracking_uri, "importing mlflow"):
        import mlflow.tracking

        if tracking_uri.partition("+")[0].partition(":")[0] in _DATABASES:
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


class ActiveRun(NamedTuple):
    """The MLflow run that is active in this thread."""

    run_id: str
    tracking_uri: str
    experiment_id: str


def active_run() -> ActiveRun | None:
    """The MLflow run that is active in this thread; looked at only where mlflow is imported already."""
    mlflow = sys.modules.get("mlflow")
    if mlflow is None or not hasattr(mlflow, "active_run"):
        return None
    run = mlflow.active_run()
    return None if run is None else ActiveRun(run.info.run_id, default_tracking_uri(mlflow.get_tracking_uri()), str(run.info.experiment_id))


@contextmanager
def without_autologging() -> Iterator[None]:
    """Inside, MLflow logs nothing by itself: its autologging of scikit-learn would make a run and a pickled model of each baseline.

    MLflow's switch is one of the process, so it is used around the one call that needs it.
    """
    if "mlflow" not in sys.modules:
        yield
        return
    from mlflow.utils.autologging_utils import disable_autologging

    with disable_autologging():
        yield


@contextmanager
def translated(where: Store | str, doing: str) -> Iterator[None]:
    """Inside, MLflow neither retries nor waits longer than the store's time-out, and what goes wrong becomes StoreUnavailable or StoreRejected.

    The message is "<uri>: <doing>: <first line of the reason>".
    """
    uri = where.tracking_uri if isinstance(where, Store) else where
    timeout_s = where.request_timeout_s if isinstance(where, Store) else SHORTEST_TIMEOUT_S
    try:
        with own_settings(MLFLOW_HTTP_REQUEST_TIMEOUT=max(1, math.ceil(timeout_s))):
            yield
    except (MltrackError, KeyboardInterrupt):
        raise
    except Exception as error:
        _clean(error)
        kind, reason = _judged(error)
        if kind is None:
            raise
        if _http_status(error) == 403 and type(error).__module__.startswith("mlflow"):
            reason = _forbidden(doing)
        raise kind(f"{without_secrets(uri)}: {doing}: {reason}{_missing_credentials(uri, reason)}") from error


def credentials_place(uri: str) -> str:
    """Where a user puts the credentials for this server, as the end of a sentence."""
    if uri.startswith("http"):
        return "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    return f"MLFLOW_TRACKING_URI or --tracking-uri{', PGPASSWORD or ~/.pgpass' if uri.startswith('postgres') else ''}"


@contextmanager
def patient(store: Store, num_bytes: int = 0) -> Iterator[None]:
    """Inside, a request may take ARTIFACT_TIMEOUT_S and as long as `num_bytes` take at SLOWEST_BYTES_PER_S: for transfers of files."""
    with own_settings(MLFLOW_HTTP_REQUEST_TIMEOUT=max(ARTIFACT_TIMEOUT_S + num_bytes // SLOWEST_BYTES_PER_S, math.ceil(store.request_timeout_s))):
        yield


@contextmanager
def without_parts() -> Iterator[None]:
    """Inside, a large file goes through the server in one piece."""
    with own_settings(MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=False):
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


def is_denied(error: BaseException) -> bool:
    """True where the store said that this user may not."""
    return _http_status(error.__cause__ if isinstance(error, StoreDenied) else error) == 403


def already_exists(error: BaseException) -> bool:
    """True where the store refused because somebody else was first."""
    cause = error.__cause__ if isinstance(error, StoreRejected) else error
    return getattr(cause, "error_code", "") in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS")


def local_path(store: Store, uri: str) -> Path | None:
    """The folder that an artifact URI names on this machine, or None where it names none.

    Raises:
        ServersOwnFolder: a server named it, whose folders are not this machine's.
    """
    parts = urlsplit(uri)
    if not store.is_database and parts.scheme in _INDIRECT:
        raise ServersOwnFolder(store, uri)
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
    """One process at a time opens a database file: two that make its tables at once both fail, and MLflow's own lock leaves a gap (seen).

    The lock lies beside the database and is only opened, never written to. Where there can be none, or another user holds it, the database is opened without.
    """
    lock = _lock_beside(uri)
    if lock is None:
        yield
        return
    try:
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while not _try_lock(lock) and time.monotonic() < deadline:
            time.sleep(0.02)
        yield
    finally:
        os.close(lock)


def _lock_beside(uri: str) -> int | None:
    """The descriptor of the file .NAME.lock beside an SQLite database; no link is followed, and nothing that is no file is waited for."""
    path = database_file(uri)
    if path is None or not path.is_absolute() or os.name != "posix":
        return None
    try:
        return os.open(path.with_name(f".{path.name}.lock"), os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError:
        return None


def _try_lock(descriptor: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _forbidden(doing: str) -> str:
    """What a server with users means by 403: MLflow's client repeats its endpoint and its status, and names no permission."""
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    needed = {"looking": "READ", "reading": "READ", "listing": "READ", "fetching": "READ", "asking": "READ", "deleting": "MANAGE", "removing": "MANAGE"}
    permission = needed.get(doing.partition(" ")[0], "EDIT")
    return f"permission denied (403){f' for user {user}' if user else ''}; it takes the permission {permission}, which its owner or an administrator grants"


def _judged(error: Exception) -> tuple[type[TrackingError] | None, str]:
    home = type(error).__module__.partition(".")[0]
    reason = _first_line(error)
    if type(error).__name__ == "S3UploadFailedError" and isinstance(error.__context__, Exception):  # boto3 keeps the answer's text alone
        error = error.__context__
    status, code = _http_status(error), _error_code(error)
    if home in ("mlflow", *_CLOUDS) and (status in _DENIED or code in _DENIED_CODES):
        return StoreDenied, reason
    if home == "mlflow":
        if "out-of-date" in reason or code == "INVALID_STATE" or status == 501:
            return StoreRejected, reason
        if "file store" in str(error).lower() or "filesystem" in str(error).lower():
            return StoreRejected, f"{reason}: {_FILE_STORE}"
        if code == "TEMPORARILY_UNAVAILABLE" or status is None or status >= 500 or status in _TRY_AGAIN:
            return _later(str(error), code), reason
        return StoreRejected, reason
    if home in _CLOUDS:
        if status is None and home not in ("requests", "urllib3") and _DENIED_NAMES.search(type(error).__name__):
            return StoreDenied, reason
        permanent = status is not None and status < 500 and status not in _TRY_AGAIN and code not in _STORE_WIDE_CODES
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
    if home == "google" or type(error).__name__ == "JSONDecodeError":  # a gateway's page, or what is no answer of MLflow's
        return StoreUnavailable, f"the answer is not one of MLflow's: {reason}"
    if isinstance(error, LookupError | ValueError | TypeError | AttributeError | ArithmeticError | RecursionError):
        return StoreRejected, f"the answer cannot be used: {type(error).__name__}: {reason}"
    return None, reason


def _missing_credentials(uri: str, reason: str) -> str:
    """The remedy where a server refuses somebody that it does not know; else nothing."""
    if re.search(r"no password supplied|using password: NO|empty password", reason):
        return f"; no password was given, put it into {credentials_place(uri)}"
    if re.search(r"password authentication failed|using password: YES|error code 401|not authenticated", reason):
        return f"; check the user name and password in {credentials_place(uri)}"
    return ""


def _clean(error: BaseException | None) -> None:
    """Take the credentials out of the messages of an exception and of those behind it: a traceback shows them all."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.args = tuple(redact(one) if isinstance(one, str) else one for one in error.args)
        if isinstance(message := getattr(error, "message", None), str):
            error.message = redact(message)  # type: ignore[attr-defined]
        error = error.__cause__ or error.__context__


def _later(text: str, code: str) -> type[StoreUnavailable]:
    """Which kind of unavailable: MLflow calls its client's transport errors INTERNAL_ERROR too, and an unknown HTTP status of a gateway."""
    if "timed out" in text or "timeout exception" in text or "timeout expired" in text or code == "DEADLINE_EXCEEDED":
        return StoreSlow
    answered = not text.startswith("API request to ") or "failed with error code 500 " in text or "too many 500 error responses" in text
    return StoreFailed if code == "INTERNAL_ERROR" and answered else StoreUnavailable


def _error_code(error: BaseException) -> str:
    """MLflow's word for an error, or S3's."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(error, "error_code", ""))


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
    text = str(error).strip() or type(error).__name__
    text = re.sub(r"^\((?:[\w.]+)\)\s*", "", text.splitlines()[0].strip())
    refused = re.search(r"(Connection refused|timed out|Name or service not known|No route to host|Failed to resolve)", text)
    if refused and len(text) > 160:
        text = refused[1]
    return printable(text if len(text) <= 300 else text[:297] + "...")
