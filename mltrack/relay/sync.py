"""`mltrack sync`: complete the delivery of a run directory, now or while its trainer runs.

Invariant: one delivery of a directory at a time, by a lock that ends with its holder; acknowledged records are never
sent again."""

from __future__ import annotations

import fcntl
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mltrack.errors import TrackingError
from mltrack.journal import RunDirectory
from mltrack.relay.address import may_be_made, tracking_uri_of
from mltrack.relay.delivery_state import Progress
from mltrack.relay.heartbeat_tag import beating
from mltrack.relay.liveness import Life, Notice, Trainer, refuse_trained_elsewhere, trainer_of
from mltrack.relay.pace import Pace
from mltrack.relay.page import Page
from mltrack.relay.projection import Projection
from mltrack.relay.relay_process import WatchedProcess
from mltrack.relay.system_metrics import SystemMetricsFeed
from mltrack.relay.trainers import OthersRun, RunDeleted, Settled
from mltrack.relay.verdict import verdict_on
from mltrack.store import StoreDenied, StoreRejected, StoreUnavailable, connect
from mltrack.store.refusal import StoreSlow

NICENESS = 10
"""The trainer has priority on the cores, even while this process imports mlflow."""
LOOK_S = 0.5
"""Between two reads of the journal; the pace decides when points are sent."""
LONGEST_PAUSE_S = 5.0
LONGEST_WAIT_S = 60.0
"""The same if the server answers but refuses the credentials, or its artifact store takes no files: that needs a
person, or time.
"""
GIVE_UP_S = 600.0
"""How long a server may be silent after the trainer has ended."""
log = logging.getLogger("mltrack.relay")


class DeliveredElsewhere(TrackingError):
    """Another process is delivering this run directory."""


def sync(
    directory: RunDirectory,
    tracking_uri: str | None = None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    notice: Notice = lambda line: None,
) -> Progress:
    """Deliver what is undelivered; may be called any number of times.

    Args:
        directory: of the run.
        tracking_uri: the destination; default: that of the run.
        on_progress: called after each acknowledged request.
        notice: called with a line for the user.

    Raises:
        TrainedElsewhere: another machine or container trains the run.
        DeliveredElsewhere: another process is delivering this directory.
        Settled: the run was resumed into another directory, or deleted, before all of this one had arrived.
        StoreUnavailable: the server does not answer, or not within `LONGEST_S` even to small requests.
    """
    uri, pace = tracking_uri_of(directory, tracking_uri), Pace()
    refuse_trained_elsewhere(directory, notice)
    with _lock(directory):
        while True:
            try:
                return _sync_connected(directory, uri, on_progress, pace)
            except Settled:
                if (progress := Progress.read(directory, uri)).complete:
                    return progress
                raise
            except StoreSlow:
                if pace.has_asked_for_little:
                    raise
                pace.timed_out()


def _sync_connected(
    directory: RunDirectory, uri: str, on_progress: Callable[[Progress], None] | None, pace: Pace
) -> Progress:
    projection = Projection(
        directory, connect(uri, request_timeout_s=pace.timeout_s, create=may_be_made(directory, uri)), on_progress, pace
    )
    was_trained = (
        trainer_of(directory).life() is Life.ALIVE
    )  # checked first, so that a trainer's last records are delivered below
    projection.deliver()
    if not was_trained or projection.progress.end is not None:
        _describe(projection, Page(directory), verdict_on(projection.progress, directory).status)
        projection.finish()
    return projection.progress


def delivering_process(directory: RunDirectory) -> int | None:
    """The process that is delivering this directory now, or None."""
    try:
        with _lock(directory):
            return None
    except DeliveredElsewhere:
        holder = (directory.path / "relay.lock").read_bytes().strip()
        return int(holder) if holder.isdigit() else 0


def run(directory: RunDirectory) -> None:
    """Run the relay: `mltrack sync --follow`. Raises like `follow`, except for errors that a restarted relay would meet
    again.
    """
    for warning in (signal.SIGHUP, signal.SIGUSR1):  # for the trainer, whose end must still be delivered
        signal.signal(warning, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        follow(directory)
    except (Settled, StoreRejected) as error:
        log.error("%s", error)
        info, progress = directory.read_run(), Progress.read(directory, tracking_uri_of(directory))
        is_unopened = progress.opened_for != info.trainer_started
        if isinstance(error, OthersRun) or (isinstance(error, StoreRejected | RunDeleted) and is_unopened):
            progress.rejected = str(error)
            progress.write(directory, acknowledged=False)
        elif isinstance(error, StoreRejected):  # it took this trainer's records before
            raise


def follow(directory: RunDirectory) -> Progress:
    """Deliver until the trainer has ended and everything is acknowledged, through any outage of the server.

    Raises:
        DeliveredElsewhere: another process is delivering this directory.
        StoreRejected: MLflow refuses the run itself: there is no such run or experiment, or it is deleted.
        Settled: the run was resumed into another directory, or deleted.
        StoreUnavailable: the server was silent for too long after the trainer's end.
    """
    os.nice(NICENESS)
    refuse_trained_elsewhere(directory)
    info, uri = directory.read_run(), tracking_uri_of(directory)
    trainer = Trainer.of_run(info).process()
    system = SystemMetricsFeed(info.trainer_pid if trainer.is_alive() else None, own_run=info.owns_status)
    pace, pauses = Pace(), 0
    last_success = time.monotonic()
    with _lock(directory, patience_s=GIVE_UP_S):
        while True:
            try:
                progress = _follow_connected(directory, uri, trainer, system, pace)
                log.info("complete: %d points, %d refused", progress.sent, len(progress.failed))
                return progress
            except StoreUnavailable as error:
                progress = Progress.read(directory, uri)
                longest_s = (
                    LONGEST_WAIT_S
                    if isinstance(error, StoreDenied) or progress.deferred
                    else LONGEST_PAUSE_S
                    if trainer.is_alive()
                    else 2.0
                )
                progress.waiting = str(error)
                progress.write(
                    directory, acknowledged=False
                )  # nothing is being uploaded now, so no process need wait for it
                if progress.acknowledged_ms / 1000 > time.time() - LONGEST_PAUSE_S:
                    pauses, last_success = 0, time.monotonic()
                if isinstance(error, StoreSlow):
                    pace.timed_out()
                pauses += 1
                log.warning("%s", error)
                if not trainer.is_alive() and time.monotonic() - last_success > GIVE_UP_S:
                    raise
                trainer.wait(_pause_s(pauses, longest_s)) if trainer.is_alive() else time.sleep(
                    _pause_s(pauses, longest_s)
                )


def _follow_connected(
    directory: RunDirectory, tracking_uri: str, trainer: WatchedProcess, system: SystemMetricsFeed, pace: Pace
) -> Progress:
    store = connect(tracking_uri, request_timeout_s=pace.timeout_s, create=may_be_made(directory, tracking_uri))
    projection = Projection(directory, store, pace=pace)
    with beating(tracking_uri, projection.run_id):
        return _follow_projection(projection, trainer, system, pace)


def _follow_projection(
    projection: Projection, trainer: WatchedProcess, system: SystemMetricsFeed, pace: Pace
) -> Progress:
    due_s, page = 0.0, Page(projection.directory)
    while True:
        alive = trainer.is_alive()
        is_due = not alive or time.monotonic() >= due_s
        count = projection.deliver(all_points=is_due)
        is_over = projection.progress.end is not None or not (alive or count)
        if alive:
            system.sample_due()
        if (is_due or is_over) and projection.progress.run_id is not None:
            system.send(projection.store, projection.progress.run_id)
            due_s = time.monotonic() + random.uniform(0.8, 1.0) * pace.interval_s(
                projection.info.age_s
            )  # relays that were held up together part again
            status = verdict_on(projection.progress, projection.directory).status if is_over else "RUNNING"
            _describe(projection, page, status)
        if is_over:
            projection.finish()
            return projection.progress
        trainer.wait(LOOK_S)


def _describe(projection: Projection, page: Page, status: str) -> None:
    page.update(projection.store, projection.run_id, projection.info.experiment_id, status, projection.progress)


def _pause_s(attempt: int, longest_s: float) -> float:
    """Seconds before the next attempt: doubling, with jitter, at most `longest_s`."""
    return random.uniform(0.5, 1.0) * min(longest_s, 0.25 * 2 ** min(attempt, 10))


@contextmanager
def _lock(directory: RunDirectory, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the directory; wait up to `patience_s` for another holder (an earlier relay that still delivers the resumed
    run).
    """
    path = directory.path / "relay.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + patience_s
    try:
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                raise DeliveredElsewhere(
                    f"{directory.path}: is being delivered by process {holder}; wait for it, see {directory.relay_log}"
                )
            time.sleep(0.2)
        with suppress(OSError):  # a full disk: the holder's id is not recorded
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
