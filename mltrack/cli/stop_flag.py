"""The signals that end a training, and when they take effect.

Invariant: the first signal never interrupts work on an open run; a second one ends the process at once.

    stop = StopFlag()
    stop.install()
    with stop.at_once():     # nothing is open yet: a signal raises KeyboardInterrupt right here
        read_data()
    train(stop_requested=stop)   # asked between batches
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SAME_REQUEST_S = 5.0
"""One request may arrive as two signals. On Ctrl-C, `mlflow run` sends SIGTERM to its program, which also gets SIGINT
from the terminal; a shell that loses its terminal sends a second SIGHUP after the kernel's."""
WARNINGS = (signal.SIGHUP, signal.SIGUSR1)
"""A closed terminal, and Slurm's signal before a time limit. A signal ignored at the start, as under `nohup`, stays
ignored."""


class StopFlag:
    """Remembers the first signal; a second one ends the process at once, unless it belongs to the same request."""

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._arrived = 0.0
        self._raises = False
        self._pid = os.getpid()
        self._terminals = [stream for stream in (0, 1, 2) if os.isatty(stream)]

    def install(self) -> None:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        for number in WARNINGS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def __call__(self) -> int | None:
        """The signal that arrived, or None."""
        return self.signal_number

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, a signal raises KeyboardInterrupt at once."""
        self._raises = True
        try:
            if self.signal_number is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked process before its own work
            os._exit(128 + number)
        now = time.monotonic()
        if self.signal_number is not None:
            if self._belongs_to_the_first(number) and now - self._arrived < SAME_REQUEST_S:
                return
            os._exit(128 + number)
        self.signal_number, self._arrived = number, now
        self._leave_closed_terminal()
        with suppress(OSError):
            os.write(2, b"\nstopping; a second signal ends at once, without a checkpoint\n")
        if self._raises:
            raise KeyboardInterrupt

    def _belongs_to_the_first(self, number: int) -> bool:
        return (self.signal_number, number) in ((signal.SIGINT, signal.SIGTERM), (signal.SIGHUP, signal.SIGHUP))

    def _leave_closed_terminal(self) -> None:
        """Redirect streams of a closed terminal to the null device, since each write there is an error."""
        for stream in self._terminals:
            if not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, stream)
                os.close(nowhere)
