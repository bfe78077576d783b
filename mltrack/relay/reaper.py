"""Runs that MLflow calls RUNNING though nobody trains them any more.

Invariant: only runs of mltrack are touched, and only where their trainer is known to be dead (by this machine's run directory, or by the
host and process that the run's tags name) and nobody is delivering them. A run that went on elsewhere is not this directory's to judge.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from mltrack.errors import MltrackError
from mltrack.journal import RunDirectory, find_run_directories
from mltrack.relay.process import WatchedProcess
from mltrack.relay.progress import Progress
from mltrack.relay.sync import DeliveredElsewhere, delivering_process, sync
from mltrack.relay.trainers import HOST_TAG, PID_TAG, STARTED_TAG, OwnTrainers, Settled, trainer_of
from mltrack.store import Store, StoreUnavailable, runs


def orphans(store: Store, output_dir: Path | str) -> dict[str, RunDirectory | None]:
    """{MLflow run id: its run directory, if it lies here} of the runs without a trainer."""
    directories = {directory.read_run().run_id: directory for directory in find_run_directories(output_dir)}
    found: dict[str, RunDirectory | None] = {}
    for run in runs.search_running_runs(store):
        directory = directories.get(run.run_id)
        if directory is not None and OwnTrainers(directory).fell_behind(run.tags, Progress.read(directory, store.tracking_uri).offset):
            directory = None
        if directory is not None:
            dead = not trainer_of(directory).is_alive() and delivering_process(directory) is None
        else:
            dead = _died_here(run.tags)
        if dead:
            found[run.run_id] = directory
    return found


def _died_here(tags: Mapping[str, str]) -> bool:
    """True where the tags name a process of this machine that has ended."""
    try:
        pid, started = int(tags[PID_TAG]), float(tags[STARTED_TAG])
    except (KeyError, ValueError):
        return False
    return tags.get(HOST_TAG) == socket.gethostname() and not WatchedProcess(pid, started).is_alive()


def reap(store: Store, run_id: str, directory: RunDirectory | None) -> str:
    """Complete the delivery and give the run the status that its journal tells, FAILED without one. Returns that status.

    Raises:
        StoreUnavailable: the server does not answer.
        DeliveredElsewhere: somebody has begun to deliver it; who does so sets the status.
        Settled: somebody has begun to train it, or deleted it.
    """
    if directory is not None:
        try:
            status = sync(directory, store.tracking_uri).status
            if status is not None:
                return status
            held = runs.get_run(store, run_id).status
            if held != "RUNNING":
                return held
        except (StoreUnavailable, DeliveredElsewhere, Settled):
            raise
        except MltrackError:
            pass  # the journal cannot be read: what is left is the truth about the status
    runs.set_tags(store, run_id, {"mltrack.status": "FAILED", "mltrack.failure": "the trainer ended without saying so"})
    runs.finish_run(store, run_id, "FAILED")
    return "FAILED"
