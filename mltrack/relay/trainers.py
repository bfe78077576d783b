"""The trainers of a run, which name themselves in its tags: by them a run directory knows that its run went on
elsewhere.

Invariant: out of a directory that fell behind nothing is delivered. Somebody resumed the run from what MLflow held and
has trained on since: what this journal says of models, status and steps is no longer true of the run. MLflow has no
compare-and-set, so a directory that has just been asked may fall behind before its next request arrives; what deletes
something asks right before."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping

import psutil

from mltrack.errors import TrackingError
from mltrack.journal import JournalReader, Machine, RunDirectory
from mltrack.relay.liveness import HOST_TAG, STARTED_TAG, Trainer
from mltrack.relay.progress import Progress
from mltrack.store import Store, StoreRejected, runs
from mltrack.store.refusal import is_missing

VERSION_TAG = "mltrack.version"
"""Beside them in the journal of every training."""
NOW_AND_THEN_S = 5.0
"""How old an answer may be where nothing is deleted."""


class Settled(TrackingError):
    """Nothing more of a directory is delivered unless somebody asks for it by name; the message says why, and what can
    be done.
    """


class RunDeleted(Settled):
    """The run of a directory is in MLflow's trash, or no longer in MLflow at all.

    Args:
        directory: of the run.
        run_id: of MLflow.
        restore: the command that brings it back; None where nothing does.
    """

    def __init__(self, directory: RunDirectory, run_id: str, restore: str | None):
        sync = shlex.join(["mltrack", "sync", str(directory.path)])
        remedy = (
            f"restore it by '{restore}', then '{sync}'"
            if restore
            else f"'{sync} --tracking-uri URI' of another store keeps it as a run of its own"
        )
        state = "deleted" if restore else "gone from MLflow for good"
        super().__init__(
            f"run {run_id} is {state}, so nothing more of it is delivered, and all of it stays in {directory.path};"
            f" {remedy}"
        )


class WentOnElsewhere(Settled):
    """The run of a directory was resumed into another one.

    Args:
        directory: the one that fell behind.
        run_id: of MLflow.
        host: of the newest trainer.
    """

    def __init__(self, directory: RunDirectory, run_id: str, host: str | None):
        super().__init__(
            f"{directory.path}: run {run_id} went on elsewhere{f' (on {host})' if host else ''} since this directory"
            " was written, so nothing more of it is delivered there, and all of it stays here; accepted: mltrack train"
            f" --resume {run_id}, which goes on from what MLflow holds and sets this directory aside, or mltrack sync"
            f" {directory.path} --tracking-uri URI of another store, which keeps it as a run of its own"
        )


def trainer_tags() -> dict[str, str]:
    """Tags that name this process as the trainer of a run."""
    return Trainer(os.getpid(), psutil.Process().create_time(), Machine.here()).tags


class OwnTrainers:
    """The trainers that one run directory has had, as its journal tells; what was read once is not read again."""

    def __init__(self, directory: RunDirectory):
        self._directory = directory
        self._reader = JournalReader(directory.journal)
        self._first_end = 0
        """Byte of the journal behind the first of them."""
        self._started: set[str | None] = set()

    def fell_behind(self, tags: Mapping[str, str], delivered: int) -> bool:
        """True where the run's tags name a trainer that came after all of these.

        A directory of which nothing has arrived yet is the newest where its trainer started last: somebody began the
        run once more without knowing what MLflow held (`mlflow run` under the same id while the server was away).

        Args:
            tags: of the MLflow run.
            delivered: bytes of the journal that it has acknowledged.
        """
        newest = tags.get(STARTED_TAG)
        if newest is None or newest == str(self._directory.read_run().trainer_started):
            return False
        self._read_on()
        if not self._started or newest in self._started:  # the journal of somebody's own loop names none
            return False
        return not (delivered < self._first_end and max(map(_seconds, self._started)) > _seconds(newest))

    def _read_on(self) -> None:
        for record in self._reader.read_new():
            if record["type"] == "tags" and not record["values"].keys().isdisjoint((STARTED_TAG, VERSION_TAG)):
                self._first_end = self._first_end or self._reader.offset
                self._started.add(record["values"].get(STARTED_TAG))


class Claim:
    """The right of a run directory to speak for its MLflow run.

    Args:
        progress: learns that the claim is lost.
        save: writes it down.
    """

    def __init__(
        self, directory: RunDirectory, store: Store, run_id: str, progress: Progress, save: Callable[[], None]
    ):
        self._directory, self._store, self._run_id, self._progress, self._save = (
            directory,
            store,
            run_id,
            progress,
            save,
        )
        self._own = OwnTrainers(directory)
        self._asked_s = 0.0

    def check(self, within_s: float = 0.0) -> None:
        """Ask MLflow who trains the run, unless that was asked within so many seconds by the clock on the wall: a
        machine may have slept.

        Raises:
            WentOnElsewhere: somebody else does.
            RunDeleted: nobody does, it is deleted.
            StoreUnavailable: the server does not answer.
        """
        now_s = time.time()
        if abs(now_s - self._asked_s) < within_s:
            return
        error = self._refusal()
        self._progress.elsewhere = str(error) if isinstance(error, WentOnElsewhere) else None
        self._progress.deleted = str(error) if isinstance(error, RunDeleted) else None
        if error is not None:
            self._progress.complete = self._progress.is_whole(self._directory)
            self._save()
            raise error
        self._asked_s = now_s

    def _refusal(self) -> Settled | None:
        try:
            run = runs.get_run(self._store, self._run_id)
        except StoreRejected as error:
            if is_missing(error):
                return RunDeleted(self._directory, self._run_id, None)
            raise
        if run.is_deleted:
            return RunDeleted(self._directory, self._run_id, runs.restore_command(self._store, run))
        if self._own.fell_behind(run.tags, self._progress.offset):
            return WentOnElsewhere(self._directory, self._run_id, run.tags.get(HOST_TAG))
        return None


def _seconds(started: str | None) -> float:
    """When a trainer started, as its tag says; long ago where it does not."""
    try:
        return float(started or 0)
    except ValueError:
        return 0.0
