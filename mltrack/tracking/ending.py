"""How the run of a tracker ends.

Invariant: only the process that made the tracker ends its run; the first end counts; a run is a success only if that
was recorded. If the end of a successful run cannot be written, it is tried again until the disk has room or
`PATIENCE_S` is over, and once more at each later call. A run whose end could never be written has FAILED, as its
journal says."""

from __future__ import annotations

import ctypes
import os
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mltrack.errors import Interrupted, MltrackError
from mltrack.journal import DiskFullError, JournalWriter, records

PATIENCE_S = 10.0
"""How long the end of a successful run waits for room on a full disk; as long as for a dead server."""
_PAUSE_S = 0.2

_HANDLED = "_mltrack_handled"
"""Attribute of an exception: the endings that were made while it was handled, as texts, which pickle copies. A
reference to it would keep its frames and their tensors alive, and its id may be reused."""

Outcome = tuple[str, int]
"""status, exit code"""


class Ending:
    """The end of one journal.

    Args:
        journal: of the run.
        presumed: how the run ended if nothing else was recorded; None: unknown here.
    """

    def __init__(self, journal: JournalWriter, presumed: Outcome | None):
        self._journal, self._pid = journal, os.getpid()
        self.presumed = presumed
        self._end: records.Record | None = None
        self._settled = self._written = False
        self._name = uuid.uuid4().hex
        if (handled := sys.exception()) is not None:
            handled.__dict__.setdefault(_HANDLED, []).append(self._name)

    @property
    def is_ours(self) -> bool:
        """False in a process that was forked from the one that trains."""
        return os.getpid() == self._pid

    @property
    def is_known(self) -> bool:
        """True if it is decided how the run ends, written or not."""
        return self._end is not None or self.presumed is not None

    @property
    def status(self) -> str:
        """How the run ends, as far as known."""
        return (
            self._end["status"]
            if self._end is not None
            else self.presumed[0]
            if self.presumed is not None
            else "FINISHED"
        )

    def settle(self, status: str, exit_code: int) -> None:
        """Record the result of the run before its last parts.

        Raises:
            DiskFullError: the disk has no room for it; what is presumed does not change.
        """
        if self.is_ours:
            self.write(records.outcome(status, exit_code), patient=status == "FINISHED")
            self.presumed, self._settled = (status, exit_code), True

    def end(self, outcome: Outcome | None = None) -> None:
        """Record the end: `outcome` at the first call, else what is presumed, else FINISHED.

        Raises:
            DiskFullError: the disk has no room for it; the next call tries again.
        """
        if self._written or not self.is_ours:
            return
        if self._end is None:
            self._end = records.end(*(outcome or self.presumed or ("FINISHED", 0)))
        self.write(self._end, patient=self._end["status"] == "FINISHED")
        self._written = True

    def after(self, error: BaseException | None) -> Outcome | tuple[()]:
        """The outcome due to an exception that leaves the run; empty if there is none or the run was settled before."""
        return () if error is None or self._settled else outcome_of(error)

    def on_its_way(self) -> BaseException | None:
        """The exception being handled, unless it was so when the tracker was made: that one is not the run's."""
        error = sys.exception()
        return error if error is not None and self._name not in error.__dict__.get(_HANDLED, ()) else None

    def write(self, record: records.Record, *, patient: bool) -> None:
        """Append a record and force it to the disk; if `patient`, for a part of a success, wait for room.

        Raises:
            DiskFullError: there was no room.
        """
        deadline = time.monotonic() + (PATIENCE_S if patient else 0.0)
        steps: tuple[Callable[[], None], ...] = (partial(self._journal.append, record), self._journal.sync)
        for step in steps:
            while True:
                try:
                    step()
                    break
                except DiskFullError:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(_PAUSE_S)


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of a run that an exception leaves: `sys.exit(0)` and a closed generator are no failure, an
    interruption is KILLED.
    """
    if isinstance(error, GeneratorExit) or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED", 0
    exit_code = error.exit_code if isinstance(error, MltrackError) else 1
    return "KILLED" if isinstance(error, (KeyboardInterrupt, Interrupted)) else "FAILED", exit_code


def leave_exit_code(path: Path) -> bool:
    """Make the C library write this process's exit code into a file, as an int, after Python has ended: Python's exit
    hooks do not know it.

    Returns:
        False if the C library cannot (it is not glibc), or the file cannot be created.
    """
    library = ctypes.CDLL(None)
    if not (hasattr(library, "on_exit") and hasattr(library, "putw")):
        return False
    library.fopen.restype = ctypes.c_void_p
    stream = library.fopen(os.fsencode(path), b"wb")
    return bool(stream) and library.on_exit(library.putw, ctypes.c_void_p(stream)) == 0


def uncaught() -> type[BaseException] | None:
    """The class of the exception that ended the script. In an interactive session it may be that of any earlier
    statement.
    """
    found: type[BaseException] | None = getattr(sys, "last_type", None)
    return found
