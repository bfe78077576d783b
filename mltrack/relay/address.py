"""The current tracking URI of a run directory's MLflow run.

Invariant: the user's choice on the command line wins. If a recorded embedded database is gone, it is looked for at the
same place relative to the run directory, because a moved project folder takes both along; nothing is created at its
old place."""

from __future__ import annotations

import os
from pathlib import Path

from mltrack.addresses import is_same
from mltrack.journal import RunDirectory
from mltrack.store import database_file, default_tracking_uri
from mltrack.store.database import database_uri


def tracking_uri_of(directory: RunDirectory, given: str | None = None) -> str:
    """`given`, else the recorded one, or its new address if it was moved together with the directory."""
    info = directory.read_run()
    uri = default_tracking_uri(given or info.tracking_uri or None)
    file = database_file(uri)
    if given or file is None or file.exists() or not info.directory:
        return uri
    moved = Path(os.path.normpath(directory.path / os.path.relpath(file, info.directory)))
    return database_uri(moved, like=uri) if moved.is_file() else uri


def may_be_made(directory: RunDirectory, tracking_uri: str) -> bool:
    """False for the database that already holds the run: if it is gone, an empty one does not help."""
    info = directory.read_run()
    return info.run_id is None or not is_same(tracking_uri, info.tracking_uri)
