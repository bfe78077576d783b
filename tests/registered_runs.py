"""Finished runs as the registry sees them: a logged model with a few bytes, and the record that ends a journal.

Invariant: what is registered went through the relay's own code; only the training is left out.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

from hf_folders import encoder_folder, write_model_folder

from mltrack import registry
from mltrack.registry import gate
from mltrack.registry.champion import Outcome
from mltrack.store import Store, create_run, publish

DIGEST = "d" * 64


def model_folder(parent: Path) -> Path:
    """A small classifier as MLflow keeps it."""
    source = encoder_folder(parent / "encoder")
    config = json.loads((source / "config.json").read_text())
    return write_model_folder(
        source,
        parent / "model",
        task="text_classification",
        hf_config={"mltrack": config["mltrack"]},
        requirements=["mlflow"],
    )


def logged_model(store: Store, folder: Path) -> str:
    """A READY logged model of a run of its own."""
    run = create_run(
        store, experiment_name=None, run_name="r", tags={}, idempotency_key=uuid.uuid4().hex, start_time_ms=1000
    )
    return publish(store, run.run_id, folder, name="step-1", step=1, tags={}, metrics={}, timestamp_ms=2000)


def intent(
    value: float | str, *, policy: str = "auto", margin: float = 0.0, digest: str = DIGEST, **more: str
) -> dict[str, str]:
    """The tags that a version is registered with, as far as the gate reads them."""
    tags = {
        gate.VALUE: str(value),
        gate.POLICY: policy,
        gate.MARGIN: str(margin),
        gate.EVAL_DIGEST: digest,
        gate.METRIC: "eval_loss",
        gate.MODE: "min",
    }
    return {**tags, **more}


def finish(store: Store, folder: Path, name: str, value: float | str, **options: Any) -> Outcome:
    """A run that ends with this figure."""
    return registry.register(
        store, name, logged_model(store, folder), intent(value, **options), "made by a test, version {version}"
    )


def add_versions(store: Store, name: str, count: int, value: float = 0.9) -> None:
    """So many finished versions behind the newest one and like it, each judged worse; by SQL, since each takes a tenth
    of a second otherwise.
    """
    database = sqlite3.connect(store.tracking_uri.removeprefix("sqlite:///"))
    with database:
        (newest,) = database.execute("select max(version) from model_versions where name = ?", (name,)).fetchone()
        for table in ("model_versions", "model_version_tags"):
            columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
            rows = [
                dict(zip(columns, row, strict=True))
                for row in database.execute(f"select * from {table} where name = ? and version = ?", (name, newest))
            ]
            for number in range(newest + 1, newest + 1 + count):
                for row in rows:
                    own = {**row, "version": number}
                    if table == "model_versions":
                        own |= {"source": f"models:/m-{uuid.uuid4().hex}", "creation_time": time.time_ns() // 1_000_000}
                    elif own["key"] in (gate.VALUE, gate.DECISION):
                        own["value"] = str(value) if own["key"] == gate.VALUE else "challenger: it is not better"
                    database.execute(
                        f"insert into {table} ({', '.join(own)}) values ({', '.join('?' * len(own))})",
                        list(own.values()),
                    )
    database.close()
