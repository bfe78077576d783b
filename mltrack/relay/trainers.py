"""The trainers of a run, which name themselves in its tags, so a run directory knows if its run was resumed elsewhere.

Invariant: nothing is delivered from an outdated directory. If the run was resumed from MLflow and trained further, this
journal's models, status and steps are no longer those of the run. MLflow has no compare-and-set, so a directory may
become outdated between a check and its next request; any deletion is checked right before.

A run that was given by its id belongs to the training that names itself there first. If two find it free at the same
moment, the later name is kept, and each checks again before it sends anything else."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Callable, Mapping

import psutil

from mltrack.errors import TrackingError
from mltrack.journal import JournalReader, Machine, RunDirectory
from mltrack.relay.delivery_state import Progress
from mltrack.relay.liveness import HEARTBEAT_TAG, HOST_TAG, PID_TAG, STARTED_TAG, Life, Trainer, moves
from mltrack.store import Store, StoreRejected, runs
from mltrack.store.refusal import is_missing

VERSION_TAG = "mltrack.version"
"""Recorded with them in the journal of every training."""
NOW_AND_THEN_S = 5.0
"""How old an answer may be if nothing is deleted."""
BOTH_ARE_NAMED_S = 1.0
"""How long a trainer waits after it has named itself in a run that was given by its id, so that another one that found
the run free at the same moment has done so too."""
log = logging.getLogger("mltrack.relay")


class Settled(TrackingError):
    """Nothing more of a directory is delivered unless the user names it; the message says why, and what to do."""


class RunDeleted(Settled):
    """The run of a directory is in MLflow's trash, or no longer in MLflow at all.

    Args:
        directory: of the run.
        run_id: of MLflow.
        restore: the command that restores it; None if that is impossible.
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


class StaleRunDirectory(Settled):
    """The run of a directory was resumed into another one.

    Args:
        directory: the outdated one.
        run_id: of MLflow.
        host: of the newest trainer.
    """

    def __init__(self, directory: RunDirectory, run_id: str, host: str | None):
        super().__init__(
            f"{directory.path}: run {run_id} was resumed elsewhere{f' (on {host})' if host else ''} since this"
            " directory was written, so nothing more of it is delivered, and all of it stays here; use mltrack train"
            f" --resume {run_id} to continue from what MLflow holds and set this directory aside, or mltrack sync"
            f" {directory.path} --tracking-uri URI of another store to keep it as a run of its own"
        )


class OthersRun(StaleRunDirectory):
    """The run that a training was given by its id belongs to another training, and holds nothing of this one.

    Args:
        directory: of the refused training.
        run: its tags name the other one.
    """

    def __init__(self, directory: RunDirectory, run: runs.RunInfo):
        trainer = Trainer.of_tags(run.tags)
        Settled.__init__(
            self,
            f"run {run.run_id} belongs to another training ({trainer.place}, {run.status}), so nothing of this one is"
            f" added to it, and all of it stays in {directory.path}; use another MLFLOW_RUN_ID or none, mltrack train"
            f" --resume {run.run_id} once that one has ended, or mltrack sync {directory.path} --tracking-uri URI of"
            " another store to keep this one as a run of its own",
        )


def trainer_tags() -> dict[str, str]:
    """Tags that name this process as the trainer of a run."""
    return Trainer(os.getpid(), psutil.Process().create_time(), Machine.here()).tags


class OwnTrainers:
    """The trainers that one run directory has had, from its journal, of which each part is read only once."""

    def __init__(self, directory: RunDirectory):
        self._directory = directory
        self._reader = JournalReader(directory.journal)
        self._first_end = 0
        """Byte of the journal after the first of them."""
        self._named: set[tuple[str | None, str | None]] = set()
        """Start time and process id of each: two of one shell may start within one tick of the clock."""

    def fell_behind(self, run: runs.RunInfo, delivered: int) -> bool:
        """True if the run's tags name a trainer that came after all of these, or to which the run belongs.

        A directory of which nothing has arrived yet is the newest if its trainer started last and the one before is
        gone without having finished: the run was started again without MLflow's data (`mlflow run` with the same id
        while the server was unavailable).

        Args:
            run: of MLflow.
            delivered: acknowledged bytes of the journal.
        """
        if not self.are_others_in(run.tags):
            return False
        is_newest = self.are_new(delivered) and max(_seconds(started) for started, _ in self._named) > _seconds(
            run.tags[STARTED_TAG]
        )
        return not is_newest or is_held(run)

    def are_others_in(self, tags: Mapping[str, str]) -> bool:
        """True if the run's tags name a trainer that is none of these."""
        newest, info = _name_in(tags), self._directory.read_run()
        if newest[0] is None or newest == (str(info.trainer_started), str(info.trainer_pid)):
            return False
        self._read_on()  # the journal of a user's own loop names none
        return bool(self._named) and newest not in self._named

    def are_new(self, delivered: int) -> bool:
        """True if none of them has named itself in the run yet."""
        self._read_on()
        return delivered < self._first_end

    def _read_on(self) -> None:
        for record in self._reader.read_new():
            if record["type"] == "tags" and not record["values"].keys().isdisjoint((STARTED_TAG, VERSION_TAG)):
                self._first_end = self._first_end or self._reader.offset
                self._named.add(_name_in(record["values"]))


class Claim:
    """The right of a run directory to write its MLflow run.

    Args:
        progress: records that the claim is lost.
        save: writes the progress.
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
        self._still: set[Trainer] = set()
        """Trainers elsewhere whose heartbeat did not change."""

    def confirm(self) -> None:
        """Check again after a trainer of this directory has named itself in the run, before more is sent: another one
        may have done so at the same moment if the run was given by its id. Raises like `check`.
        """
        run = runs.get_run(self._store, self._run_id)
        was_given = run.tags.get(runs.LOCAL_ID_TAG) != self._directory.read_run().local_id
        if was_given and self._own.are_new(self._progress.offset):
            time.sleep(BOTH_ARE_NAMED_S)
            self.check()

    def check(self, within_s: float = 0.0) -> None:
        """Ask MLflow for the run's trainer, unless that was done within this many seconds of wall-clock time (a machine
        may have slept).

        Raises:
            StaleRunDirectory: it is another one; OthersRun if nothing of this directory is in the run yet.
            RunDeleted: the run is deleted.
            StoreUnavailable: the server does not answer.
        """
        now_s = time.time()
        if abs(now_s - self._asked_s) < within_s:
            return
        error = self._refusal()
        self._progress.elsewhere = str(error) if isinstance(error, StaleRunDirectory) else None
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
        if self._own.are_others_in(run.tags):
            if self._own.are_new(self._progress.offset) and (is_held(run) or self._is_seen_to_live(run)):
                return OthersRun(self._directory, run)
            if self._own.fell_behind(run, self._progress.offset):
                return StaleRunDirectory(self._directory, self._run_id, run.tags.get(HOST_TAG))
        return None

    def _is_seen_to_live(self, run: runs.RunInfo) -> bool:
        """True if the run's trainer cannot be looked up from here and its heartbeat changes; each is watched once,
        before this directory's own relay writes the same tag.
        """
        trainer = Trainer.of_tags(run.tags)
        if run.status != "RUNNING" or HEARTBEAT_TAG not in run.tags or trainer.life() is not Life.ELSEWHERE:
            return False
        if trainer not in self._still:
            log.info("checking whether %s still trains run %s", trainer.place, run.run_id)
            if moves(lambda: runs.get_run(self._store, self._run_id).tags.get(HEARTBEAT_TAG), NOW_AND_THEN_S):
                return True
            self._still.add(trainer)
        return False


def is_held(run: runs.RunInfo) -> bool:
    """True if the trainer in the tags has finished the run, or is known here to be alive."""
    if "FINISHED" in (run.status, run.tags.get("mltrack.status")):
        return True
    return run.status == "RUNNING" and Trainer.of_tags(run.tags).life() is Life.ALIVE


def _name_in(tags: Mapping[str, str]) -> tuple[str | None, str | None]:
    return tags.get(STARTED_TAG), tags.get(PID_TAG)


def _seconds(started: str | None) -> float:
    """The start time in a trainer's tag; 0 if it has none."""
    try:
        return float(started or 0)
    except ValueError:
        return 0.0
