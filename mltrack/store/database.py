"""Databases that MLflow reads without a tracking server: files, and database servers.

Invariant: nothing here waits longer than its time-out, and the only file written is the lock beside a database file.
"""

from __future__ import annotations

import math
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote

from mltrack.store.refusal import StoreRejected, StoreUnavailable

_LONGEST_WAIT_S = 60.0
"""For another process that is creating the tables of a database, which takes seconds."""
_MADE_WITHIN_S = 60.0
"""A database that was not written to for so long is not being created."""
SERVED = ("postgresql", "mysql", "mssql")
"""Databases that MLflow talks to without a tracking server."""
SQLITE = re.compile(r"(sqlite(?:\+\w+)?):///(.*)$", re.DOTALL)


def database_uri(file: Path, *, like: str) -> str:
    """The URI of an sqlite file, with the driver and query of another URI."""
    match = SQLITE.match(like)
    assert match is not None
    path, query = _quoted(file), "".join(match[2].partition("?")[1:])
    quoted = path != file.as_posix() and match[1] == "sqlite"
    # for a URI without a driver MLflow also creates the folder of the quoted path
    driver = "sqlite+pysqlite" if quoted else match[1]
    return f"{driver}:///{path}{query}"


def database_file(uri: str) -> Path | None:
    """The file of an sqlite database; None for any other store, and for a database in memory."""
    match = SQLITE.match(uri)
    if match is None or not match[2] or match[2].startswith((":memory:", "file:")):
        return None
    return Path(unquoted(match[2].partition("?")[0]))


def has_running_runs(file: Path) -> bool:
    """Whether an sqlite database holds a run with status RUNNING; True if it cannot be read. Does without MLflow, whose
    import takes a second.
    """
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return database.execute("SELECT 1 FROM runs WHERE status = 'RUNNING' LIMIT 1").fetchone() is not None
    except sqlite3.Error:
        return True


def own_artifact_root() -> str | None:
    """The URI of the folder `mlruns` in the working directory, for the files of a database file's runs; None if MLflow
    finds it by its plain path.

    MLflow decodes a path like a URI, and writes the first experiment's into an SQL statement as Python's repr."""
    here = Path.cwd() / "mlruns"
    return here.as_uri() if re.search(r"[%?#\\'\"]", str(here)) or not str(here).isprintable() else None


def answering(uri: str, timeout_s: float) -> str:
    """The URI for MLflow; for a database server with time-outs for its driver, after the server has answered.

    MLflow would try for 101 s to reach a server that refuses, and wait forever for one that is silent.
    """
    if not uri.startswith(SERVED):
        return uri
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    seconds = max(2, math.ceil(timeout_s))
    timeouts = {
        "postgresql": (
            {"connect_timeout": seconds, "tcp_user_timeout": 4000 * seconds}
            if url.get_driver_name().startswith("psycopg")
            else {}
        ),
        "mysql": {"connect_timeout": seconds} if url.get_driver_name() in ("pymysql", "mysqldb") else {},
    }.get(url.get_backend_name(), {})
    url = url.update_query_dict({name: str(value) for name, value in timeouts.items() if name not in url.query})
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect():
        return url.render_as_string(hide_password=False)


@cache
def _paths_are_quoted() -> bool:
    """SQLAlchemy decodes the path in a URI since 2.1; older versions do not, so a path cannot contain a '?'."""
    major, minor = metadata.version("sqlalchemy").split(".")[:2]
    return (int(major), int(minor)) >= (2, 1)


def _quoted(path: Path) -> str:
    text = path.as_posix()
    if (not text.isascii() and text != os.fsencode(path).decode("utf-8", "replace")) or (
        "?" in text and not _paths_are_quoted()
    ):
        raise StoreRejected(
            f"MLflow cannot keep a database in a folder of this name: {ascii(text)[1:-1]}; use another folder, set"
            " MLFLOW_TRACKING_URI, or use --offline true"
        )
    return re.sub(r"[%?\x00-\x1f\x7f]", lambda match: f"%{ord(match[0]):02X}", text) if _paths_are_quoted() else text


def unquoted(path: str) -> str:
    return unquote(path) if _paths_are_quoted() else path


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Let one process at a time open a database file: two that create its tables at once both fail, and MLflow's own
    lock leaves a gap.

    The lock is a file beside the database, opened but never written to. If there can be none, or another user holds it,
    the database is opened without."""
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


@contextmanager
def patient_while_made(file: Path | None) -> Iterator[None]:
    """Recognize a database file whose tables another process is creating or upgrading: until they are complete it looks
    like one of another version.

    Raises:
        StoreUnavailable: MLflow calls its tables out of date, and it was written to a moment ago.
    """
    try:
        yield
    except StoreRejected as error:
        if file is None or "out-of-date" not in str(error) or time.time() - file.stat().st_mtime > _MADE_WITHIN_S:
            raise
        raise StoreUnavailable(f"another process may be creating its tables now; {error}") from error


def _lock_beside(uri: str) -> int | None:
    """Descriptor of the file .NAME.lock beside an SQLite database; follows no link and does not wait for a pipe."""
    path = database_file(uri)
    if path is None or not path.is_absolute() or os.name != "posix":
        return None
    try:
        return os.open(
            path.with_name(f".{path.name}.lock"),
            os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC,
            0o644,
        )
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
