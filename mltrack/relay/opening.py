"""Finds or creates the MLflow run of a run directory.

Invariant: a run that a directory names is looked for, never created again in its own store; the answers of MLflow are
in run.json before anything is sent."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

from mltrack.addresses import is_same
from mltrack.journal import RunDirectory, RunInfo
from mltrack.relay.delivery_state import Progress
from mltrack.relay.exposed import exposed_secrets
from mltrack.relay.notices import opening_notices
from mltrack.store import Store, StoreRejected, run_naming, runs

log = logging.getLogger("mltrack.relay")


def open_run(directory: RunDirectory, store: Store, info: RunInfo) -> str:
    """The id of its MLflow run; fills in what is missing in `info`, the content of run.json.

    Raises:
        StoreRejected: the run cannot be written; the message says where its id came from.
    """
    if info.run_id is None or not _is_here(store, info, info.run_id):
        run = runs.create_run(
            store,
            experiment_name=info.experiment_name,
            run_name=info.run_name,
            tags={runs.KIND_TAG: info.kind, **info.tags},
            idempotency_key=info.local_id,
            start_time_ms=info.created_ms,
            experiment_id=info.experiment_id if info.run_id is None else None,
        )
        belongs_elsewhere = info.run_id is not None
        info.run_id, info.experiment_id, info.tracking_uri = run.run_id, run.experiment_id, store.tracking_uri
        if not belongs_elsewhere:
            _note(directory, run_id=info.run_id, experiment_id=info.experiment_id, tracking_uri=info.tracking_uri)
            if directory.path.name == info.local_id:
                directory.link(info.run_id)
    elif info.experiment_id is None:  # a run that the trainer was given by its id
        run = _given_run(store, info.run_id)
        info.experiment_id = run.experiment_id
        info.under_mlflow_run = info.under_mlflow_run or run.tags.get("mlflow.source.type") == "PROJECT"
        if info.under_mlflow_run and info.run_name and run_naming.has_random_name(run):
            run_naming.rename_run(store, info.run_id, info.run_name)
        _note(directory, experiment_id=info.experiment_id, under_mlflow_run=info.under_mlflow_run)
    return info.run_id


def look_at_run(store: Store, run_id: str, info: RunInfo, progress: Progress) -> None:
    """Collect notices about the run: secrets that other tools wrote there and, if this trainer is new to it, what it
    is.
    """
    run = runs.get_run(store, run_id)
    progress.exposed = exposed_secrets(run)
    if runs.KIND_TAG not in run.tags:  # created by another tool or mltrack 0.1
        runs.set_tags(store, run_id, {runs.KIND_TAG: info.kind})
    if progress.opened_for != info.trainer_started:
        progress.notices = opening_notices(store, run)
    for line in (*progress.exposed, *progress.notices):
        log.warning("%s", line)


def _given_run(store: Store, run_id: str) -> runs.RunInfo:
    try:
        return runs.get_active_run(store, run_id)
    except StoreRejected as error:
        if os.environ.get("MLFLOW_RUN_ID") == run_id:
            raise StoreRejected(f"MLFLOW_RUN_ID names run {run_id}: {error}") from error
        raise


def _note(directory: RunDirectory, **known: Any) -> None:
    """Record MLflow's answers in run.json, read anew, since the run may have been resumed meanwhile."""
    try:
        directory.write_run(replace(directory.read_run(), **known))
    except OSError as error:  # a full disk: another relay finds the run by its local id
        log.error("%s: not written: %s", directory.run_file, error.strerror)


def _is_here(store: Store, info: RunInfo, run_id: str) -> bool:
    """False if this is another store than the run's own and does not hold it."""
    if is_same(store.tracking_uri, info.tracking_uri):
        return True
    try:
        runs.get_run(store, run_id)
    except StoreRejected:
        return False
    return True
