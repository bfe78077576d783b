"""Work in the background of a training: one job at a time, whose error is raised later.

Invariant: at most one job runs, and the interpreter waits for it before it exits. Its error is raised once, by the next
`finish`, or logged if `finish` is not called again. On Linux the job does not take the processor from the thread that
started it.

    behind = Background()
    behind.start(write)      # returns at once, unless a job is still running: waits for that first
    behind.finish()          # waits, and raises what `write` raised
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

_LOG = logging.getLogger("mltrack.checkpoints")


class Background:
    """A thread that runs one job after the other."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="checkpoint-writer", initializer=_stand_back
        )
        self._in_flight: list[Future[None]] = []
        self._thread: int | None = None
        weakref.finalize(self, _log_errors, self._in_flight)

    @property
    def busy(self) -> bool:
        """True while a job runs."""
        return any(not job.done() for job in self._in_flight)

    def start(self, job: Callable[[], None]) -> None:
        """Start the job after waiting for the previous one; raise that one's error instead, if it failed."""
        self.finish()
        try:
            self._in_flight.append(self._executor.submit(self._run, job))
        except RuntimeError:  # the interpreter is exiting and starts no more threads
            job()

    def finish(self) -> None:
        """Wait for the running job and raise its error. Does nothing when called by the job itself."""
        if self._thread == threading.get_ident():
            return
        while self._in_flight:
            error = self._in_flight[0].exception()
            self._in_flight.clear()
            if error is not None:
                raise error

    def _run(self, job: Callable[[], None]) -> None:
        self._thread = threading.get_ident()
        try:
            job()
        finally:
            self._thread = None


def _stand_back() -> None:
    """Set the batch policy: without an idle core, a woken thread replaces the one that woke it, but not under this
    policy. Its share of time stays the same.
    """
    if hasattr(os, "sched_setscheduler"):
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _log_errors(in_flight: list[Future[None]]) -> None:
    for job in in_flight:
        if job.done() and (error := job.exception()) is not None:
            _LOG.error("the last checkpoint was not saved: %s", error)
