"""Watches another process, by pid and creation time: whether it is alive, and its end."""

from __future__ import annotations

import os
import select
import time

import psutil

_SAME_START_S = 2.5
"""Two readings of a process's creation time differ by less: Linux gives the boot time in whole seconds, and setting the
clock moves it.
"""


class WatchedProcess:
    """A process that may end at any moment; noticed at once by a pidfd on Linux, by polling elsewhere.

    Args:
        pid: None for one that is already gone.
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
        ):  # the last two: an impossible number
            self._process = None

    def is_alive(self) -> bool:
        """False once the process has ended, even if its parent has not collected it yet."""
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
