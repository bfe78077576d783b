"""Another process, by pid and creation time: is it alive, and wait for its end."""

from __future__ import annotations

import os
import select
import time

import psutil

_SAME_START_S = 2.5
"""Creation times of one process, read twice, differ by less: Linux tells the boot time in whole seconds, and a clock
that is set moves it.
"""


class WatchedProcess:
    """A process that may end at any moment; told at once by a pidfd on Linux, by polling elsewhere.

    Args:
        pid: None for one that is gone already.
        started: its creation time in seconds since 1970; a pid can be used again.
    """

    def __init__(self, pid: int | None, started: float | None):
        self._process: psutil.Process | None = None
        self._pidfd: int | None = None
        if pid is None:
            return
        try:
            process = psutil.Process(pid)
            if started is None or abs(process.create_time() - started) < _SAME_START_S:
                self._process = process
                self._pidfd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
        except (
            psutil.NoSuchProcess,
            OSError,
            ValueError,
            OverflowError,
        ):  # the last two: no process can have such a number
            self._process = None

    def is_alive(self) -> bool:
        """False once the process has ended, also while its parent has not yet collected it."""
        if self._process is None:
            return False
        if self._pidfd is not None:
            return not self._poll(0)
        return self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE

    def wait(self, timeout_s: float) -> None:
        """Return when the process has ended, or after the time-out."""
        if self._pidfd is not None:
            self._poll(timeout_s)
        elif self.is_alive():
            time.sleep(timeout_s)

    def _poll(self, timeout_s: float) -> bool:
        assert self._pidfd is not None
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))
