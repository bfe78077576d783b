"""A new MLflow database in milliseconds: MLflow makes the tables of one with all its migrations, which takes seconds, and the others
are copies of it. Tests of how a database is made let MLflow make it.
"""

from __future__ import annotations

import atexit
import shutil
import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path

from mlflow import MlflowClient


def ready_store(folder: Path, name: str = "mlflow.db", *, artifacts: str | None = None) -> str:
    """The URI of a database in `folder`, which has a first experiment and nothing else; one that is there stays.

    Args:
        artifacts: where the first experiment keeps its files; not given: `mlruns` in the folder.
    """
    database = folder / name
    if not database.exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(_template(), database)
        with closing(sqlite3.connect(database)) as connection:
            location = artifacts or f"{folder}/mlruns/0"
            connection.execute("UPDATE experiments SET artifact_location = ?", (location,))
            connection.commit()
    return f"sqlite:///{database}"


@cache
def _template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ready-store-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    MlflowClient(f"sqlite:///{folder}/template.db").search_experiments()
    return folder / "template.db"
