"""The MLflow run of this process, and this process as its trainer."""

from __future__ import annotations

import os
import uuid

import mltrack
from mltrack.journal import Machine, RunInfo, records
from mltrack.store import active_run, default_tracking_uri


def run_here(run_id: str | None, tracking_uri: str | None, experiment_name: str | None) -> RunInfo | None:
    """The MLflow run that was named, or that is active in this process."""
    active = active_run()
    if run_id is None and active is not None:
        run_id, tracking_uri = active.run_id, active.tracking_uri
    if run_id is None:
        return None
    return RunInfo(
        local_id=uuid.uuid4().hex,
        run_id=run_id,
        experiment_name=experiment_name,
        tracking_uri=default_tracking_uri(tracking_uri),
        created_ms=records.now_ms(),
        owns_status=active is None or active.run_id != run_id,  # an active run is ended by the code that started it
        mltrack_version=mltrack.__version__,
    )


def name_trainer(info: RunInfo) -> None:
    """Record this process as the trainer."""
    here = Machine.here()
    info.trainer_pid, info.trainer_started = os.getpid(), _process_started(os.getpid())
    info.trainer_host, info.trainer_boot_id, info.trainer_pid_namespace = here.host, here.boot_id, here.pid_namespace


def _process_started(pid: int) -> float:
    """When a process was started, seconds since 1970; 0 if it is gone."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0
